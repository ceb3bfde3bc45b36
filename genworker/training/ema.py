"""The weight average that is served, with a half-life counted in images seen."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from genworker.families.base import FamilyConfig, Networks


class WeightAverage:
    """Exponential moving average of the served sub-networks.

    Early in a run the half-life is a share of the images seen (Karras et al. 2020), so that the average is never dominated
    by the untrained weights.
    """

    def __init__(self, networks: Networks, served: tuple[str, ...], config: FamilyConfig) -> None:
        self.networks = nn.ModuleDict({name: copy.deepcopy(networks[name]) for name in served})
        self.networks.requires_grad_(False)
        self._source: list[Tensor] = [p for name in served for p in networks[name].parameters()]
        self._target: list[Tensor] = list(self.networks.parameters())
        self._halflife = config.ema_halflife_images
        self._rampup = config.ema_rampup

    @torch.no_grad()
    def update(self, batch_size: int, images_seen: int, progress: float) -> None:
        """Move towards the current weights after a step of ``batch_size`` images."""
        halflife = self._halflife.at(progress)
        if self._rampup is not None:
            halflife = min(halflife, self._rampup * images_seen)
        keep = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        torch._foreach_lerp_(self._target, self._source, 1.0 - keep)

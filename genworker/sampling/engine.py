"""The engine: a trained generator on a device, turned into pixels as fast as the device allows.

In: a bundle and a plan. Out: `SampleBatch`es for any range of sample indices. Sample i is always evaluated as a member of
the same micro-batch, [k * micro_batch, (k + 1) * micro_batch) of the plan's own grid, whatever range was asked for, so its
pixels do not depend on shards, order or restarts. It never writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from genworker.bulk.plan import Numerics, Plan
from genworker.bundle import Bundle
from genworker.device import device_class, has_fast_bfloat16
from genworker.errors import BundleError, DeterminismError
from genworker.sampling.latents import labels, latents
from genworker.schema import ImageSchema, Int64Array, Pixels, SampleBatch

_MAX_MICRO_BATCH = 128
_MICRO_BATCH_PIXELS = 2**21  # bounds the features of one evaluation: 128 images up to 128x128, 32 of 256x256


def resolve_numerics(
    device: torch.device, schema: ImageSchema, libraries: dict[str, str], *, force_float32: bool = False
) -> Numerics:
    """Choose how a generator is evaluated on ``device``: bfloat16 where the processor has it, channels-last there."""
    fast = has_fast_bfloat16(device) and not force_float32
    return Numerics(
        device_class=device_class(device),
        dtype="bfloat16" if fast else "float32",
        memory_format="channels_last",
        micro_batch=max(1, min(_MAX_MICRO_BATCH, _MICRO_BATCH_PIXELS // (schema.height * schema.width))),
        libraries={"torch": torch.__version__, **libraries},
    )


def quantise(images: torch.Tensor) -> Pixels:
    """Turn images [N, C, H, W], nominally in [-1, 1], into pixels uint8 [N, H, W, C]; rounds, and clamps what lies outside."""
    scaled = images.float().mul(127.5).add(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class Engine:
    """A generator, placed on a device with the numerics of a plan."""

    def __init__(self, bundle: Bundle, plan: Plan, device: torch.device) -> None:
        if bundle.digest != plan.bundle_digest:
            raise BundleError(f"the plan was made for bundle {plan.bundle_digest[:16]}, this is {bundle.digest[:16]}")
        check_numerics(plan.numerics, device)
        self._plan = plan
        self._device = device
        self._dtype = torch.bfloat16 if plan.numerics.dtype == "bfloat16" else torch.float32
        self._generator = bundle.generator()
        module = self._generator
        assert isinstance(module, nn.Module)
        layout = torch.channels_last if plan.numerics.memory_format == "channels_last" else torch.contiguous_format
        module.to(device=device, dtype=self._dtype)
        module.to(memory_format=layout)  # type: ignore[call-overload]  # torch documents it, its stubs lack it
        family = bundle.info.family
        self._num_classes = bundle.info.image_schema.num_classes if family.conditional else 0

    def batches(self, first: int, count: int) -> Iterator[SampleBatch]:
        """Yield samples [first, first + count) in order, at most a micro-batch at a time."""
        size = self._plan.numerics.micro_batch
        for start in range(first // size * size, first + count, size):
            pixels, classes = self._evaluate(start, size)
            lower, upper = max(first, start) - start, min(first + count, start + size) - start
            yield SampleBatch(
                sample_index=np.arange(start + lower, start + upper, dtype=np.int64),
                pixels=pixels[lower:upper],
                labels=None if classes is None else classes[lower:upper],
            )

    @torch.inference_mode()
    def _evaluate(self, start: int, size: int) -> tuple[Pixels, Int64Array | None]:
        z = torch.from_numpy(latents(self._plan.seed, start, size, self._generator.latent_dim))
        z = z.to(self._device, self._dtype, non_blocking=True)
        if not self._num_classes:
            return quantise(self._generator(z, None)), None
        classes = labels(self._plan.seed, start, size, self._num_classes, self._plan.labels)
        images = self._generator(z, torch.from_numpy(classes).to(self._device, non_blocking=True))
        return quantise(images), classes


def check_numerics(numerics: Numerics, device: torch.device) -> None:
    """Refuse to compute where the bytes of a plan could not be reproduced. Raises DeterminismError."""
    here = device_class(device)
    if here != numerics.device_class:
        raise DeterminismError(
            f"the plan was made for {numerics.device_class}, this process computes on {here}: its bytes would differ; "
            "run on machines of the plan's kind, or write to another URL"
        )
    version = numerics.libraries.get("torch")
    if version != torch.__version__:
        raise DeterminismError(
            f"the plan was made with torch {version}, this process has {torch.__version__}: its bytes could differ; "
            "use the image or environment that the job was started with, or write to another URL"
        )

"""Weights of sub-networks as bytes, and sub-networks with the weights that bytes hold: safetensors, nothing is unpickled.

In: sub-networks, or a family and a stranger's bytes. Out: the same bytes for the same weights, or networks whose weights are
all that the family builds, of its names, shapes and types, and finite. It touches no store.
"""

from __future__ import annotations

import textwrap

import safetensors
import safetensors.torch
import torch
from torch import nn

from genworker.errors import BundleError, UsageError
from genworker.families.base import Family
from genworker.families.building import build_without_memory


def to_bytes(networks: nn.ModuleDict) -> bytes:
    """The weights of all sub-networks; equal weights give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in networks.state_dict().items()}
    data: bytes = safetensors.torch.save(tensors)
    return data


def from_bytes(family: Family, kind: str, names: tuple[str, ...], weights: bytes, origin: str) -> nn.ModuleDict:
    """The sub-networks ``names`` of a family with their weights, on the CPU, in evaluation mode, without gradients.

    Args:
        family: builds them.
        kind: what to call the family in messages.
        names: of the sub-networks that the bytes hold.
        weights: as `to_bytes` made them.
        origin: where they lie, for messages.

    Raises:
        BundleError: the weights are not those of such networks, or one of them is not a finite number.
    """
    try:
        # A forged config asks for no memory: what is allocated is what the weights hold.
        built = build_without_memory(family)
        modules = nn.ModuleDict({name: built[name] for name in names})
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(weights).items()}
        for name, tensor in modules.state_dict().items():
            if name in tensors and tensors[name].dtype != tensor.dtype:
                raise BundleError(f"{origin}: {name} is {tensors[name].dtype}, expected {tensor.dtype}")
        modules.load_state_dict(tensors, assign=True)
    except (RuntimeError, KeyError, ValueError, OverflowError, UsageError, safetensors.SafetensorError) as err:
        raise BundleError(
            f"{origin}: does not fit a {kind} of the config beside it; it was damaged or made by another version of "
            f"genworker: {textwrap.shorten(str(err), 500)}"
        ) from err
    missing = [name for name, tensor in modules.named_buffers() if tensor.is_meta]
    assert not missing, f"buffers {missing} are no part of the state_dict"
    for name, tensor in tensors.items():
        # Eight bits know no NaN: images of such a network would be black, and nobody the wiser.
        if bad := tensor.numel() - int(torch.isfinite(tensor).sum()):
            raise BundleError(
                f"{origin}: {bad} of the {tensor.numel()} values of {name} are NaN or infinite; "
                "take the bundle below best/ of its run, or train again"
            )
    return modules.requires_grad_(False).eval()

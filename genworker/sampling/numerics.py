"""The numerics of a plan on a device: what is taken without measuring, and whether this process can keep to them."""

from __future__ import annotations

import torch

from genworker import families
from genworker.bulk.plan import Numerics
from genworker.device import device_class, has_fast_bfloat16
from genworker.errors import OtherMachineError
from genworker.schema import ImageSchema

_MAX_MICRO_BATCH = 128
_MICRO_BATCH_PIXELS = 2**21  # bounds the features of one evaluation: 128 images up to 128x128, 32 of 256x256


def resolve_numerics(
    device: torch.device,
    schema: ImageSchema,
    libraries: dict[str, str],
    *,
    force_float32: bool = False,
    micro_batch: int | None = None,
    num_cpus: int = 1,
) -> Numerics:
    """What is usually fastest on ``device``: bfloat16 where the processor has it, channels-last, micro-batches of 128.

    A CPU evaluates with all ``num_cpus`` of the process; beside a GPU they have other work.
    """
    fast = has_fast_bfloat16(device) and not force_float32
    return Numerics(
        device_class=device_class(device),
        dtype="bfloat16" if fast else "float32",
        memory_format="channels_last",
        micro_batch=micro_batch or default_micro_batch(schema),
        threads=num_cpus if device.type == "cpu" else 1,
        libraries={**_libraries(device), **libraries},
    )


def default_micro_batch(schema: ImageSchema) -> int:
    """128 images, or fewer large ones."""
    return max(1, min(_MAX_MICRO_BATCH, _MICRO_BATCH_PIXELS // (schema.height * schema.width)))


def check_numerics(numerics: Numerics, device: torch.device) -> None:
    """Refuse to compute where the bytes of a plan could not be reproduced. Raises OtherMachineError."""
    here = device_class(device)
    if here != numerics.device_class:
        raise OtherMachineError(
            f"the plan was made for {numerics.device_class}, this process computes on {here}: its bytes would differ; "
            "run on machines of the plan's kind, or write to another URL"
        )
    for part, version in _libraries(device).items():
        planned = numerics.libraries.get(part)
        if planned != version:
            raise OtherMachineError(
                f"the plan was made with {part} {planned}, this process has {version}: its bytes could differ; "
                "use the image or environment that the job was started with, or write to another URL"
            )


def _libraries(device: torch.device) -> dict[str, str]:
    """The versions of what computes here."""
    own = {"torch": torch.__version__, "networks": families.NETWORKS_VERSION}
    # One build of torch runs with several versions of cuDNN, whose convolutions may add in other orders.
    if device.type == "cuda":
        own["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return own

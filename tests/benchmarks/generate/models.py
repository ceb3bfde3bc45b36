"""The generators that are measured, and how each part gets hold of one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from genworker.bulk.plan import Plan

PLAIN_BATCH = 256

# name -> (family, schema, samples). 28x28x1 is the generator that fashion-tiny had when this was first measured;
# its size stays, so that figures of different days can be compared.
MODELS: dict[str, tuple[dict[str, Any], dict[str, int], int]] = {
    "28x28x1": (
        {"latent_dim": 64, "generator": {"widths": [128, 64, 32], "blocks": [1, 1, 0]}},
        {"channels": 1, "height": 28, "width": 28, "num_classes": 10},
        16_000,
    ),
    "64x64x3": (
        {"latent_dim": 64, "generator": {"widths": [128, 64, 32], "blocks": [1, 1, 0], "patch": 2}},
        {"channels": 3, "height": 64, "width": 64, "num_classes": 10},
        4_000,
    ),
}


def save_bundle(url: str, family: dict[str, Any], schema: dict[str, int]) -> None:
    """Save a bundle of an untrained generator."""
    import torch

    from genworker import families
    from genworker.bundle import Bundle, Lineage
    from genworker.families.r3gan import R3GANConfig
    from genworker.schema import ImageSchema
    from genworker.stores import open_store

    torch.manual_seed(0)
    config, shape = R3GANConfig.parse(family, origin="benchmark"), ImageSchema(**schema)
    networks = families.make(config, shape).build()
    served = torch.nn.ModuleDict({"generator": networks["generator"]})
    Bundle.pack(config, shape, served, Lineage()).save(open_store(url))


def engine_parts(bundle: str, samples: int) -> tuple[Plan, Any]:
    """A plan for this machine, and the generator as the engine places it."""
    import torch

    from genworker import bundle as bundles
    from genworker.bulk.request import virtual_plan
    from genworker.sampling.evaluators import place
    from genworker.stores import open_store

    loaded = bundles.load(open_store(bundle))
    cpu = torch.device("cpu")
    plan = virtual_plan(loaded.info, samples, 0, cpu)
    return plan, place(loaded.generator(), plan.numerics, cpu)


def plain_generator(bundle: str) -> tuple[Any, int]:
    """The generator as torch has it, and its number of classes."""
    from genworker import bundle as bundles
    from genworker.stores import open_store

    loaded = bundles.load(open_store(bundle))
    return loaded.generator(), loaded.info.image_schema.num_classes


def plain_inputs(generator: Any, classes: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random latents and labels, as people draw them."""
    import torch

    return torch.randn(count, generator.latent_dim), torch.randint(classes, (count,))


def pillow_pngs(images: torch.Tensor) -> Iterator[bytes]:
    """Images [N, C, H, W] as PNG files, the way examples do it."""
    import torch
    from PIL import Image

    pixels = ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for array in pixels:
        sink = io.BytesIO()
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(sink, format="PNG")
        yield sink.getvalue()

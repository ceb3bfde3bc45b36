"""Two, three and four workers compute the gradient of one, for every family and loss, in a real process group.

Run as a program, this file is one of the workers: it writes the gradients of every case, which the tests then compare.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from genworker import families
from genworker.families.gan_losses import LOSSES
from genworker.training import gradients as training_gradients
from genworker.training.loader import Loader, rank_slice
from genworker.training.meter import Meter
from genworker.training.step import Trainer
from tests.fakes import models
from tests.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

pytestmark = pytest.mark.slow

WORLD_SIZES = (2, 3, 4)
TOLERANCE = 1e-5  # relative, in the Euclidean norm of each network's gradient; float32 sums in another order


class Case(NamedTuple):
    """One training step to compare."""

    family: str
    batch_size: int
    values: dict[str, Any]
    micro_batch_size: int | None = None


CASES = {
    **{f"r3gan-{loss}": Case("r3gan", 7, {"loss": loss}) for loss in LOSSES},
    "r3gan-even": Case("r3gan", 6, {}),
    "r3gan-whole": Case("r3gan", 8, {}),
    "r3gan-accumulated": Case("r3gan", 8, {}, micro_batch_size=4),
    "r3gan-r1-only": Case("r3gan", 7, {"r2": False}),
    "r3gan-r2-only": Case("r3gan", 7, {"r1": False}),
    "r3gan-unconditional": Case("r3gan", 7, {"conditional": False}),
    "r3gan-bottleneck": Case("r3gan", 7, {"block": "bottleneck"}),
    "r3gan-wgan-gp": Case("r3gan", 7, {"loss": "wasserstein", "r1": False, "r2": False, "gp": 10.0}),
    "r3gan-augmented": Case("r3gan", 7, {"augment": {"schedule": 0.6}}),
    "r3gan-adapting": Case("r3gan", 7, {"augment": {"every_images": 1, "speed_images": 10}}),
    # Packs of two: 14 images are seven packs, which no group of workers shares evenly.
    "r3gan-packs": Case("r3gan", 14, {"pac": 2}),
    "r3gan-packs-wgan-gp": Case("r3gan", 14, {"pac": 2, "loss": "wasserstein", "r1": False, "r2": False, "gp": 10.0}),
    "r3gan-two-time-scales": Case("r3gan", 7, {"discriminator_lr_scale": 4.0}),
    "vae-flow": Case("vae", 7, {"prior": "flow", "free_bits": 0.0}),
    "vae-flow-even": Case("vae", 6, {"prior": "flow", "free_bits": 0.0}),
    "vae-flow-free-bits": Case("vae", 7, {"prior": "flow", "free_bits": 1e6}),
    "vae-bernoulli": Case("vae", 7, {"likelihood": "bernoulli"}),
    "vae-unconditional": Case("vae", 7, {"conditional": False}),
    "vae-bottleneck": Case("vae", 7, {"block": "bottleneck"}),
    "vae-min-sigma": Case("vae", 7, {"min_sigma": 10.0}),
    "vae-clipped": Case("vae", 7, {"clip_norm": 1e-3}),
    # Free bits that cover no latent, some, and all of them.
    "vae-free-bits-none": Case("vae", 7, {"prior": "standard", "free_bits": 0.0}),
    "vae-free-bits-some": Case("vae", 7, {"prior": "standard", "free_bits": 0.35}),
    "vae-free-bits-all": Case("vae", 7, {"prior": "standard", "free_bits": 1e6}),
    "vae-binarised": Case("vae", 7, {"likelihood": "bernoulli", "binarise": True}),
    "vae-mlp": Case("vae", 7, {"network": "mlp", "mlp_width": 12}),
    "vae-logistic-mixture": Case("vae", 7, {"likelihood": "logistic_mixture", "mixture_components": 3}),
    "vae-vampprior": Case("vae", 7, {"prior": "vampprior", "num_pseudo_inputs": 12}),
    "vae-vampprior-unconditional": Case("vae", 7, {"prior": "vampprior", "num_pseudo_inputs": 4, "conditional": False}),
    "vae-no-second-stage": Case("vae", 7, {"prior": "standard", "second_stage": False}),
    "vae-second-stage-on-flow": Case("vae", 7, {"second_stage": True}),
    "vae-two-levels": Case("vae", 7, {"levels": 2}),
    "vae-two-levels-vampprior": Case("vae", 7, {"levels": 2, "prior": "vampprior", "num_pseudo_inputs": 12}),
    "vae-two-levels-mlp-free-bits": Case(
        "vae", 7, {"levels": 2, "prior": "standard", "network": "mlp", "mlp_width": 12, "free_bits": 0.35}
    ),
    "vae-iwae": Case("vae", 7, {"objective": "iwae", "iwae_samples": 3}),
    "vae-iwae-two-levels-binarised": Case(
        "vae",
        7,
        {"objective": "iwae", "iwae_samples": 3, "levels": 2, "likelihood": "bernoulli", "binarise": True},
    ),
    "vae-skip-norm": Case("vae", 7, {"skip_norm": 1e9}),
}


def gradients(case: Case, rank: int, world_size: int) -> dict[str, Tensor]:
    """The gradients of one training step, of every network; no weight moves, because the learning rate is 0."""
    # The clipping norm is out of the way, and the KL term at full weight, unless a case says otherwise.
    own = {"kl_warmup": 0.0, "clip_norm": 1e9} if case.family == "vae" else {}
    spec = models.train_spec(
        case.family,
        family={"lr": {"start": 0.0, "end": 0.0}} | own | case.values,
        batch_size=case.batch_size,
        micro_batch_size=case.micro_batch_size,
        images=case.batch_size,
    )
    trainer = Trainer(spec, models.shipped_source(), rank, world_size, torch.device("cpu"))
    models.shake(trainer.networks, scale=0.05)
    with Loader(
        models.shipped_source(),
        batch_size=case.micro_batch_size or case.batch_size,
        seed=0,
        rank=rank,
        world_size=world_size,
        unit=spec.family.unit,
        prefetch=0,
    ) as loader:
        trainer.step(
            [next(loader) for _ in range(case.batch_size // (case.micro_batch_size or case.batch_size))], Meter()
        )
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.networks.named_parameters()
        if parameter.grad is not None
    }


def work(rank: int, folder: Path) -> None:
    """Take part in a group of each size that has room for this rank, and write the gradients."""
    torch.set_num_threads(1)
    training_gradients.BUCKET_BYTES = 512  # these networks are small, and are to fill many buckets
    for world_size in (1, *WORLD_SIZES):
        if rank >= world_size:
            continue
        if world_size > 1:
            dist.init_process_group(
                "gloo", init_method=(folder / f"group-{world_size}").as_uri(), rank=rank, world_size=world_size
            )
        for name, case in CASES.items():
            safetensors.torch.save_file(
                gradients(case, rank, world_size), folder / f"{name}-{world_size}-{rank}.safetensors"
            )
        if world_size > 1:
            dist.barrier()
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the gradients of every case, worker and group size."""
    folder = tmp_path_factory.mktemp("gradients")
    compute(folder)
    return folder


def compute(folder: Path) -> None:
    """Write the gradients of every case, worker and group size below ``folder``, by as many processes as the largest has."""
    run_ranks(__file__, folder, max(WORLD_SIZES))


def load(folder: Path, name: str, world_size: int, rank: int = 0) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}-{world_size}-{rank}.safetensors")


def norm_by_network(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each network's gradient."""
    networks = {name.split(".")[0] for name in tensors}
    return {
        network: float(
            torch.cat([t.double().reshape(-1) for name, t in tensors.items() if name.startswith(f"{network}.")]).norm()
        )
        for network in networks
    }


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference of a network's gradient."""
    assert ours.keys() == theirs.keys()
    size = norm_by_network(theirs)
    difference = norm_by_network({name: ours[name] - theirs[name] for name in ours})
    return max((difference[network] / size[network] if size[network] else difference[network]) for network in size)


def test_every_family_is_compared() -> None:
    """A family that is added to the table has to be added to these tests."""
    assert {case.family for case in CASES.values()} == set(families.FAMILIES)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_workers_together_compute_the_gradient_of_one(folder: Path, name: str, world_size: int) -> None:
    """With the same global batch, even where it cannot be shared evenly, the gradient is one worker's up to rounding."""
    one, many = load(folder, name, 1), load(folder, name, world_size)
    assert all(gradient.isfinite().all() for gradient in one.values())
    assert any(gradient.any() for gradient in one.values())
    assert relative_difference(many, one) < TOLERANCE


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_all_workers_hold_the_same_gradient(folder: Path, name: str, world_size: int) -> None:
    """After the reduction every worker has the same bits, so that their weights never drift apart."""
    first = load(folder, name, world_size)
    for rank in range(1, world_size):
        other = load(folder, name, world_size, rank)
        assert all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("world_size", [1, *WORLD_SIZES])
def test_accumulated_gradients_are_those_of_the_whole_batch(folder: Path, world_size: int) -> None:
    """Two micro-batches give the gradient of the batch that they are halves of, where the loss is a mean over images."""
    assert (
        relative_difference(load(folder, "r3gan-accumulated", world_size), load(folder, "r3gan-whole", 1)) < TOLERANCE
    )


def test_the_batch_of_these_tests_is_shared_unevenly() -> None:
    """Seven images on two to four workers are what makes a wrong mean visible."""
    for world_size in WORLD_SIZES:
        parts = [rank_slice(7, rank, world_size) for rank in range(world_size)]
        assert len({part.stop - part.start for part in parts}) == 2


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *itertools.combinations([f"r3gan-{loss}" for loss in LOSSES], 2),
        *itertools.combinations(["r3gan-relativistic", "r3gan-r1-only", "r3gan-r2-only", "r3gan-augmented"], 2),
        ("r3gan-wasserstein", "r3gan-wgan-gp"),
        *itertools.combinations(["vae-free-bits-none", "vae-free-bits-some", "vae-free-bits-all"], 2),
        ("vae-flow", "vae-flow-free-bits"),
        ("vae-flow", "vae-clipped"),
        ("vae-flow", "vae-min-sigma"),
        ("vae-bernoulli", "vae-binarised"),
        ("vae-flow", "vae-iwae"),
    ],
)
def test_the_cases_differ(folder: Path, left: str, right: str) -> None:
    """Each case really computes something else: a difference between two of them is far above the tolerance."""
    assert relative_difference(load(folder, left, 1), load(folder, right, 1)) > 100 * TOLERANCE


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))

"""What every model family promises, run over the table of families, conditional and not, for images of many shapes."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from genworker import families
from genworker.bundle import Bundle, Lineage
from genworker.errors import UsageError
from genworker.families.base import Batch
from genworker.families.gan_losses import LOSSES
from genworker.families.priors import FlowPrior, standard_log_prob
from genworker.sampling.latents import normals
from genworker.schema import ImageSchema
from genworker.stores import open_store
from genworker.training import loop
from tests.fakes import models
from tests.fakes.steps import Context

if TYPE_CHECKING:
    from genworker.families.base import Family, FamilyConfig, Losses, Networks, Phase

FAMILIES = sorted(families.FAMILIES)
BLOCKS = ["plain", "bottleneck"]
LABELS = ["labelled", "ignoring", "unlabelled"]
# Every block with every kind of labels on small images, and each further shape (height, width, channels) with one of them.
CASES = [
    *(((5, 3, 4), block, kind) for block in BLOCKS for kind in LABELS),
    ((28, 28, 1), "plain", "labelled"),
    ((28, 28, 1), "bottleneck", "unlabelled"),
    ((32, 32, 3), "bottleneck", "labelled"),
    ((20, 12, 1), "plain", "unlabelled"),
    ((29, 31, 3), "bottleneck", "ignoring"),
    ((1, 1, 1), "plain", "labelled"),
]
MICRO_BATCH = 16


@dataclass(frozen=True)
class Case:
    """A family at work: its config, schema and networks."""

    config: FamilyConfig
    schema: ImageSchema
    networks: Networks

    @property
    def family(self) -> Family:
        return families.make(self.config, self.schema)

    @property
    def num_classes(self) -> int:
        return self.schema.num_classes if self.config.conditional else 0

    def latents(self, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents and labels."""
        labels = torch.arange(count) * 7 % self.num_classes if self.num_classes else None
        return torch.from_numpy(normals(seed, 0, 0, count, self.config.latent_dim)), labels

    def batch(self, count: int) -> Batch:
        """A batch of smooth images."""
        generator = torch.Generator().manual_seed(3)
        images = torch.rand(count, *self.schema.image_shape, generator=generator) * 2 - 1
        labels = torch.arange(count) % self.schema.num_classes if self.schema.num_classes else None
        return Batch(images, labels)


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """Each family's name."""
    value: str = request.param
    return value


@pytest.fixture(params=CASES, ids=lambda values: "-".join(map(str, values)))
def case(name: str, request: pytest.FixtureRequest) -> Case:
    """A family with tiny networks for one shape, block and kind of labels."""
    (height, width, channels), block, kind = request.param
    schema = ImageSchema(channels=channels, height=height, width=width, num_classes=0 if kind == "unlabelled" else 3)
    config = models.family_config(name, block, conditional=kind != "ignoring")
    return Case(config, schema, models.networks_of(config, schema))


def test_the_registry_is_right() -> None:
    """A family's name in the table is the name in its config, and an unknown one is answered with the known ones."""
    for name, family in families.FAMILIES.items():
        assert family.Config.model_fields["name"].default == name
        assert families.get(name) is family
    with pytest.raises(UsageError, match=", ".join(FAMILIES)):
        families.get("diffusion")


def test_building_is_a_function_of_the_seed(case: Case) -> None:
    """The same seed builds equal weights, another one other weights."""

    def build(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return case.family.build().state_dict()

    one, again, other = build(5), build(5), build(6)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_phases_and_served_networks_exist(case: Case) -> None:
    """Phases move networks that are built, each network is moved by one phase, and what is served is among them."""
    moved = [network for phase in case.family.phases() for network in phase.networks]
    assert sorted(moved) == sorted(case.networks)
    assert set(case.family.served) <= set(case.networks)
    phases = [phase.name for phase in case.family.phases()]
    assert len(set(phases)) == len(phases)


@torch.no_grad()
def test_the_generator_makes_images(case: Case) -> None:
    """Latents and labels become float32 images of the schema's shape, different for different latents, near [-1, 1]."""
    generator = case.family.generator(case.networks)
    assert generator.latent_dim == case.config.latent_dim
    z, labels = case.latents(5)
    images = generator(z, labels)
    assert images.shape == (5, *case.schema.image_shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.abs().max() <= 1.0 + 1e-6
    assert len({image.numpy().tobytes() for image in images}) == 5


@torch.no_grad()
def test_labels_matter_when_they_should(case: Case) -> None:
    """A conditional generator makes other images of other labels and asks for labels; an unconditional one ignores them."""
    generator = case.family.generator(case.networks)
    z, labels = case.latents(4)
    if labels is None:
        assert torch.equal(generator(z, None), generator(z, torch.tensor([0, 1, 2, 0])))
        return
    assert not torch.equal(generator(z, labels), generator(z, (labels + 1) % 3))
    with pytest.raises(ValueError, match="labels are needed"):
        generator(z, None)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_companions(case: Case) -> None:
    """In the engine's micro-batch a sample's pixels are the same bits whatever the others are; else all but equal."""
    generator = case.family.generator(case.networks)
    z, labels = case.latents(MICRO_BATCH)
    other, _ = case.latents(MICRO_BATCH, seed=2)
    images = generator(z, labels)
    for kept in (0, 7, MICRO_BATCH - 1):
        mixed = other.clone()
        mixed[kept] = z[kept]
        assert torch.equal(generator(mixed, labels)[kept], images[kept])
        alone = generator(z[kept : kept + 1], None if labels is None else labels[kept : kept + 1])
        torch.testing.assert_close(alone[0], images[kept], rtol=1e-4, atol=1e-5)


def losses_of(case: Case, phase: Phase, count: int = 6) -> Losses:
    """The losses of a phase with its networks asking for gradients, as the loop does it."""
    for key, network in case.networks.items():
        network.requires_grad_(key in phase.networks)
        network.zero_grad(set_to_none=True)
    return phase.loss(case.networks, case.batch(count), Context(count))


def test_losses_are_finite_scalars_with_gradients(case: Case) -> None:
    """Every phase gives a finite scalar loss whose gradient reaches its own networks, all of them, and no others."""
    for phase in case.family.phases():
        losses = losses_of(case, phase)
        for key, value in losses.items():
            assert value.shape == (), key
            assert value.isfinite(), key
        losses["loss"].backward()
        for network, module in case.networks.items():
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if network not in phase.networks:
                assert not gradients, network
            elif list(module.parameters()):
                assert gradients, network
                assert all(gradient.isfinite().all() for gradient in gradients)
                assert any(gradient.any() for gradient in gradients), network


def test_losses_are_means_over_the_batch(name: str) -> None:
    """A batch of the same images twice has the losses of the images once: they are means, not sums."""
    config = models.family_config(name)
    case = Case(config, models.SMALL, models.networks_of(config, models.SMALL))
    batch = case.batch(4)
    assert batch.labels is not None
    double = Batch(torch.cat([batch.images] * 2), torch.cat([batch.labels] * 2))

    class Twice(Context):
        def noise(self, stream: int, dim: int) -> torch.Tensor:
            return torch.cat([Context(4).noise(stream, dim)] * 2)

        def uniform(self, stream: int, dim: int) -> torch.Tensor:
            return torch.cat([Context(4).uniform(stream, dim)] * 2)

    for phase in case.family.phases():
        single, doubled = phase.loss(case.networks, batch, Context(4)), phase.loss(case.networks, double, Twice(8))
        for key in single:
            torch.testing.assert_close(single[key], doubled[key], rtol=1e-4, atol=1e-4, msg=f"{phase.name}.{key}")


def test_a_bundle_generates_the_same_images(case: Case) -> None:
    """Packed and loaded, a generator makes the same images bit for bit, without the networks that are not served."""
    served = torch.nn.ModuleDict({key: case.networks[key] for key in case.family.served})
    bundle = Bundle.pack(case.config, case.schema, served, Lineage())
    z, labels = case.latents(4)
    with torch.no_grad():
        assert torch.equal(bundle.generator()(z, labels), case.family.generator(case.networks)(z, labels))


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("penalties", [(True, True), (True, False), (False, True), (False, False)])
def test_every_adversarial_loss_and_penalty_works(loss: str, penalties: tuple[bool, bool]) -> None:
    """Each loss of the table, with either penalty on or off, gives finite gradients to both players."""
    if loss == "wasserstein" and not any(penalties):
        with pytest.raises(UsageError, match="loss wasserstein without a penalty"):
            models.family_config("r3gan", loss=loss, r1=False, r2=False)
        return
    config = models.family_config("r3gan", loss=loss, r1=penalties[0], r2=penalties[1])
    case = Case(config, models.SMALL, models.networks_of(config, models.SMALL))
    for phase in case.family.phases():
        losses = losses_of(case, phase)
        losses["loss"].backward()
        assert all(value.isfinite() for value in losses.values())
        assert ("r1" in losses) == (phase.name == "discriminator" and any(penalties))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"likelihood": "bernoulli", "prior": "standard"},
        {"likelihood": "bernoulli", "binarise": True, "network": "mlp", "mlp_width": 32, "levels": 2},
        {"likelihood": "logistic_mixture", "mixture_components": 3, "prior": "vampprior", "num_pseudo_inputs": 10},
        {"objective": "iwae", "iwae_samples": 3, "network": "mlp", "mlp_width": 32, "prior": "vampprior"},
    ],
    ids=lambda values: "-".join(map(str, values.values())) or "default",
)
def test_a_vae_learns_a_tiny_set(values: dict[str, Any]) -> None:
    """Some training steps on a few images lower the negative ELBO well below what it was."""
    family = {"kl_warmup": 0.0} | values
    spec = models.train_spec("vae", family=family, limit=16, images=640, batch_size=16, report_every_images=16)
    curve: list[float] = []
    hooks = loop.Hooks(on_report=lambda metrics: curve.append(metrics["elbo.negative_elbo"]))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    loop.train(spec, models.shipped_source(16), store, rank=0, world_size=1, device=torch.device("cpu"), hooks=hooks)
    assert len(curve) == 40
    start, end = sum(curve[:4]) / 4, sum(curve[-4:]) / 4
    assert end < start - 0.05 * abs(start)


VAE_OPTIONS = {
    "two levels": {"levels": 2},
    "two levels, mlp, vampprior": {"levels": 2, "network": "mlp", "mlp_width": 8, "prior": "vampprior"},
    "mlp, standard": {"network": "mlp", "mlp_width": 8, "prior": "standard"},
    "no second stage": {"prior": "standard", "second_stage": False},
    "second stage on a flow": {"second_stage": True},
    "logistic mixture": {"likelihood": "logistic_mixture", "mixture_components": 2},
    "iwae": {"objective": "iwae", "iwae_samples": 2},
    "binarised": {"likelihood": "bernoulli", "binarise": True},
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("values", VAE_OPTIONS.values(), ids=VAE_OPTIONS.keys())
def test_every_option_of_the_vae_keeps_the_contract(values: dict[str, Any], kind: str) -> None:
    """What the tests above say of the default holds for the options: images, bundles, losses, labels, colours."""
    schema = ImageSchema(channels=3, height=5, width=4, num_classes=0 if kind == "unlabelled" else 3)
    config = models.family_config("vae", conditional=kind != "ignoring", **values)
    case = Case(config, schema, models.networks_of(config, schema))
    test_phases_and_served_networks_exist(case)
    test_the_generator_makes_images(case)
    test_labels_matter_when_they_should(case)
    test_a_sample_does_not_depend_on_its_companions(case)
    test_losses_are_finite_scalars_with_gradients(case)
    test_a_bundle_generates_the_same_images(case)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("dim", [2, 5, 6])
def test_the_flow_is_invertible_and_its_density_is_right(dim: int, num_classes: int) -> None:
    """log_prob of a sample is the noise's density over the Jacobian's determinant, which autograd computes too."""
    torch.manual_seed(0)
    flow = FlowPrior(dim, num_classes)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    flow = flow.double()
    noise = torch.randn(4, dim, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0]) if num_classes else None
    z = flow(noise, labels)
    for row in range(4):
        label = None if labels is None else labels[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda n, lab=label: flow(n[None], lab)[0], noise[row])
        expected = standard_log_prob(noise[row : row + 1]) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(flow.log_prob(z[row : row + 1], label), expected)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_few_latents_are_refused_or_enough(name: str, latent_dim: int, conditional: bool) -> None:
    """A model of very few latent dimensions is refused by name, or is built and trained without a warning."""
    try:
        config = models.family_config(name, latent_dim=latent_dim, conditional=conditional)
    except UsageError as err:
        assert latent_dim == 1
        assert "latent_dim 1" in str(err)  # noqa: PT017
        return
    case = Case(config, models.SMALL, models.networks_of(config, models.SMALL))
    for phase in case.family.phases():
        assert losses_of(case, phase)["loss"].isfinite()


@pytest.mark.parametrize("group_width", [1, 4, 5, 16, 100])
@pytest.mark.parametrize("widths", [[8, 4], [25, 18], [10]])
def test_any_stack_that_parses_can_be_built(name: str, widths: list[int], group_width: int) -> None:
    """A stack is refused by name when the spec is read, or it can be built: it never fails in between."""
    stack = {"block": "bottleneck", "widths": widths, "group_width": group_width}
    keys = [key for key, value in models.family_values(name).items() if isinstance(value, dict)]
    try:
        config = models.family_config(name, **dict.fromkeys(keys, stack))
    except UsageError as err:
        assert f"group_width {group_width}: a bottleneck of width" in str(err)  # noqa: PT017
        return
    models.networks_of(config, models.SMALL)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_keep_the_shape(name: str, patch: int) -> None:
    """Whatever the patch next to the image, images have the schema's shape and losses are finite."""
    schema = ImageSchema(channels=1, height=13, width=10, num_classes=3)
    stack = {"widths": [8, 4], "blocks": [0, 1], "patch": patch}
    keys = [key for key, value in models.family_values(name).items() if isinstance(value, dict)]
    config = models.family_config(name, **dict.fromkeys(keys, stack))
    case = Case(config, schema, models.networks_of(config, schema))
    z, labels = case.latents(2)
    assert case.family.generator(case.networks)(z, labels).shape == (2, 1, 13, 10)
    for phase in case.family.phases():
        assert losses_of(case, phase)["loss"].isfinite()

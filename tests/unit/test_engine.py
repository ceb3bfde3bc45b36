"""The engine: sample i has the same pixels whatever range is asked for, and no machine that would differ may answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker import families
from genworker.bulk.plan import Plan
from genworker.bulk.request import GenerateSpec
from genworker.bulk.trials import calibrated
from genworker.bundle import Bundle, Lineage
from genworker.device import device_class, has_fast_bfloat16, threads
from genworker.errors import BundleError, OtherMachineError
from genworker.sampling.columns import StoredColumns
from genworker.sampling.engine import Engine
from genworker.sampling.grid import useful_share, wasteful_size
from genworker.sampling.latents import labels
from genworker.sampling.numerics import check_numerics, resolve_numerics
from genworker.sampling.pixels import quantise
from genworker.schema import SampleBatch
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILIES = sorted(families.FAMILIES)
CPU = torch.device("cpu")
MICRO_BATCH = 8
NUM_SAMPLES = 60


def plan_for(bundle: Bundle, *, dtype: str = "float32", **changes: Any) -> Plan:
    """A plan for this machine with small micro-batches."""
    numerics = resolve_numerics(CPU, models.SMALL, {"codec": "c", "format": "f"}).model_copy(
        update={"micro_batch": MICRO_BATCH, "dtype": dtype}
    )
    values: dict[str, Any] = {
        "bundle_digest": bundle.digest,
        "image_schema": bundle.info.image_schema,
        "seed": 3,
        "num_samples": NUM_SAMPLES,
        "samples_per_shard": 10,
        "format": "parquet",
        "codec": "png",
        "numerics": numerics,
    }
    return Plan(**(values | changes))


def shaped(num_samples: int, samples_per_shard: int, micro_batch: int) -> Plan:
    """A plan of which only the numbers matter."""
    plan = fake.make_plan(num_samples=num_samples, samples_per_shard=samples_per_shard)
    return plan.model_copy(update={"numerics": plan.numerics.model_copy(update={"micro_batch": micro_batch})})


def joined(batches: Iterator[SampleBatch]) -> SampleBatch:
    """Batches as one."""
    parts = list(batches)
    classes = [part.labels for part in parts if part.labels is not None]
    return SampleBatch(
        np.concatenate([part.sample_index for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate(classes) if classes else None,
    )


@pytest.fixture(scope="module", params=[(name, dtype) for name in FAMILIES for dtype in ("float32", "bfloat16")])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine of each family in each type."""
    name, dtype = request.param
    if dtype == "bfloat16" and not has_fast_bfloat16(CPU):
        pytest.skip("this CPU has no bfloat16 instructions, so no plan of its kind asks for them")
    bundle = models.bundle_of(name)
    return Engine(bundle, plan_for(bundle, dtype=dtype), CPU)


@pytest.fixture(scope="module")
def whole(engine: Engine) -> SampleBatch:
    """All samples of the engine's plan."""
    return joined(engine.batches(0, NUM_SAMPLES))


def test_samples_come_in_order_with_their_labels(engine: Engine, whole: SampleBatch) -> None:
    """Indices run from 0 to N - 1, pixels have the schema's shape and vary, labels are those of the plan."""
    assert whole.sample_index.tolist() == list(range(NUM_SAMPLES))
    assert whole.pixels.shape == (NUM_SAMPLES, *models.SMALL.pixel_shape)
    assert whole.pixels.dtype == np.uint8
    assert len({image.tobytes() for image in whole.pixels}) == NUM_SAMPLES
    assert whole.labels is not None
    np.testing.assert_array_equal(whole.labels, labels(3, 0, NUM_SAMPLES, 3, "balanced"))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pixels_do_not_depend_on_the_range(engine: Engine, whole: SampleBatch, data: st.DataObject) -> None:
    """Any range gives the bits of the whole, wherever it begins and ends."""
    first = data.draw(st.integers(0, NUM_SAMPLES - 1))
    count = data.draw(st.integers(1, NUM_SAMPLES - first))
    part = joined(engine.batches(first, count))
    assert part.sample_index.tolist() == list(range(first, first + count))
    np.testing.assert_array_equal(part.pixels, whole.pixels[first : first + count])
    assert part.labels is not None
    assert whole.labels is not None
    np.testing.assert_array_equal(part.labels, whole.labels[first : first + count])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_plan_says_how_many_threads_compute(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generator and scorer compute with the plan's threads, whatever the process has, which gets its own back."""
    seen: list[int] = []
    bundle = models.bundle_of()
    plan = plan_for(bundle, columns=("label", "score"), scorer_sha256=bundle.info.scorer and bundle.info.scorer.sha256)
    plan = plan.model_copy(update={"numerics": plan.numerics.model_copy(update={"threads": num_threads})})
    monkeypatch.setattr(torch.nn.Linear, "forward", counting(torch.nn.Linear.forward, seen))
    columns, before = StoredColumns(bundle, plan, CPU), torch.get_num_threads()
    for own in (2, 4):
        with threads(own):
            for batch in Engine(bundle, plan, CPU).batches(0, 5):
                columns.complete(batch)
            assert torch.get_num_threads() == own
    assert set(seen) == {num_threads}
    assert len(seen) >= 4
    assert torch.get_num_threads() == before


def counting(forward: Callable[..., torch.Tensor], seen: list[int]) -> Callable[..., torch.Tensor]:
    """A layer's forward that notes with how many threads it is called."""

    def called(*args: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(*args)

    return called


def test_pixels_do_not_depend_on_how_far_the_device_is_ahead(
    engine: Engine, whole: SampleBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches that were started before others were finished come in order, and all of them."""
    monkeypatch.setattr(engine._evaluator, "ahead", 2)
    part = joined(engine.batches(3, NUM_SAMPLES - 5))
    assert part.sample_index.tolist() == list(range(3, NUM_SAMPLES - 2))
    np.testing.assert_array_equal(part.pixels, whole.pixels[3:-2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes", [{"memory_format": "contiguous"}, {"upsampling": "subpixel"}, {"micro_batch": 32}], ids=str
)
def test_other_numerics_are_another_rounding_of_the_same_images(family: str, changes: dict[str, Any]) -> None:
    """What calibration may choose differs from what it began with by a step of eight bits at most, and in few pixels."""
    patched = {"widths": [8, 4], "patch": 2}
    bundle = models.bundle_of(family, **{"generator" if family == "r3gan" else "decoder": patched})
    plan = plan_for(bundle)
    other = plan.model_copy(update={"numerics": plan.numerics.model_copy(update=changes)})
    first, second = (joined(Engine(bundle, p, CPU).batches(0, 16)).pixels.astype(int) for p in (plan, other))
    assert np.abs(first - second).max() <= 1
    assert (first != second).mean() < 0.01


def test_batches_are_at_most_a_micro_batch_and_never_empty(engine: Engine) -> None:
    """A range is yielded piece by piece, cut where the plan's grid cuts."""
    sizes = [len(batch) for batch in engine.batches(5, 20)]
    assert sizes == [3, 8, 8, 1]


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1, 500), samples_per_shard=st.integers(1, 200), micro_batch=st.integers(1, 96))
def test_the_useful_share_is_what_the_engine_keeps(num_samples: int, samples_per_shard: int, micro_batch: int) -> None:
    """The share of stored samples among those of all micro-batches that the shards begin, counted one by one."""
    plan = shaped(num_samples, samples_per_shard, micro_batch)
    begun = 0
    for task in plan.tasks():
        stop = task.first_index + task.num_samples
        begun += len(range(task.first_index // micro_batch * micro_batch, stop, micro_batch))
    assert useful_share(plan) == pytest.approx(num_samples / (begun * micro_batch))


def test_small_shards_make_large_micro_batches_useless() -> None:
    """Shards of an eighth of a micro-batch evaluate eight times what they store."""
    assert useful_share(shaped(2**20, 256, 2048)) == 1 / 8
    assert useful_share(shaped(2**20, 2048, 2048)) == 1.0
    assert useful_share(shaped(10**12, 1000, 128)) == pytest.approx(1000 / (1000 + 128 - 8))


@pytest.mark.parametrize(
    ("num_samples", "samples_per_shard", "expected"),
    [
        (10**6, 200, "samples_per_shard 200: .* micro-batches of 128, .* 1.6 times .* such as 256,"),
        (10**6, 12, "samples_per_shard 12: .* 11.3 times .* such as 128,"),
        (10**6, 1408 + 64, "^$"),  # a twentieth more
        (10**6, 1024, "^$"),
        (40, 40, "^$"),  # one shard; no other size evaluates less
    ],
)
def test_a_size_that_wastes_work_is_named(num_samples: int, samples_per_shard: int, expected: str) -> None:
    """Over a tenth more work than there has to be is told in one line, with a size that costs none."""
    plan = shaped(num_samples, samples_per_shard, 128)
    line = wasteful_size(plan)
    assert re.search(expected, line)
    assert "\n" not in line
    if line:
        assert useful_share(shaped(num_samples, int(line.rpartition("such as ")[2].split(",")[0]), 128)) > 0.99


def test_another_engine_makes_the_same_pixels() -> None:
    """Two engines of one bundle and plan are the same function; another seed is another one."""
    bundle = models.bundle_of()
    one, again, other = (Engine(bundle, plan_for(bundle, seed=seed), CPU) for seed in (3, 3, 4))
    first = joined(one.batches(0, 16)).pixels
    np.testing.assert_array_equal(first, joined(again.batches(0, 16)).pixels)
    assert (first != joined(other.batches(0, 16)).pixels).any()


def test_samples_far_out_are_samples() -> None:
    """An index beyond any dataset is computed like the first one."""
    bundle = models.bundle_of()
    engine = Engine(bundle, plan_for(bundle, num_samples=2**50), CPU)
    batch = joined(engine.batches(2**49 + 5, 3))
    assert batch.sample_index.tolist() == [2**49 + 5, 2**49 + 6, 2**49 + 7]


@pytest.mark.parametrize("rule", ["2", "uniform"])
def test_label_rules_reach_the_generator(rule: str) -> None:
    """Other labels are another part of the plan and give other pixels for the same latents."""
    bundle = models.bundle_of()
    balanced = joined(Engine(bundle, plan_for(bundle), CPU).batches(0, 16))
    ruled = joined(Engine(bundle, plan_for(bundle, labels=rule), CPU).batches(0, 16))
    assert balanced.labels is not None
    assert ruled.labels is not None
    if rule == "2":
        assert set(ruled.labels.tolist()) == {2}
    same = balanced.labels == ruled.labels
    assert same.any()
    assert not same.all()
    for row in range(16):
        assert (balanced.pixels[row] == ruled.pixels[row]).all() == same[row]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", ["unlabelled", "ignoring"])
def test_unconditional_models_give_no_labels(name: str, how: str) -> None:
    """A model that was trained without labels, or ignores them, gives unlabelled samples."""
    unlabelled = models.SMALL.model_copy(update={"num_classes": 0, "class_names": ()})
    bundle = models.bundle_of(name, unlabelled) if how == "unlabelled" else models.bundle_of(name, conditional=False)
    plan = plan_for(bundle, image_schema=unlabelled)
    assert joined(Engine(bundle, plan, CPU).batches(0, 5)).labels is None


def test_quantising_rounds_to_the_nearest_and_clamps() -> None:
    """-1 is 0, 1 is 255, what lies between goes to the nearest step, and what lies outside to the end."""
    images = torch.tensor([-5.0, -1.001, -1.0, -0.997, -0.995, 0.0, 0.001, 0.996, 0.997, 1.0, 1.5, 300.0])
    pixels = quantise(images.reshape(1, 1, 1, -1)).reshape(-1).tolist()
    assert pixels == [0, 0, 0, 0, 1, 128, 128, 254, 255, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_quantising_undoes_the_loader(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Pixels that become images, as the loader makes them, come back as they were, channels last, in any layout."""
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1))
    back = quantise(images.to(dtype).contiguous(memory_format=layout))
    assert (back.dtype, back.shape) == (np.uint8, (2, 8, 8, 2))
    assert back.flags.c_contiguous
    if dtype == torch.float32:
        np.testing.assert_array_equal(back, pixels)
    assert np.abs(back.astype(int) - pixels.astype(int)).max() <= 1


def overflowing() -> Bundle:
    """A bundle of finite weights, so large that images are not."""
    bundle = models.bundle_of()
    networks = bundle.networks()
    for parameter in networks.parameters():
        parameter.mul_(1e30)
    return Bundle.pack(bundle.info.family, bundle.info.image_schema, networks, Lineage())


def test_images_that_are_not_finite_are_refused() -> None:
    """They would be black, or white, without a word; nothing is yielded of them."""
    bundle = overflowing()
    batches = Engine(bundle, plan_for(bundle), CPU).batches(0, 4)
    with pytest.raises(
        BundleError, match=r"8 of the first 8 images .* in torch\.float32 are not finite; take the bundle"
    ):
        next(batches)


@pytest.mark.parametrize("calibrate", [True, False])
def test_images_that_are_not_finite_make_no_plan(calibrate: bool) -> None:
    """A new job is told before its plan is stored, also where no speeds are compared."""
    spec = GenerateSpec(bundle="-", out="-", num_samples=100, precision="float32", micro_batch=4, calibrate=calibrate)
    with pytest.raises(BundleError, match="are not finite"):
        calibrated(spec, overflowing(), CPU, 1)


def test_another_bundle_is_refused() -> None:
    """A plan is carried out with its own bundle only."""
    bundle, other = models.bundle_of(), models.bundle_of(seed=1)
    with pytest.raises(BundleError, match=f"{bundle.digest[:16]}, this is {other.digest[:16]}"):
        Engine(other, plan_for(bundle), CPU)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "device_class",
            "cuda/NVIDIA H100 80GB HBM3",
            "the plan was made for cuda/NVIDIA H100 80GB HBM3, this process",
        ),
        ("device_class", "cpu/SSE2", "computes on cpu/"),
        ("libraries", {"torch": "1.0.0"}, f"made with torch 1.0.0, this process has {torch.__version__}"),
        ("libraries", {}, "made with torch None"),
        (
            "libraries",
            {"torch": torch.__version__},
            f"made with networks None, this process has {families.NETWORKS_VERSION}",
        ),
    ],
)
def test_another_kind_of_machine_is_refused(field: str, value: object, message: str) -> None:
    """Where bits could differ nothing is computed, and the message says which two differ and what to do."""
    bundle = models.bundle_of()
    plan = plan_for(bundle)
    plan = plan.model_copy(update={"numerics": plan.numerics.model_copy(update={field: value})})
    with pytest.raises(OtherMachineError) as caught:
        Engine(bundle, plan, CPU)
    assert message in str(caught.value)
    assert "write to another URL" in str(caught.value)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [(False, False, "cpu/AVX512"), (True, False, "cpu/AVX512+BF16"), (True, True, "cpu/AVX512+BF16+AMX")],
)
def test_units_that_compute_other_bits_are_other_kinds_of_machine(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, expected: str
) -> None:
    """Bfloat16 in vectors and in tiles goes through other kernels, so no dataset is made by both."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert device_class(CPU) == expected
    assert has_fast_bfloat16(CPU) == (avx512_bf16 or amx)


@pytest.mark.parametrize("force", [True, False])
def test_numerics_of_this_machine_are_taken_here(force: bool) -> None:
    """What this machine would choose for a new plan it can also carry out; float32 can be asked for."""
    numerics = resolve_numerics(CPU, models.SMALL, {"codec": "c"}, force_float32=force)
    check_numerics(numerics, CPU)
    assert numerics.device_class == device_class(CPU)
    assert numerics.libraries == {"torch": torch.__version__, "networks": families.NETWORKS_VERSION, "codec": "c"}
    assert (numerics.dtype == "bfloat16") == (has_fast_bfloat16(CPU) and not force)


@pytest.mark.parametrize("side", [1, 28, 128, 1024, 8192])
def test_micro_batches_shrink_with_the_image(side: int) -> None:
    """A micro-batch holds at least one image, at most 128, and a bounded number of pixels."""
    schema = models.SMALL.model_copy(update={"height": side, "width": side})
    micro_batch = resolve_numerics(CPU, schema, {}).micro_batch
    assert 1 <= micro_batch <= 128
    assert micro_batch == 1 or micro_batch * side * side <= 2**21

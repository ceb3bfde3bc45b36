"""Calibration: it finds what is fastest, takes no noise for speed, keeps to its time, and leaves alone what the user fixed."""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from genworker import codecs, formats
from genworker.bulk import commit, trials
from genworker.bulk.request import (
    GenerateSpec,
    check_same,
    default_samples_per_shard,
    make_plan,
    numerics_for,
    sample_schema,
)
from genworker.bulk.summary import forecast, sentence
from genworker.bulk.trials import calibrated
from genworker.bundle import Bundle, Lineage
from genworker.cli.look import describe
from genworker.device import pick_device
from genworker.errors import BundleError, PlanError, UsageError
from genworker.sampling import evaluators
from genworker.sampling.calibration import Calibration, Measurement, Trial, calibrate, clock_of, steps_for
from genworker.sampling.numerics import check_numerics, resolve_numerics
from genworker.sampling.subpixel import with_subpixel_layers
from genworker.schema import ImageSchema, Pixels
from genworker.stores import open_store
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from genworker.bulk.plan import Numerics

CPU = torch.device("cpu")
START = resolve_numerics(CPU, models.SMALL, {}, force_float32=True)
IMAGES: Pixels = np.random.default_rng(0).integers(60, 180, (8, 7, 6, 3)).astype(np.uint8)
STEPS: list[list[dict[str, Any]]] = [
    [{"memory_format": "contiguous"}],
    [{"micro_batch": 32}, {"micro_batch": 64}, {"micro_batch": 256}],
]


def request(**changes: Any) -> GenerateSpec:
    values: dict[str, Any] = {"bundle": "-", "out": "-", "num_samples": 10**9}
    return GenerateSpec(**(values | changes))


def right(samples_per_second: float) -> Measurement:
    """A measurement of whoever makes the images that all make."""
    return Measurement(samples_per_second, IMAGES)


def test_the_best_of_each_step_is_kept() -> None:
    """Later steps build on what earlier ones found, and every trial is told."""

    def speed(numerics: Numerics) -> Measurement:
        rate = {32: 100, 64: 150, 128: 110, 256: 90}[numerics.micro_batch]
        return right(rate * (1.5 if numerics.memory_format == "contiguous" else 1))

    found = calibrate(START, STEPS, speed)
    assert (found.numerics.memory_format, found.numerics.micro_batch) == ("contiguous", 64)
    assert [trial.samples_per_second for trial in found.trials] == [110, 165, 150, 225, 135]
    assert found.samples_per_second == 225
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_noise_is_not_taken_for_speed() -> None:
    """A gain of two percent changes nothing: equal machines should choose alike."""
    found = calibrate(START, STEPS, lambda numerics: right(102.0 if numerics != START else 100.0))
    assert found.numerics == START


@pytest.mark.parametrize("error", [RuntimeError, BundleError, PlanError])
def test_what_cannot_be_carried_out_is_left_out_and_told(error: type[Exception]) -> None:
    """A way that fails is excluded with its reason; the others are tried."""

    def speed(numerics: Numerics) -> Measurement:
        if numerics.micro_batch == 256:
            raise error("out of memory\nwith details")
        return right(1e6 / numerics.micro_batch)

    found = calibrate(START, STEPS, speed)
    assert found.numerics.micro_batch == 32
    assert [trial.failed for trial in found.trials if trial.failed] == ["out of memory"]
    with pytest.raises(error):  # what it begins with has to work
        calibrate(START.model_copy(update={"micro_batch": 256}), STEPS, speed)


@pytest.mark.parametrize(
    ("pixels", "failed"),
    [
        (IMAGES + 1, ""),
        (IMAGES[:3], ""),  # a smaller micro-batch
        (np.where(np.arange(IMAGES.size).reshape(IMAGES.shape) == 5, IMAGES + 60, IMAGES), ""),
        (IMAGES + 2, "other images: 2.0 of 255 steps from the first trial's on average and 2 at worst"),
        (IMAGES[::-1], "other images: "),
        (np.where(np.arange(IMAGES.size).reshape(IMAGES.shape) == 5, IMAGES + 70, IMAGES), "and 70 at worst"),
    ],
)
def test_fast_and_wrong_is_wrong(pixels: Pixels, failed: str) -> None:
    """Images may be rounded otherwise than those of the start, but have to be the same images; speed does not excuse."""

    def speed(numerics: Numerics) -> Measurement:
        return right(100.0) if numerics.memory_format == "channels_last" else Measurement(1000.0, pixels)

    found = calibrate(START, STEPS[:1], speed)
    assert found.numerics.memory_format == ("channels_last" if failed else "contiguous")
    assert failed in found.trials[1].failed
    assert bool(found.trials[1].failed) == bool(failed)


def test_an_engine_that_is_wrong_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewritten layer that computes something else is found on the real engine, and told."""

    def wrong(module: nn.Module) -> nn.Module:
        for parameter in with_subpixel_layers(module).parameters():
            parameter.neg_()
        return module

    monkeypatch.setattr(evaluators, "with_subpixel_layers", wrong)
    monkeypatch.setattr(trials, "steps_for", lambda *_what, **_fixed: [[{"upsampling": "subpixel"}]])
    bundle = models.bundle_of(generator={"widths": [8, 4], "patch": 2})
    found = calibrated(request(precision="float32", micro_batch=16), bundle, CPU, 1)
    assert [trial.failed[:12] for trial in found.trials] == ["", "other images"]
    assert found.numerics.upsampling == "transposed"


def test_it_keeps_to_its_time() -> None:
    """No trial begins that would end after the budget; what was found until then counts."""
    now = [0.0]

    def speed(numerics: Numerics) -> Measurement:
        now[0] += 2.0
        return right(float(numerics.micro_batch))

    found = calibrate(START, STEPS, speed, budget_seconds=5.0, clock=lambda: now[0])
    assert len(found.trials) == 2
    assert found.seconds == 4.0


def test_larger_micro_batches_are_reckoned_with_what_they_take() -> None:
    """On a GPU a micro-batch 64 times as large makes a trial of many seconds; what does not fit is left, what does is tried."""
    now, start = [0.0], START.model_copy(update={"device_class": "cuda/any"})

    def speed(numerics: Numerics) -> Measurement:
        now[0] += 0.4 + 2 * 8 * numerics.micro_batch / 5_000.0
        return right(5_000.0)

    steps = [[{"micro_batch": start.micro_batch * factor} for factor in (64, 4)], [{"upsampling": "subpixel"}]]
    found = calibrate(start, steps, speed, budget_seconds=5.0, clock=lambda: now[0])
    tried = [(trial.micro_batch // start.micro_batch, trial.upsampling) for trial in found.trials]
    assert tried == [(1, "transposed"), (4, "transposed"), (1, "subpixel")]
    assert found.seconds <= 5.0


@pytest.mark.parametrize("force_float32", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_what_the_user_fixed_is_not_tried(force_float32: bool, fixed: bool) -> None:
    """A forced micro-batch or type stays; a GPU's ways are not tried on a CPU; layers are rewritten where there are any."""
    layer = nn.ConvTranspose2d(4, 3, 4, 2, 1)
    steps = steps_for(CPU, nn.Sequential(layer), START, force_float32=force_float32, fixed_micro_batch=fixed)
    keys = {key for step in steps for change in step for key in change}
    assert ("micro_batch" in keys) != fixed
    assert "launch" not in keys
    assert "upsampling" in keys
    assert not (force_float32 and "dtype" in keys)
    without = steps_for(CPU, nn.Identity(), START, force_float32=True, fixed_micro_batch=fixed)
    assert "upsampling" not in {key for step in without for change in step for key in change}


def test_a_short_job_is_not_calibrated() -> None:
    """Where measuring could not pay, or is not wanted, the numerics are those that are usually best."""
    bundle = models.bundle_of()
    for spec in (request(num_samples=100), request(calibrate=False)):
        found = calibrated(spec, bundle, CPU, 1)
        assert found.trials == ()
        assert found.samples_per_second > 0
        assert found.encode_seconds > 0
        assert found.numerics == numerics_for(spec, sample_schema(bundle.info), CPU)
    # As many actors as would make a long job short.
    assert calibrated(request(), bundle, CPU, 10**9).trials == ()


def test_a_long_job_is_calibrated_on_the_real_engine() -> None:
    """Real engines are measured; what comes out can be carried out here, and float32 stays when it was asked for."""
    bundle = models.bundle_of(generator={"widths": [8, 4], "patch": 2})
    spec = request(precision="float32", micro_batch=16)
    found = calibrated(spec, bundle, CPU, 1)
    assert {trial.upsampling for trial in found.trials} == {"transposed", "subpixel"}
    assert {trial.memory_format for trial in found.trials} == {"channels_last"}
    assert all(trial.samples_per_second > 0 for trial in found.trials)
    assert {trial.micro_batch for trial in found.trials} == {16}
    check_numerics(found.numerics, CPU)
    assert found.samples_per_second in {trial.samples_per_second for trial in found.trials}
    assert found.encode_seconds > 0
    assert found.numerics.dtype == "float32"


def test_actors_with_several_processors_try_one_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processors of an actor compute unless one alone is faster, which is measured first; the plan has what was chosen."""
    spec = request(precision="float32", micro_batch=16, cpus_per_actor=2)
    bundle = models.bundle_of()
    assert numerics_for(spec, models.SMALL, CPU).threads == 2
    # By what passes outside a busy machine may use up the time before the second trial.
    monkeypatch.setattr(trials, "calibrate", partial(calibrate, budget_seconds=1e9))
    found = calibrated(spec, bundle, CPU, 1)
    assert [trial.threads for trial in found.trials[:2]] == [2, 1]
    assert {trial.threads for trial in found.trials[2:]} == {found.numerics.threads}
    assert found.trials[0].describe() == "float32, channels_last, transposed, eager, 16, 2 threads"
    assert make_plan(spec, bundle.info, found.numerics).numerics.threads == found.numerics.threads
    # Beside a GPU, processors encode.
    assert resolve_numerics(torch.device("meta"), models.SMALL, {}, force_float32=True, num_cpus=8).threads == 1


def test_several_threads_are_compared_by_what_passes_outside() -> None:
    """A thread's own time leaves out what others take of the machine, but counts two threads twice."""
    assert clock_of(START) is time.process_time
    assert clock_of(START.model_copy(update={"threads": 2})) is time.perf_counter


def test_a_speed_is_that_of_samples_that_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two micro-batches that are equally fast, the one that shards of the user's size fill is worth more."""
    monkeypatch.setattr(trials, "measured", lambda *_args, **_how_long: right(1000.0))
    spec = request(samples_per_shard=64, num_samples=10**9)
    found = calibrated(spec, models.bundle_of(), CPU, 1)
    speeds = {trial.micro_batch: trial.samples_per_second for trial in found.trials}
    assert speeds == {128: 500.0, 32: 1000.0, 64: 1000.0, 256: 250.0}
    assert found.numerics.micro_batch == 32


def test_a_micro_batch_that_differs_from_the_plans_is_refused() -> None:
    """Who asks for a micro-batch gets it, or is told that the plan has another."""
    bundle = models.bundle_of()
    plan = make_plan(request(micro_batch=16), bundle.info, numerics_for(request(micro_batch=16), models.SMALL, CPU))
    assert plan.numerics.micro_batch == 16
    assert check_same(request(), bundle.info, plan) == plan
    with pytest.raises(PlanError, match=r"numerics\.micro_batch: 32 here, 16 there"):
        check_same(request(micro_batch=32), bundle.info, plan)


@pytest.mark.parametrize(
    ("use_gpu", "seconds", "cost"),
    [
        (False, 8.0, 0.071111),  # a millisecond to generate and 8 ms / 2 to encode, one after the other
        (True, 6.4, 0.014222),  # 4 ms, while the next is generated; of half a GPU
    ],
)
def test_a_job_is_priced_before_its_first_shard(use_gpu: bool, seconds: float, cost: float) -> None:
    """From the speed that a calibration measured; what people read says that it is no more than that."""
    spec = request(num_samples=6_400, use_gpu=use_gpu, gpus_per_actor=0.5, cpus_per_actor=2, price_per_hour=4.0)
    measured = Calibration(numerics=START, seconds=0.0, trials=(), samples_per_second=1000, encode_seconds=8e-3)
    told = forecast(spec, measured, 4)
    assert told == {"after_shards": 0, "seconds": seconds, "samples_per_second": 6_400 / seconds, "cost": cost}
    assert sentence(told, 6_400) == (
        "estimate before the first shard, of generating and encoding alone: 6,400 samples in at least "
        f"{seconds:.0f} s, which cost at least {cost:.4f}"
    )
    later = told | {"after_shards": 6, "cost": 1234.5}
    assert sentence(later, 6_400) == f"estimate: 6,400 samples in about {seconds:.0f} s, which cost about 1,234.50"


def test_info_tells_what_was_measured() -> None:
    """`genworker info` names every way that was tried, with its speed or why it failed."""
    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, fake.make_plan())
    trial = {"dtype": "float32", "memory_format": "contiguous", "upsampling": "subpixel", "launch": "eager"}
    trials = (
        Trial(**trial, micro_batch=64, samples_per_second=1234.5),
        Trial(**trial, micro_batch=256, failed="no memory"),
    )
    commit.keep_calibration(open_store(url), Calibration(numerics=START, seconds=1.0, trials=trials))
    assert describe(url)["calibration"] == {
        "float32, contiguous, subpixel, eager, 64": "1,234 samples/s",
        "float32, contiguous, subpixel, eager, 256": "no memory",
    }


def test_the_score_is_part_of_what_is_measured() -> None:
    """Where scores are asked for, trials make them too: the discriminator takes time and memory of the same device."""
    sound = models.bundle_of()
    _, judges = sound.scorer()
    for parameter in judges.parameters():
        parameter.detach().fill_(float("nan"))
    bundle = Bundle.pack(sound.info.family, sound.info.image_schema, sound.networks(), Lineage(), judges)
    assert calibrated(request(calibrate=False), bundle, CPU, 1).samples_per_second > 0
    with pytest.raises(BundleError, match=r"scorer\.safetensors: .* are NaN"):
        calibrated(request(calibrate=False, columns=("label", "score")), bundle, CPU, 1)


def test_a_micro_batch_that_no_memory_holds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU says of its memory becomes one message with what to change."""

    def full(*_args: object, **_how_long: object) -> Measurement:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trials, "measured", full)
    with pytest.raises(UsageError, match=r"micro_batch 16: .* gpus_per_actor 0\.5, .*smaller --micro-batch"):
        calibrated(request(micro_batch=16, use_gpu=True, gpus_per_actor=0.5), models.bundle_of(), CPU, 1)


def test_so_is_one_that_a_cpu_has_no_memory_for() -> None:
    """There torch has no exception of its own for it; a request of terabytes is refused by the allocator at once."""
    bundle = models.bundle_of(schema=ImageSchema(channels=3, height=256, width=256), generator={"widths": [32]})
    with pytest.raises(UsageError, match=r"^micro_batch 65536: memory does not hold so many samples at a time"):
        calibrated(request(micro_batch=65_536, precision="float32"), bundle, CPU, 1)


def test_other_bugs_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_how_long: object) -> Measurement:
        raise RuntimeError("cuDNN error")

    monkeypatch.setattr(trials, "measured", broken)
    with pytest.raises(RuntimeError, match="cuDNN error"):
        calibrated(request(), models.bundle_of(), CPU, 1)


def test_shards_smaller_than_a_micro_batch_are_one_of_the_sizes() -> None:
    """Else most of each evaluation would be thrown away, whatever is chosen."""
    for shard, last in ((1, 1), (100, 100), (128, 256), (None, 256)):
        sizes = steps_for(CPU, nn.Identity(), START, force_float32=True, fixed_micro_batch=False, shard=shard)[-2]
        assert sizes[-1] == {"micro_batch": last}
    assert steps_for(CPU, nn.Identity(), START, force_float32=True, fixed_micro_batch=True, shard=1)[-2] == []


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_process_takes_its_share_of_a_gpu(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a whole one torch is told the part, before anything is put there."""
    told: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: told.append((part, device)))
    device = pick_device(use_gpu=True, share=share)
    assert device == torch.device("cuda", 0)
    # A tenth of it is left for what the process has there outside torch's allocator.
    assert told == ([(0.9 * share, device)] if share < 1 else [])


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("codec", codecs.names())
def test_shards_of_tiny_images_stay_within_their_format(name: str, codec: str) -> None:
    """By default no more go into a shard than surely fit, beside names, headers and latents."""
    tiny = ImageSchema(channels=1, height=8, width=8, num_classes=1, class_names=("one",))
    bundle = models.bundle_of(schema=tiny)
    spec = request(num_samples=10**12, format=name, codec=codec, columns=("label", "latents"))
    numerics = numerics_for(spec, tiny, CPU)
    plan = make_plan(spec, bundle.info, numerics)
    assert plan.samples_per_shard % numerics.micro_batch == 0
    assert plan.samples_per_shard > 200_000
    assert plan.samples_per_shard <= default_samples_per_shard(10**12, tiny, numerics.micro_batch) == 2**20

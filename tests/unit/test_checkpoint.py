"""Checkpoints hold the whole state of a run: a run that was stopped anywhere ends as if it had never been."""

from __future__ import annotations

import copy
import itertools
import json
import math
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from genworker import bundle as bundles
from genworker import families
from genworker.errors import CheckpointError, TrainingError
from genworker.schema import SampleBatch
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import checkpoint, loop, record, step
from genworker.training.hooks import Hooks, TrainResult
from genworker.training.loader import Loader
from genworker.training.record import BUNDLE_PREFIX, METRICS_KEY, read_metrics
from genworker.training.spec import TrainSpec
from genworker.training.state import Conditions, Counters, TrainingState
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.schema import Int64Array
    from genworker.sources.base import Source
    from genworker.stores import Store

FAMILIES = sorted(families.FAMILIES)
CPU = torch.device("cpu")
SPEC = models.train_spec()


@pytest.fixture
def store() -> Store:
    """A store that nobody else uses."""
    return new_store()


def new_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def tiny_state(seed: int = 0, images_seen: int = 0, steps: int = 2) -> TrainingState:
    """A state of two layers and two optimizers after a few steps."""
    torch.manual_seed(seed)
    networks = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 1, bias=False)})
    optimizers = {
        name: torch.optim.Adam(networks[name].parameters(), lr=0.1, betas=(0.0, 0.9), fused=True) for name in networks
    }
    for _ in range(steps):
        networks["two"](networks["one"](torch.randn(3, 2))).square().sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()
    average = nn.ModuleDict({"one": copy.deepcopy(networks["one"])})
    counters = Counters(images_seen=images_seen, nonfinite_steps=seed)
    return TrainingState(networks, average, optimizers, counters, Conditions("0" * 64, 48, "float32"))


def keep(store: Store, state: TrainingState, spec: TrainSpec = SPEC, **facts: Any) -> str:
    """Save a state as a checkpoint of ``spec``; returns its key."""
    return checkpoint.save(store, checkpoint.take(state, spec, **facts))


def same(left: TrainingState, right: TrainingState) -> bool:
    """Whether two states are equal, bit for bit."""
    ours, theirs = left.tensors(), right.tensors()
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and left.counters == right.counters
    )


def test_a_loaded_checkpoint_is_the_saved_state(store: Store) -> None:
    """Networks, average, moments, step counts and counters come back exactly."""
    saved = tiny_state(seed=3, images_seen=640)
    key = keep(store, saved)
    assert key == "checkpoints/images-000000000640.safetensors"
    state, skipped = tiny_state(seed=4), list[str]()
    assert not same(state, saved)
    assert checkpoint.load_latest(store, state, SPEC, skipped)
    assert same(state, saved)
    assert skipped == []
    assert any(name.startswith("optimizers.one.0.exp_avg_sq") for name in state.tensors())


def test_a_state_before_the_first_step_is_saved_too(store: Store) -> None:
    """Optimizers without moments come back without moments."""
    keep(store, tiny_state(seed=3, steps=0))
    state = tiny_state(seed=4, steps=2)
    assert checkpoint.load_latest(store, state, SPEC, [])
    assert same(state, tiny_state(seed=3, steps=0))


def test_without_checkpoints_the_state_is_left_alone(store: Store) -> None:
    """An empty store, and foreign objects below the prefix, are no checkpoint."""
    store.put("checkpoints/notes.txt", b"x")
    state = tiny_state(seed=1)
    assert not checkpoint.load_latest(store, state, SPEC, [])
    assert same(state, tiny_state(seed=1))


def test_the_newest_checkpoint_is_loaded(store: Store) -> None:
    """Of several checkpoints the one with the most images seen counts, whenever it was written."""
    for images_seen in (900, 1_000_000, 50_000):
        keep(store, tiny_state(seed=1, images_seen=images_seen))
    state = tiny_state()
    checkpoint.load_latest(store, state, SPEC, [])
    assert state.counters.images_seen == 1_000_000


def test_prune_keeps_the_newest(store: Store) -> None:
    """All but the newest are deleted, and nothing that is no checkpoint."""
    store.put("checkpoints/notes.txt", b"x")
    for images_seen in (5, 10, 100, 1000):
        keep(store, tiny_state(images_seen=images_seen))
    checkpoint.prune(store, 2)
    assert [key[-16:-12] for key in checkpoint.keys(store)] == ["1000", "0100"]
    assert store.get("checkpoints/notes.txt") == b"x"
    checkpoint.prune(store, 5)
    assert len(checkpoint.keys(store)) == 2


def damaged_pair(damage: Callable[[bytes], bytes]) -> tuple[Store, str]:
    """A store with a whole checkpoint of 10 images and a damaged one of 20; and the damaged one's key."""
    store = new_store()
    keep(store, tiny_state(seed=1, images_seen=10))
    key = keep(store, tiny_state(seed=2, images_seen=20))
    store.put(key, damage(store.get(key)), overwrite=True)
    return store, key


def assert_passed_over(store: Store, key: str) -> None:
    """The damaged checkpoint is named and the one before it is loaded, whole."""
    state, skipped = tiny_state(seed=5), list[str]()
    assert checkpoint.load_latest(store, state, SPEC, skipped)
    assert same(state, tiny_state(seed=1, images_seen=10))
    (line,) = skipped
    assert line.startswith(f"{key}: ")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_torn_checkpoints_are_passed_over(data: st.DataObject) -> None:
    """A checkpoint that lost its end, at whatever byte, is named and the one before it is used."""
    assert_passed_over(*damaged_pair(lambda whole: whole[: data.draw(st.integers(0, len(whole) - 1))]))


def flipped(whole: bytes, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bit_flips_are_passed_over(data: st.DataObject) -> None:
    """A checkpoint with one flipped bit, wherever it is, is named and the one before it is used."""
    assert_passed_over(*damaged_pair(lambda whole: flipped(whole, data.draw(st.integers(0, 8 * len(whole) - 1)))))


def test_no_bit_of_the_header_can_flip_unseen() -> None:
    """Counters and spec are under the checksum too: no flip among them loads, or fails in another way."""
    store, key = damaged_pair(bytes)
    whole = store.get(key)
    begin = whole.index(b"__metadata__") - 2
    end = whole.index(b"sha256", begin) + 80
    for bit in range(8 * begin, 8 * end, 61):
        store.put(key, flipped(whole, bit), overwrite=True)
        assert_passed_over(store, key)


def test_equal_states_give_equal_bytes() -> None:
    """A checkpoint is a function of the state and the spec, so that two can be compared."""
    stores = [new_store() for _ in range(4)]
    for one in stores:
        keep(one, tiny_state(seed=1))
    assert len({final_state(one) for one in stores}) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not a checkpoint" * 100, b"\xff" * 20])
def test_other_files_are_passed_over(content: bytes) -> None:
    """Whatever else lies under a checkpoint's name is passed over."""
    assert_passed_over(*damaged_pair(lambda _whole: content))


def test_a_checkpoint_of_another_spec_is_refused(store: Store) -> None:
    """A whole checkpoint of another spec ends the run with every difference and what to do."""
    keep(store, tiny_state(), models.train_spec(seed=4, images=40))
    with pytest.raises(CheckpointError, match="written by another spec; train into another URL") as caught:
        checkpoint.load_latest(store, tiny_state(), SPEC, [])
    for line in ("seed: 0 here, 4 there", "training.images: 48 here, 40 there"):
        assert line in str(caught.value)


def test_resources_and_rhythm_do_not_make_another_spec(store: Store) -> None:
    """A run may be resumed on other resources, with other reports, bands and evaluations."""
    keep(store, tiny_state(seed=1), models.train_spec(report_every_images=5, callbacks=()))
    assert checkpoint.load_latest(store, tiny_state(), SPEC, [])


def test_a_checkpoint_keeps_what_the_watchdog_knows(store: Store) -> None:
    """The watchdog's state and whether all was well come back as they were."""
    keep(store, tiny_state(), watchdog={"outside": {"loss": 2}}, good=False)
    snapshot = checkpoint.load_latest(store, tiny_state(), SPEC, [])
    assert snapshot is not None
    assert (snapshot.watchdog, snapshot.good) == ({"outside": {"loss": 2}}, False)


def test_training_goes_on_while_a_snapshot_is_stored(store: Store) -> None:
    """A snapshot is a copy: what changes after it was taken is not in it."""
    state = tiny_state(seed=1)
    before = tiny_state(seed=1)
    watchdog: dict[str, Any] = {"usual": {"loss": [1.0]}}
    meter: dict[str, Any] = {"counts": {"loss": 1}}
    snapshot = checkpoint.take(state, SPEC, watchdog, meter=meter)
    watchdog["usual"]["loss"].append(2.0)
    meter["counts"]["loss"] += 1
    assert (snapshot.watchdog, snapshot.meter) == ({"usual": {"loss": [1.0]}}, {"counts": {"loss": 1}})
    with torch.no_grad():
        for tensor in state.tensors().values():
            tensor.add_(1)
    state.counters.images_seen += 8
    checkpoint.save(store, snapshot)
    loaded = tiny_state(seed=2)
    checkpoint.load_latest(store, loaded, SPEC, [])
    assert same(loaded, before)


def test_prune_keeps_the_best_besides(store: Store) -> None:
    """Checkpoints with the best evaluations are left however old they are."""
    for images_seen in (5, 10, 100, 1000):
        keep(store, tiny_state(images_seen=images_seen))
    checkpoint.prune(store, 1, frozenset({10, 77}))
    assert [checkpoint.images_of(key) for key in checkpoint.keys(store)] == [1000, 10]


def test_prune_keeps_good_ones_however_many_came_since(store: Store) -> None:
    """A divergence is seen late, and has to find a place to go back to; flags are read from headers where nobody knows them."""
    for images_seen, good in ((10, True), (20, True), (30, True), (40, False), (50, False), (60, False)):
        checkpoint.save(store, checkpoint.take(tiny_state(images_seen=images_seen), SPEC, good=good))
    assert [checkpoint.is_good(store, checkpoint.key_of(images)) for images in (30, 40, 70)] == [True, False, False]
    checkpoint.prune(store, 2)
    assert [checkpoint.images_of(key) for key in checkpoint.keys(store)] == [60, 50, 30, 20]
    store.put(checkpoint.key_of(30), b"torn", overwrite=True)
    checkpoint.prune(store, 1)
    assert [checkpoint.images_of(key) for key in checkpoint.keys(store)] == [60, 20]


@pytest.mark.parametrize(
    "name", ["images-000000000512 (copy).safetensors", "mine.safetensors", "images-12.safetensors"]
)
def test_what_else_lies_among_checkpoints_is_left_alone(store: Store, name: str) -> None:
    keep(store, tiny_state(images_seen=8))
    store.put(f"checkpoints/{name}", b"mine")
    assert checkpoint.keys(store) == [checkpoint.key_of(8)]
    checkpoint.prune(store, 1)
    assert store.get(f"checkpoints/{name}") == b"mine"


def test_a_checkpoint_of_other_networks_is_refused(store: Store) -> None:
    """Tensors that do not fit the networks are refused, in one error."""
    keep(store, tiny_state())
    state = tiny_state()
    other = replace(state, networks=nn.ModuleDict({"one": nn.Linear(3, 2)}))
    with pytest.raises(CheckpointError, match="other networks"):
        checkpoint.load_latest(store, other, SPEC, [])


# --- whole runs ------------------------------------------------------------------------------------------------------


def run(
    spec: TrainSpec, store: Store, *, stop_at: int | None = None, source: Source | None = None
) -> tuple[TrainResult, list[float]]:
    """Train in this process; returns how it ended and the images seen at each report."""
    reports: list[float] = []
    steps = itertools.count(1)
    hooks = Hooks(
        on_report=lambda metrics: reports.append(metrics["images_seen"]),
        # Asked before each step; the step for which it says yes is the last.
        should_stop=lambda: stop_at is not None and next(steps) * spec.training.batch_size >= stop_at,
    )
    result = loop.train(spec, source or models.shipped_source(), store, rank=0, world_size=1, device=CPU, hooks=hooks)
    return result, reports


def final_state(store: Store) -> bytes:
    """The newest checkpoint's bytes: networks, average, moments and counters."""
    return store.get(checkpoint.keys(store)[0])


# Each keeps state of its own, or splits a batch in its own way.
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "adapting augmentation": ("r3gan", {"family": {"augment": {"every_images": 8, "speed_images": 100}}}),
    "packs": ("r3gan", {"family": {"pac": 2}}),
    "micro-batches": ("r3gan", {"micro_batch_size": 4}),
    "iwae": ("vae", {"family": {"objective": "iwae", "iwae_samples": 2}}),
    "bfloat16": ("vae", {"precision": "bfloat16"}),
}


@pytest.mark.parametrize("stop_at", [32, 40])
@pytest.mark.parametrize("case", [*FAMILIES, *UNUSUAL])
def test_a_stopped_run_ends_as_an_unbroken_one(case: str, stop_at: int) -> None:
    """N + N steps, stopped by the hook at a report or between two, leave the bytes of 2N steps: checkpoint, bundle, reports."""
    name, changes = UNUSUAL.get(case, (case, {}))
    spec = models.train_spec(name, images=64, report_every_images=16, **changes)
    whole, parts = new_store(), new_store()
    assert run(spec, whole)[0].finished
    first, reports = run(spec, parts, stop_at=stop_at)
    assert (first.finished, first.images_seen, reports) == (False, stop_at, [16, 32])
    assert run(spec, parts)[0].finished
    assert final_state(parts) == final_state(whole)
    assert bundles.load(parts, BUNDLE_PREFIX).digest == bundles.load(whole, BUNDLE_PREFIX).digest
    assert [line["images_seen"] for line in read_metrics(parts)] == [16, 32, 48, 64]
    assert timeless(parts) == timeless(whole)


def timeless(store: Store) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock decides."""
    clock = {"images_per_second", "seconds"}
    return [
        {key: value for key, value in line.items() if key not in clock and not key.endswith("_share")}
        for line in read_metrics(store)
    ]


class DyingSource:
    """The shipped images, until a number of reads; then the machine is gone."""

    def __init__(self, reads: int) -> None:
        self._inner, self._left = models.shipped_source(), reads
        self.schema, self.corrupt, self.blocks = self._inner.schema, self._inner.corrupt, self._inner.blocks

    def __len__(self) -> int:
        return len(self._inner)

    def read(self, indices: Int64Array) -> SampleBatch:
        self._left -= 1
        if self._left < 0:
            raise ConnectionResetError("the machine is gone")
        return self._inner.read(indices)

    def digest(self) -> str:
        return self._inner.digest()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reads", [1, 5])
def test_a_killed_run_ends_as_an_unbroken_one(name: str, reads: int) -> None:
    """A run that died between checkpoints repeats the lost steps and ends with the same bytes and every report once."""
    spec = models.train_spec(name, images=64, report_every_images=16, checkpoint_every_images=16)
    whole, parts = new_store(), new_store()
    run(spec, whole)
    with pytest.raises(ConnectionResetError):
        run(spec, parts, source=DyingSource(reads))  # type: ignore[arg-type]
    run(spec, parts)
    assert final_state(parts) == final_state(whole)
    assert timeless(parts) == timeless(whole)


def test_metrics_have_each_report_once_whatever_the_rhythm() -> None:
    """Where checkpoints fall between reports, a resumed run still reports at the images where an unbroken one does."""
    spec = models.train_spec(images=120, report_every_images=24, checkpoint_every_images=16)
    whole, parts = new_store(), new_store()
    run(spec, whole)
    for reads in (3, 5, 4):
        with pytest.raises(ConnectionResetError):
            run(spec, parts, source=DyingSource(reads))  # type: ignore[arg-type]
    run(spec, parts)
    assert [line["images_seen"] for line in read_metrics(whole)] == [24, 48, 72, 96, 120]
    assert [line["images_seen"] for line in read_metrics(parts)] == [24, 48, 72, 96, 120]


def test_a_damaged_newest_checkpoint_costs_only_time() -> None:
    """A run whose newest checkpoint is torn goes on from the one before it and ends the same."""
    spec = models.train_spec(images=64, report_every_images=16, checkpoint_every_images=16)
    whole, parts = new_store(), new_store()
    run(spec, whole)
    run(spec, parts, stop_at=48)
    newest = checkpoint.keys(parts)[0]
    parts.put(newest, parts.get(newest)[:-1], overwrite=True)
    run(spec, parts)
    assert final_state(parts) == final_state(whole)


def test_a_finished_run_is_left_as_it_is() -> None:
    """Training a finished run again makes no step and keeps bundle and metrics."""
    spec, store = models.train_spec(), new_store()
    run(spec, store)
    before, bundle = store.get(METRICS_KEY), bundles.load_info(store, BUNDLE_PREFIX)
    result, reports = run(spec, store)
    assert (result.finished, reports) == (True, [])
    assert store.get(METRICS_KEY) == before
    again = bundles.load_info(store, BUNDLE_PREFIX)
    assert again.digest == bundle.digest
    assert again.lineage.metrics == bundle.lineage.metrics


def test_a_bundle_tells_where_it_comes_from() -> None:
    """The bundle of a run holds the spec, the data's digest, the images seen and the last metrics."""
    spec, store = models.train_spec(images=48), new_store()
    run(spec, store)
    lineage = bundles.load_info(store, BUNDLE_PREFIX).lineage
    assert lineage.source == "fashion-mnist shipped"
    assert lineage.source_digest == models.shipped_source().digest()
    assert lineage.images_seen == 48
    assert lineage.spec == spec.model_dump(mode="json")
    assert all(math.isfinite(value) for value in lineage.metrics.values())
    assert lineage.metrics


def test_no_more_checkpoints_are_kept_than_asked_for() -> None:
    """A run keeps the newest few, however many it wrote."""
    store = new_store()
    run(models.train_spec(images=64, checkpoint_every_images=8, keep_checkpoints=3), store)
    assert len(checkpoint.keys(store)) == 3


def trainer_with_nan(spec: TrainSpec) -> step.Trainer:
    """A trainer whose first phase's first network has a weight that makes every loss NaN."""
    trainer = step.Trainer(spec, models.shipped_source(), 0, 1, CPU)
    with torch.no_grad():
        next(trainer.networks[trainer.phases[0].networks[0]].parameters()).fill_(math.nan)
    return trainer


@pytest.mark.parametrize("name", FAMILIES)
def test_a_non_finite_gradient_moves_nothing_and_is_counted(name: str) -> None:
    """A NaN gradient moves no weight and no moment, and each is counted."""
    trainer = trainer_with_nan(models.train_spec(name))
    before = {key: value.clone() for key, value in trainer.networks.state_dict().items()}
    loader = Loader(models.shipped_source(), batch_size=8, seed=0, prefetch=0)
    for _ in range(3):
        trainer.step([next(loader)], step.Meter())
    assert trainer.state.counters.nonfinite_steps >= 3
    for key, value in trainer.networks.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0)), key
    assert all(not optimizer.state_dict()["state"] for optimizer in trainer.optimizers.values())


def test_non_finite_steps_are_reported() -> None:
    """The count of skipped steps is in every report and in the checkpoint, and goes on after a resume."""
    spec = models.train_spec(images=16, report_every_images=8)
    store = new_store()
    broken = trainer_with_nan(spec)
    broken.state.counters.nonfinite_steps = 7
    keep(store, broken.state, spec)
    with pytest.raises(TrainingError, match="averaged weights are not finite"):
        run(spec, store)
    assert [line["nonfinite_steps"] for line in read_metrics(store)] == [8, 9]


def test_a_resume_tells_the_checkpoint_that_it_goes_on_from(store: Store) -> None:
    """Who follows the run knows the newest checkpoint from the start, also when no other is ever stored."""
    told: list[str] = []
    for _ in range(2):
        source, hooks = models.shipped_source(), Hooks(on_checkpoint=told.append)
        loop.train(SPEC, source, store, rank=0, world_size=1, device=CPU, hooks=hooks)
    assert told == [checkpoint.key_of(48)] * 2


# --- claim -----------------------------------------------------------------------------------------------------------


def test_claim_takes_an_empty_store_and_its_own_run(store: Store) -> None:
    """The first claim writes the spec; the same spec, with any resources or rhythm, may claim again."""
    record.claim(models.train_spec(), store)
    spec = models.train_spec(report_every_images=5, checkpoint_every_images=9)
    other = spec.model_copy(update={"resources": spec.resources.model_copy(update={"workers": 3})})
    record.claim(other, store)
    # Reports go by what the newest start asked for; a finished run is left as it is.
    assert json.loads(store.get(record.SPEC_KEY)) == other.model_dump(mode="json")
    record.claim(spec, store, goes_on=False)
    assert json.loads(store.get(record.SPEC_KEY)) == other.model_dump(mode="json")


def test_claim_refuses_another_run_with_the_differences(store: Store) -> None:
    """Another seed, length or family under the same URL is refused, key by key, and what is there stays."""
    record.claim(models.train_spec(), store)
    store.put(checkpoint.key_of(8), b"")
    before = store.get(record.SPEC_KEY)
    with pytest.raises(CheckpointError, match="holds another run") as caught:
        record.claim(models.train_spec(seed=1, images=40, family={"beta": 2.0}), store)
    assert "delete" not in str(caught.value)
    for line in ("seed: 1 here, 0 there", "training.images: 40 here, 48 there", "family.beta: 2.0 here, 1.0 there"):
        assert line in str(caught.value)
    assert store.get(record.SPEC_KEY) == before
    with pytest.raises(CheckpointError, match=r"family\.name: 'r3gan' here, 'vae' there"):
        record.claim(models.train_spec("r3gan"), store)


def test_claim_replaces_a_run_that_never_started(store: Store) -> None:
    """A spec.json alone keeps no corrected spec out; beside the first trace of a start it does, and what to do is said."""
    record.claim(models.train_spec(), store)
    corrected = models.train_spec(seed=1)
    record.claim(corrected, store)
    assert TrainSpec.parse(json.loads(store.get(record.SPEC_KEY)), origin="test").spec_id == corrected.spec_id
    record.Lines(store, record.ENVIRONMENT_KEY).flush()
    with pytest.raises(CheckpointError, match=r"it has no checkpoint: if it is not going on, delete its spec\.json"):
        record.claim(models.train_spec(), store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"seed": 0}', b"\xff"])
def test_claim_refuses_a_damaged_spec(store: Store, content: bytes) -> None:
    """A spec.json that is no spec is an error of the checkpoint that names the file."""
    store.put(record.SPEC_KEY, content)
    with pytest.raises(CheckpointError, match=record.SPEC_KEY):
        record.claim(models.train_spec(), store)


@pytest.mark.parametrize("text", [b'{"images_seen": 16, "nonfin', b"\xff\xfe", b"[1]\n", b"[" * 5000])
def test_a_damaged_file_of_reports_is_named(text: bytes) -> None:
    """Not a traceback of the worker that reads it."""
    store = new_store()
    spec = models.train_spec(images=64, report_every_images=16)
    run(spec, store, stop_at=32)
    store.put("metrics.jsonl", text, overwrite=True)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is damaged: .*move it away to go on without it"):
        run(spec, store)
    store.delete("metrics.jsonl")
    assert run(spec, store)[0].finished


def test_checkpoints_stay_on_their_grid_after_a_stop() -> None:
    """And that of the stop itself is none that a rollback goes to, so that a stop does not change where it goes."""
    store = new_store()
    spec = models.train_spec(images=64, checkpoint_every_images=16, keep_checkpoints=9)
    run(spec, store, stop_at=24)
    run(spec, store)
    seen = {checkpoint.images_of(key): checkpoint.is_good(store, key) for key in checkpoint.keys(store)}
    assert seen == {16: True, 24: False, 32: True, 48: True, 64: True}


def test_images_that_cannot_be_decoded_are_named_once(tmp_path: Path) -> None:
    """By each rank, those that it met; the report counts them."""
    for index in range(24):
        path = tmp_path / f"class-{index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((28, 28), 10 * index, np.uint8)).save(path)
    (tmp_path / "class-0" / "04.png").write_bytes(b"no image")
    (tmp_path / "class-1" / "07.png").write_bytes((tmp_path / "class-1" / "07.png").read_bytes()[:40])
    told: list[str] = []
    values = models.train_spec(images=96, report_every_images=24, holdout_share=0.0).model_dump(mode="json")
    values["data"] = {"name": "image-folder", "url": str(tmp_path), "image_size": 28, "channels": 1}
    spec, store = TrainSpec.parse(values, origin="test"), new_store()
    source = open_source(spec.data)
    hooks = Hooks(on_own_event=told.append)
    loop.train(spec, source, store, rank=0, world_size=1, device=CPU, hooks=hooks)
    named = [name for text in told for name in ("04.png", "07.png") if name in text]
    assert sorted(named) == ["04.png", "07.png"]
    assert all(text.startswith("rank 0 could not decode ") for text in told)
    assert read_metrics(store)[-1]["corrupt_images"] == 2

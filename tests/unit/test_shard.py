"""One task in one process: the same bytes every time, in any order, or a refusal before anything is written."""

from __future__ import annotations

import copy
import hashlib
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from genworker.bulk import commit, ledger
from genworker.bulk.plan import BUNDLE_PREFIX, DATA_PREFIX, PLAN_KEY, Task
from genworker.bulk.request import GenerateSpec, check_same, default_samples_per_shard, make_plan, sample_schema
from genworker.bulk.shard import ShardMaker, libraries_of, numerics_here, resample
from genworker.bundle import BUNDLE_KEY
from genworker.errors import BundleError, GenworkerError, OtherMachineError, PlanError, UsageError
from genworker.reading import open_dataset, verify
from genworker.schema import ImageSchema
from genworker.stores import open_store
from tests.fakes import models

if TYPE_CHECKING:
    from genworker.bulk.plan import Plan
    from genworker.bulk.records import Manifest
    from genworker.bundle import Bundle
    from genworker.stores import Store

CPU = torch.device("cpu")
NUM_SHARDS = 4


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A tiny trained generator."""
    return models.bundle_of()


def new_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def request(**changes: Any) -> GenerateSpec:
    """A request for forty samples in four shards."""
    values: dict[str, Any] = {"bundle": "-", "out": "-", "num_samples": 40, "samples_per_shard": 12}
    return GenerateSpec(**(values | changes))


def plan_for(bundle: Bundle, **changes: Any) -> Plan:
    """The plan of a request on this machine, in float32 and with small micro-batches."""
    spec = request(**changes)
    numerics = numerics_here(CPU, spec.format, spec.codec, sample_schema(bundle.info), force_float32=True)
    return make_plan(spec, bundle.info, numerics.model_copy(update={"micro_batch": 8}))


def claimed(bundle: Bundle, plan: Plan | None = None) -> Store:
    """A store where a job has begun."""
    store = new_store()
    commit.claim(store, plan or plan_for(bundle))
    commit.store_bundle(store, bundle)
    return store


def published(bundle: Bundle) -> tuple[Store, Manifest]:
    """A store with the whole dataset."""
    store = claimed(bundle)
    maker = ShardMaker(store, CPU)
    receipts = {task.shard_index: maker.make(task, 0) for task in maker.plan.tasks()}
    return store, commit.publish(store, maker.plan, receipts)


def test_shards_are_the_same_bytes_in_any_order(bundle: Bundle) -> None:
    """A maker gives equal bytes for a task, first or last, once or twice, and so does another maker elsewhere."""
    maker, other = ShardMaker(claimed(bundle), CPU), ShardMaker(claimed(bundle), CPU)
    tasks = list(maker.plan.tasks())
    assert len(tasks) == NUM_SHARDS
    shards = {task.shard_index: maker.encode(task) for task in tasks}
    assert len(set(shards.values())) == NUM_SHARDS
    for task in random.Random(1).sample(tasks * 2, 2 * NUM_SHARDS):
        assert other.encode(task) == shards[task.shard_index]


def test_the_cut_into_shards_does_not_change_a_sample(bundle: Bundle) -> None:
    """Another shard size makes other shards of the same samples."""
    datasets = []
    for per_shard in (7, 40):
        store = claimed(bundle, plan_for(bundle, samples_per_shard=per_shard))
        maker = ShardMaker(store, CPU)
        commit.publish(store, maker.plan, {t.shard_index: maker.make(t, 0) for t in maker.plan.tasks()})
        datasets.append([(s.index, s.pixels.tobytes(), s.label) for s in open_dataset(store.url)])
    assert datasets[0] == datasets[1]
    assert len(datasets[0]) == 40


def test_a_bundle_at_hand_is_not_read_from_the_store(bundle: Bundle) -> None:
    """An actor that was given the bundle makes the same bytes without reading one; another plan's bundle is refused."""
    plan = plan_for(bundle)
    store = new_store()
    commit.claim(store, plan)
    task = plan.task(1)
    assert ShardMaker(store, CPU, 1, bundle).encode(task) == ShardMaker(claimed(bundle), CPU).encode(task)
    with pytest.raises(BundleError, match="the plan was made for bundle"):
        ShardMaker(store, CPU, 1, models.bundle_of(seed=1))


def test_a_made_shard_is_stored_with_its_receipt(bundle: Bundle) -> None:
    """`make` stores what `encode` gives, and may be repeated."""
    store = claimed(bundle)
    maker = ShardMaker(store, CPU)
    task = maker.plan.task(3)
    receipts = [maker.make(task, attempt) for attempt in range(2)]
    data = store.get(task.key)
    assert data == maker.encode(task)
    assert {receipt.sha256 for receipt in receipts} == {hashlib.sha256(data).hexdigest()}
    assert [receipt.attempt for receipt in receipts] == [0, 1]
    assert [receipt.duplicate for receipt in receipts] == [False, True]
    assert receipts[0].num_samples == 4


@pytest.mark.parametrize("num_cpus", [1, 3])
def test_bytes_do_not_depend_on_threads(bundle: Bundle, num_cpus: int) -> None:
    """Encoder threads, and several tasks at a time, give the bytes of one thread that does all in turn."""
    maker, plain = ShardMaker(claimed(bundle), CPU, num_cpus), ShardMaker(claimed(bundle), CPU)
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(maker.encode, maker.plan.tasks()))
    assert made == [plain.encode(task) for task in plain.plan.tasks()]


def test_a_shard_is_made_while_another_is_stored(bundle: Bundle) -> None:
    """The put of one shard need not end before the next one is whole."""
    store = claimed(bundle)
    maker = ShardMaker(store, CPU)
    made, put = threading.Event(), store.put

    def slow_put(key: str, data: bytes, *, overwrite: bool = False) -> Any:
        assert made.wait(30), "the other shard waits for this put"
        return put(key, data, overwrite=overwrite)

    store.put = slow_put  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as other:
        receipt = other.submit(maker.make, maker.plan.task(0), 0)
        maker.encode(maker.plan.task(1))
        made.set()
        assert receipt.result().shard_index == 0


def test_what_fails_in_one_task_leaves_the_others_alone(bundle: Bundle) -> None:
    """An error ends its own task, with nothing stored, and gives the device to the next."""
    store = claimed(bundle)
    maker = ShardMaker(store, CPU)
    task = maker.plan.task(1)
    impossible = Task(task.shard_index, 2**63, 12, task.key)
    with pytest.raises(OverflowError):
        maker.make(impossible, 0)
    assert list(store.list(DATA_PREFIX)) == []
    assert maker.make(task, 1).shard_index == 1


def test_a_receipt_tells_where_the_time_went_and_is_stored_without(bundle: Bundle) -> None:
    """Every stage of a made shard took some time; receipts in the store name none, and travel between processes whole."""
    store = claimed(bundle)
    maker = ShardMaker(store, CPU)
    started = time.perf_counter()
    receipt = maker.make(maker.plan.task(0), 0)
    elapsed = time.perf_counter() - started
    stages = receipt.stages
    assert stages is not None
    assert min(stages.latents, stages.forward, stages.quantise, stages.encode, stages.write, stages.put) > 0
    assert stages.total <= elapsed
    assert copy.deepcopy(receipt) == receipt
    ledger.write(store, maker.plan, [receipt])
    assert ledger.read(store, maker.plan)[0] == receipt.model_copy(update={"stages": None})


def test_a_dataset_of_makers_is_whole(bundle: Bundle) -> None:
    """What makers stored and the protocol published passes the reader's full check."""
    store, _ = published(bundle)
    assert verify(store.url) == []


def test_no_plan_is_refused() -> None:
    """Without a plan there is nothing to make."""
    with pytest.raises(PlanError, match="there is no plan"):
        ShardMaker(new_store(), CPU)


def test_no_bundle_is_refused(bundle: Bundle) -> None:
    """A plan whose bundle is gone cannot be carried out, and the message names where it should lie."""
    store = claimed(bundle)
    store.delete(BUNDLE_PREFIX + BUNDLE_KEY)
    with pytest.raises(BundleError, match=r"\.genworker/bundle"):
        ShardMaker(store, CPU)


def test_another_bundle_beside_the_plan_is_refused(bundle: Bundle) -> None:
    """A bundle that was exchanged under the plan is noticed before a shard is made."""
    store = claimed(bundle)
    models.bundle_of(seed=1).save(store, BUNDLE_PREFIX)
    with pytest.raises(BundleError, match=bundle.digest[:16]):
        ShardMaker(store, CPU)


@pytest.mark.parametrize("part", ["codec", "format", "torch"])
@pytest.mark.parametrize("version", ["none 0.0", None])
def test_other_libraries_are_refused(bundle: Bundle, part: str, version: str | None) -> None:
    """Where an encoder or torch has another version than the plan's nothing is made, and both versions are told."""
    plan = plan_for(bundle)
    libraries = {key: value for key, value in plan.numerics.libraries.items() if key != part}
    if version is not None:
        libraries[part] = version
    numerics = plan.numerics.model_copy(update={"libraries": libraries})
    store = claimed(bundle, plan.model_copy(update={"numerics": numerics}))
    with pytest.raises(OtherMachineError, match=part) as caught:
        ShardMaker(store, CPU)
    assert str(version) in str(caught.value)
    assert plan.numerics.libraries[part] in str(caught.value)
    assert list(store.list(DATA_PREFIX)) == []


def test_a_plans_libraries_name_what_encodes(bundle: Bundle) -> None:
    """The numerics of a plan hold the versions of torch, codec and format."""
    plan = plan_for(bundle)
    assert plan.numerics.libraries["torch"] == torch.__version__
    here = libraries_of(plan.format, plan.codec, plan.image_schema)
    assert here.items() <= plan.numerics.libraries.items()


def test_resampling_a_sound_dataset_finds_nothing(bundle: Bundle) -> None:
    """Every shard is remade with equal bytes; progress counts to the number asked for."""
    store, manifest = published(bundle)
    seen: list[tuple[int, int]] = []
    assert resample(store, manifest, 99, CPU, lambda done, total: seen.append((done, total))) == []
    assert seen == [(done, NUM_SHARDS) for done in range(1, NUM_SHARDS + 1)]


def test_resampling_finds_a_shard_that_was_tampered_with(bundle: Bundle) -> None:
    """A shard that was replaced together with its entry in the manifest passes every checksum, and is found here."""
    store, manifest = published(bundle)
    other = manifest.shards[2].model_copy(update={"sha256": "0" * 64})
    shards = (*manifest.shards[:2], other, *manifest.shards[3:])
    tampered = manifest.model_copy(update={"shards": shards})
    (fault,) = resample(store, tampered, NUM_SHARDS, CPU)
    assert fault.startswith(f"{other.key}: ")
    assert "0" * 64 in fault
    assert len(resample(store, tampered, 1, CPU)) <= 1


# --- from a request to a plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 127, 128, 5000, 10**6, 10**9])
@pytest.mark.parametrize("side", [8, 28, 256, 4096])
def test_default_shards_are_neither_tiny_nor_huge(num_samples: int, side: int) -> None:
    """By default shards hold at most 64 MiB of pixels (or 128 samples), and there are 16 where there are enough samples."""
    schema = ImageSchema(channels=3, height=side, width=side)
    per_shard = default_samples_per_shard(num_samples, schema, 128)
    assert per_shard % 128 == 0
    assert per_shard == 128 or per_shard * side * side * 3 <= 64 * 2**20
    if num_samples >= 16 * 128:
        assert -(-num_samples // per_shard) >= 16


@pytest.mark.parametrize(
    ("side", "micro_batch", "expected"),
    [
        (256, 32, 256),  # is whole already
        (64, 512, 5120),  # ten of them, 60 MiB
        (64, 100, 5400),
        (256, 2048, 2048),  # one, 384 MiB
        (256, 8192, 256),  # one would be 1.5 GiB
    ],
)
def test_default_shards_hold_whole_micro_batches(side: int, micro_batch: int, expected: int) -> None:
    """No micro-batch is evaluated for two shards, unless a shard would be too large to hold one."""
    schema = ImageSchema(channels=3, height=side, width=side)
    assert default_samples_per_shard(10**9, schema, micro_batch) == expected


def test_the_default_depends_on_the_dataset_alone(bundle: Bundle) -> None:
    """Actors, GPUs and attempts leave the plan as it is."""
    plans = {
        plan_for(bundle, samples_per_shard=None, **changes).plan_id
        for changes in ({}, {"actors": 7}, {"use_gpu": True}, {"max_attempts": 9})
    }
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples_per_shard": 2**40}, PlanError, "samples_per_shard 1099511627776: .* use at most"),
        ({"codec": "pgn"}, UsageError, "codec 'pgn'.*did you mean 'png'"),
        ({"format": "parket"}, UsageError, "format 'parket'.*did you mean 'parquet'"),
        ({"labels": "3"}, UsageError, "labels '3': say 'balanced', 'uniform', or a class number below 3"),
        ({"labels": "boot"}, UsageError, "labels 'boot'"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(
    bundle: Bundle, changes: dict[str, Any], error: type[GenworkerError], message: str
) -> None:
    """What is wrong with a request is found when the plan is made."""
    with pytest.raises(error, match=message):
        plan_for(bundle, **changes)


@pytest.mark.parametrize("labels", ["uniform", "1"])
def test_labels_are_not_silently_ignored(labels: str) -> None:
    """Asking a model that knows no classes for one of them is an error, not an unlabelled dataset."""
    with pytest.raises(UsageError, match="labels"):
        plan_for(models.bundle_of(conditional=False), labels=labels)


def test_an_unconditional_bundle_makes_unlabelled_samples() -> None:
    """A model that ignores labels gives a schema without classes."""
    plan = plan_for(models.bundle_of(conditional=False))
    assert (plan.image_schema.num_classes, plan.image_schema.class_names) == (0, ())


def test_the_same_request_goes_on_with_the_plan_that_is_there(bundle: Bundle) -> None:
    """Numerics come from the first run, whatever this machine would choose."""
    plan = plan_for(bundle)
    numerics = plan.numerics.model_copy(update={"device_class": "cuda/other", "micro_batch": 4})
    existing = plan.model_copy(update={"numerics": numerics})
    assert check_same(request(), bundle.info, existing) == existing


def test_another_request_is_refused_with_its_differences(bundle: Bundle) -> None:
    """Another number, seed or precision than the plan's is told key by key."""
    plan = plan_for(bundle)
    with pytest.raises(PlanError, match="seed: 5 here, 0 there") as caught:
        check_same(request(seed=5, num_samples=41), bundle.info, plan)
    assert "num_samples: 41 here, 40 there" in str(caught.value)
    numerics = plan.numerics.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(PlanError, match=r"numerics.dtype: 'float32' here, 'bfloat16' there"):
        check_same(request(precision="float32"), bundle.info, plan.model_copy(update={"numerics": numerics}))


def test_the_plan_lies_where_readers_look(bundle: Bundle) -> None:
    """Control objects are below .genworker/, out of the way of globbing readers."""
    keys = [info.key for info in claimed(bundle).list()]
    assert PLAN_KEY in keys
    assert all(key.startswith(".genworker/") for key in keys)

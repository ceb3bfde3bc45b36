"""Reading finished datasets, and finding what is wrong with damaged ones."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from genworker import codecs, formats
from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, SUCCESS_KEY, Plan, Task
from genworker.errors import DatasetError, StoreError, UsageError
from genworker.reading import Fault, open_dataset, verify
from genworker.schema import ImageSchema, SampleBatch
from genworker.stores import open_store
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.bulk.records import Manifest
    from genworker.stores import Store

KEYS = [f"data/train-{index:05d}-of-00004.parquet" for index in range(4)]


@pytest.fixture
def url() -> str:
    """A place in a store that nobody else uses."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    """The store at `url`."""
    return open_store(url)


@pytest.fixture
def manifest(url: str) -> Manifest:
    """Fifty samples in four shards, published at `url`."""
    return fake.publish(url, fake.make_plan())


@pytest.mark.parametrize(
    ("format", "codec"),
    [(format, codec) for format in formats.names() for codec in codecs.names() if codecs.get(codec).lossless],
)
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_dataset_gives_every_sample_once_in_order(
    *, url: str, tmp_path: object, where: str, num_classes: int, codec: str, format: str
) -> None:
    """Iterating, batches and indexing all give the samples that were generated, in order, each once."""
    url = url if where == "memory" else str(tmp_path)
    schema = ImageSchema(channels=3, height=7, width=5, num_classes=num_classes)
    plan = fake.make_plan(schema=schema, codec=codec, format=format)
    fake.publish(url, plan)
    dataset = open_dataset(url)
    expected = fake.samples_of(schema, np.arange(50))
    assert (len(dataset), dataset.plan, dataset.schema) == (50, plan, schema)
    samples = list(dataset)
    assert [sample.index for sample in samples] == list(range(50))
    np.testing.assert_array_equal(np.stack([sample.pixels for sample in samples]), expected.pixels)
    labels = [None] * 50 if expected.labels is None else expected.labels.tolist()
    assert [sample.label for sample in samples] == labels
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in dataset.batches()]), expected.pixels)
    for index in (49, 0, 14, 15, 31, 0, 46, -1, -50):
        sample = dataset[index]
        assert (sample.index, sample.label) == (index % 50, labels[index])
        np.testing.assert_array_equal(sample.pixels, expected.pixels[index])


@pytest.mark.parametrize("index", [np.uint8(200), np.int8(-1), np.int64(3), torch.tensor(5)])
def test_any_whole_number_is_an_index(tmp_path: Path, index: Any) -> None:
    """Of whatever width: it is one in the dataset's range, not in its own."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=300, samples_per_shard=100))
    assert open_dataset(str(tmp_path))[index].index == int(index) % 300


@pytest.mark.parametrize("index", [1.5, "3", slice(0, 3), None, [1]])
def test_what_is_no_whole_number_is_no_index(url: str, manifest: Manifest, index: Any) -> None:
    """And is told the way to a range."""
    with pytest.raises(TypeError, match=r"an index is a whole number; `read\(first, stop\)` gives a range"):
        open_dataset(url)[index]


@pytest.mark.parametrize("index", [50, -51, 10**12])
def test_index_outside_the_dataset_is_an_index_error(url: str, manifest: Manifest, index: int) -> None:
    """An index past either end says how many samples there are."""
    with pytest.raises(IndexError, match=f"sample {index}: the dataset has 50"):
        open_dataset(url)[index]


@pytest.mark.parametrize("format", formats.names())
def test_threads_read_one_dataset(url: str, format: str) -> None:
    """Random access and passes from many threads at once give each sample as it is, though few shards stay open."""
    fake.publish(url, fake.make_plan(num_samples=400, samples_per_shard=50, format=format, codec="png"))
    dataset = open_dataset(url)
    expected = fake.samples_of(dataset.schema, np.arange(400)).pixels
    wanted = np.random.default_rng(0).integers(0, 400, 600).tolist()

    def one(index: int) -> bool:
        return np.array_equal(dataset[index].pixels, expected[index])

    def whole(_number: int) -> bool:
        return np.array_equal(np.concatenate([batch.pixels for batch in dataset.batches()]), expected)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            passes = threads.map(whole, range(2))
            assert all(threads.map(one, wanted))
            assert all(passes)
    finally:
        sys.setswitchinterval(before)
    assert len(dataset._open) <= 4
    assert dataset._opening == {}


def test_readers_can_share_the_shards(url: str, manifest: Manifest) -> None:
    """Batches of chosen shards are the samples of those shards, so that two readers see everything once."""
    dataset = open_dataset(url)
    halves = [[batch.sample_index for batch in dataset.batches(shards)] for shards in ([0, 2], [1, 3])]
    seen = np.concatenate([np.concatenate(half) for half in halves])
    assert sorted(seen.tolist()) == list(range(50))
    assert np.concatenate(halves[0]).tolist() == [*range(15), *range(30, 45)]


@pytest.mark.parametrize(("first", "stop"), [(0, 50), (0, 0), (7, 8), (14, 16), (13, 46), (30, 45), (49, 50)])
def test_any_range_can_be_read(url: str, manifest: Manifest, first: int, stop: int) -> None:
    """read(first, stop) gives these samples in order, whichever shards they lie in."""
    batches = list(open_dataset(url).read(first, stop))
    assert [index for batch in batches for index in batch.sample_index.tolist()] == list(range(first, stop))
    for batch in batches:
        np.testing.assert_array_equal(batch.pixels, fake.pixels_of(fake.SCHEMA, batch.sample_index))
    with pytest.raises(IndexError, match=r"samples \[0, 51\): the dataset has 50"):
        next(open_dataset(url).read(0, 51))


def test_bad_shards_stop_a_pass_unless_they_are_to_be_skipped(
    url: str, store: Store, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    """By default a damaged shard raises; skipped, it is named once in `skipped` and in the log, and all others are read."""
    store.put(KEYS[0], store.get(KEYS[0])[:-1], overwrite=True)
    store.delete(KEYS[2])
    with pytest.raises(DatasetError, match=f"{KEYS[0]}: has SHA-256"):
        list(open_dataset(url))
    dataset = open_dataset(url, on_bad_shard="skip")
    assert dataset.skipped == []
    for _ in range(2):
        assert [sample.index for sample in dataset] == [*range(15, 30), *range(45, 50)]
        assert [fault.key for fault in dataset.skipped] == [KEYS[0], KEYS[2]]
    assert dataset.skipped[0].problem.startswith("has SHA-256")
    assert dataset.skipped[1].problem.startswith("is missing, the manifest names it")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert KEYS[2] in caplog.text
    with pytest.raises(DatasetError, match=KEYS[2]):
        dataset[31]
    with pytest.raises(UsageError, match="on_bad_shard 'ignore': say 'raise' or 'skip'"):
        open_dataset(url, on_bad_shard="ignore")  # type: ignore[arg-type]


def test_a_shard_of_files_is_skipped_from_its_first_bad_one_on(tmp_path: Path) -> None:
    """What came before was good and was given, which the fault says; other shards are whole."""
    plan = fake.make_plan(num_samples=3000, samples_per_shard=1500, format="files", codec="png")
    fake.publish(str(tmp_path), plan)
    next(tmp_path.rglob("*000000001000.png")).unlink()
    dataset = open_dataset(str(tmp_path), on_bad_shard="skip")
    indices = [sample.index for sample in dataset]
    given = len(indices) - 1500
    assert 0 < given <= 1000
    assert indices == [*range(given), *range(1500, 3000)]
    (fault,) = dataset.skipped
    assert fault.problem.endswith(f"({given} samples before it were good, and were given)")
    with pytest.raises(DatasetError, match=r"000000001000\.png"):
        list(open_dataset(str(tmp_path)))


def test_a_changed_table_of_files_is_told_without_sizes(tmp_path: Path) -> None:
    """The manifest has the size of table and files together, which says nothing of the table's."""
    manifest = fake.publish(str(tmp_path), fake.make_plan(format="files", codec="png"))
    table = tmp_path / manifest.shards[0].key
    table.write_bytes(table.read_bytes() + b"x")
    with pytest.raises(DatasetError, match=r"has SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}; it was changed"):
        open_dataset(str(tmp_path))[0]


def test_a_store_that_fails_is_no_bad_shard(tmp_path: Path) -> None:
    """Skipping is for shards alone: what the store itself cannot do raises."""
    plan = fake.make_plan()
    fake.publish(str(tmp_path), plan)
    (tmp_path / KEYS[1]).unlink()
    (tmp_path / KEYS[1]).symlink_to(tmp_path / KEYS[1])
    with pytest.raises(StoreError):
        list(open_dataset(str(tmp_path), on_bad_shard="skip"))


def test_dataset_travels_to_other_processes(url: str, manifest: Manifest) -> None:
    """A dataset that was read from can be pickled, and the copy reads the same samples."""
    dataset = open_dataset(url)
    first = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301  what we pickled ourselves
    np.testing.assert_array_equal(copy[0].pixels, first.pixels)


def test_unfinished_dataset_says_how_far_it_is_and_how_to_go_on(url: str, store: Store) -> None:
    """Without a manifest there is no dataset; the message counts the shards and tells how to resume."""
    fake.publish(url, fake.make_plan(), finish=False)
    store.delete(KEYS[2])
    with pytest.raises(
        DatasetError,
        match=r"no manifest: the job has not finished \(3 of 4 shards are there\); "
        r"run the same generate command again to resume",
    ):
        open_dataset(url)
    assert [fault.key for fault in verify(url)] == [MANIFEST_KEY]


def test_empty_place_is_no_dataset(url: str) -> None:
    """A URL with nothing below it is told apart from an unfinished job."""
    with pytest.raises(DatasetError, match=r"there is no plan either, .* check the URL"):
        open_dataset(url)


def test_missing_success_is_an_unfinished_job(url: str, store: Store, manifest: Manifest) -> None:
    """A manifest without _SUCCESS is refused, and is the only fault when the shards are sound."""
    store.delete(SUCCESS_KEY)
    with pytest.raises(DatasetError, match=r"_SUCCESS: is missing: .* run the same generate command again"):
        open_dataset(url)
    assert [fault.key for fault in verify(url)] == [SUCCESS_KEY]


def test_changed_manifest_is_refused(url: str, store: Store, manifest: Manifest) -> None:
    """A manifest that _SUCCESS does not vouch for is refused even when it is well formed."""
    other = manifest.model_copy(update={"num_bytes": manifest.num_bytes + 1})
    store.put(MANIFEST_KEY, other.canonical().encode(), overwrite=True)
    with pytest.raises(DatasetError, match=f"{MANIFEST_KEY}: has SHA-256 .*, _SUCCESS says"):
        open_dataset(url)
    assert [fault.key for fault in verify(url)] == [MANIFEST_KEY]


@pytest.mark.parametrize("key", [MANIFEST_KEY, SUCCESS_KEY])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"plan_id": 3}', b"\xff\xfe"])
def test_damaged_control_object_is_named(url: str, store: Store, manifest: Manifest, key: str, text: bytes) -> None:
    """A manifest or _SUCCESS that is not what it should be is a DatasetError that names the object."""
    store.put(key, text, overwrite=True)
    with pytest.raises(DatasetError, match=re.escape(f"{url}/{key}: ")):
        open_dataset(url)
    assert key in {fault.key for fault in verify(url)}


def _contradict_plan_id(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"plan_id": "0" * 16})


def _swap_entries(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"shards": (manifest.shards[1], manifest.shards[0], *manifest.shards[2:])})


def _drop_entry(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"shards": manifest.shards[:-1]})


@pytest.mark.parametrize("change", [_contradict_plan_id, _swap_entries, _drop_entry])
def test_manifest_that_contradicts_its_plan_is_refused(
    url: str, store: Store, manifest: Manifest, change: Callable[[Manifest], Manifest]
) -> None:
    """A manifest must name exactly its plan's shards, in order, and the plan's id."""
    store.put(MANIFEST_KEY, change(manifest).canonical().encode(), overwrite=True)
    assert any("plan" in fault.problem for fault in verify(url))
    with pytest.raises(DatasetError, match=MANIFEST_KEY):
        open_dataset(url)


def test_tampered_shard_is_noticed_when_it_is_read(url: str, store: Store, manifest: Manifest) -> None:
    """Both ways of reading refuse a changed shard by name, with both digests; sound shards stay readable."""
    data = bytearray(store.get(KEYS[1]))
    data[100] ^= 1
    store.put(KEYS[1], bytes(data), overwrite=True)
    dataset = open_dataset(url)
    assert dataset[14].index == 14
    message = (
        f"{re.escape(f'{url}/{KEYS[1]}')}: has SHA-256 [0-9a-f]{{64}} .* the manifest says {manifest.shards[1].sha256}"
    )
    with pytest.raises(DatasetError, match=message):
        dataset[15]
    with pytest.raises(DatasetError, match=message):
        list(dataset)


def test_unverified_reading_still_knows_its_shards(url: str, store: Store, manifest: Manifest) -> None:
    """With verify off digests are not compared, and a shard under another's name is refused all the same."""
    plan = manifest.plan
    store.put(KEYS[1], fake.shard_bytes(plan, plan.task(0)), overwrite=True)
    with pytest.raises(DatasetError, match=f"{KEYS[1]}: .* it is another shard"):
        open_dataset(url, verify=False)[15]


def test_missing_shard_is_named_once(url: str, store: Store, manifest: Manifest) -> None:
    """A shard that was deleted is a DatasetError with its key, said once."""
    store.delete(KEYS[3])
    with pytest.raises(DatasetError, match=r"^[^ ]*train-00003-of-00004.parquet: is missing") as caught:
        open_dataset(url)[-1]
    assert str(caught.value).count(KEYS[3]) == 1


def test_sound_dataset_has_no_faults(url: str, manifest: Manifest) -> None:
    """Verifying a sound dataset finds nothing and reports every shard done."""
    seen: list[tuple[int, int]] = []
    assert verify(url, on_shard=lambda done, total: seen.append((done, total))) == []
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_every_kind_of_damage_is_one_exact_line(url: str, store: Store, manifest: Manifest) -> None:
    """Truncated, tampered, swapped and missing shards and a foreign object each give one line that says what happened."""
    data = [store.get(key) for key in KEYS]
    tampered = bytearray(data[1])
    tampered[-9] ^= 1
    store.put(KEYS[0], data[0][:-1], overwrite=True)
    store.put(KEYS[1], bytes(tampered), overwrite=True)
    store.put(KEYS[2], data[3], overwrite=True)
    store.delete(KEYS[3])
    store.put("data/train-00000-of-00009.parquet", b"stranger")
    lines = [str(fault) for fault in verify(url)]
    assert lines[0] == f"{KEYS[0]}: is cut short: {len(data[0]) - 1} bytes, the manifest says {len(data[0])}"
    assert re.fullmatch(
        f"{KEYS[1]}: was changed: SHA-256 [0-9a-f]{{64}}, the manifest says {manifest.shards[1].sha256}", lines[1]
    )
    assert lines[2] == f"{KEYS[2]}: holds the bytes of {KEYS[3]}; the two were swapped or one was copied"
    assert lines[3] == f"{KEYS[3]}: is missing, the manifest names it"
    assert lines[4].startswith("data/train-00000-of-00009.parquet: foreign object of 8 bytes")
    assert len(lines) == 5


def test_sizes_tell_what_is_lost_or_cut_and_no_shard_is_read(
    url: str, store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the listing alone: a missing shard, one of another size and a stranger are told."""
    assert verify(url, sizes_only=True) == []
    data = store.get(KEYS[0])
    store.put(KEYS[0], data[:-1], overwrite=True)
    store.put(KEYS[1], b"x" * manifest.shards[1].num_bytes, overwrite=True)  # which sizes do not tell
    store.delete(KEYS[3])
    store.put("data/train-00000-of-00009.parquet", b"stranger")
    read, get = list[str](), MemoryStore.get
    monkeypatch.setattr(MemoryStore, "get", lambda self, key, **part: read.append(key) or get(self, key, **part))
    seen: list[tuple[int, int]] = []
    lines = [
        str(fault) for fault in verify(url, sizes_only=True, on_shard=lambda done, total: seen.append((done, total)))
    ]
    assert lines == [
        f"{KEYS[0]}: has {len(data) - 1} bytes, the manifest says {len(data)}",
        f"{KEYS[3]}: is missing, the manifest names it",
        "data/train-00000-of-00009.parquet: foreign object of 8 bytes; only the manifest's shards may lie below data/",
    ]
    assert sorted(read) == sorted([MANIFEST_KEY, SUCCESS_KEY, PLAN_KEY])
    assert seen == [(4, 4)]


def test_sizes_of_shards_with_files_beside_them(url: str, store: Store) -> None:
    """A lost image and one of another size are faults of their shard."""
    fake.publish(url, fake.make_plan(num_samples=20, samples_per_shard=10, format="files"))
    assert verify(url, sizes_only=True) == []
    first, *_, last = (info for info in store.list("data/") if info.key.endswith(".png"))
    store.delete(first.key)
    store.put(last.key, b"", overwrite=True)
    lost, cut = verify(url, sizes_only=True)
    assert lost.problem == "lacks 1 of the 10 files beside it"
    assert re.fullmatch(r"has \d+ bytes, the manifest says \d+", cut.problem)


def test_plan_beside_the_data_must_be_the_manifests(url: str, store: Store, manifest: Manifest) -> None:
    """A plan.json that was replaced or removed is a fault that names the field that differs."""
    store.put(PLAN_KEY, fake.make_plan(seed=7).canonical().encode(), overwrite=True)
    assert verify(url) == [Fault(PLAN_KEY, "differs from the plan in the manifest: seed: 0 in the manifest, 7 there")]
    store.delete(PLAN_KEY)
    assert verify(url) == [Fault(PLAN_KEY, "is missing")]


def _write(plan: Plan, task: Task, batch: SampleBatch, schema: ImageSchema | None = None) -> bytes:
    schema = schema or plan.image_schema
    writer = formats.make(plan.format, schema, codecs.make(plan.codec, schema)).writer(plan.provenance(task))
    writer.write(batch)
    return writer.close()


def _samples(plan: Plan, task: Task) -> SampleBatch:
    return fake.samples_of(plan.image_schema, np.arange(task.first_index, task.first_index + task.num_samples))


def _short(plan: Plan, task: Task) -> bytes:
    batch = _samples(plan, task)
    assert batch.labels is not None
    return _write(plan, task, SampleBatch(batch.sample_index[1:], batch.pixels[1:], batch.labels[1:]))


def _shuffled(plan: Plan, task: Task) -> bytes:
    batch = _samples(plan, task)
    return _write(plan, task, SampleBatch(batch.sample_index[::-1].copy(), batch.pixels, batch.labels))


def _bad_label(plan: Plan, task: Task) -> bytes:
    batch = _samples(plan, task)
    wider = plan.image_schema.model_copy(update={"num_classes": 9, "class_names": ()})
    return _write(plan, task, SampleBatch(batch.sample_index, batch.pixels, np.full(len(batch), 8)), wider)


def _foreign(plan: Plan, task: Task) -> bytes:
    return fake.shard_bytes(fake.make_plan(seed=1), task)


def _no_shard(plan: Plan, task: Task) -> bytes:
    return b"not a shard"


@pytest.mark.parametrize(
    ("make_shard", "problem"),
    [
        (_short, "Parquet shard: it has 14 rows and says that it has 15"),
        (_shuffled, "row 0 has sample_index 14, expected 0"),
        (_bad_label, r"sample 0 has label 8, outside \[0, 3\)"),
        (_foreign, "says plan_id '[0-9a-f]{16}', the plan says '[0-9a-f]{16}'"),
        (_no_shard, "Parquet shard: cannot be opened: .*"),
    ],
)
def test_shard_that_was_written_wrong_is_found(
    url: str, make_shard: Callable[[Plan, Task], bytes], problem: str
) -> None:
    """Shards whose digests match the manifest are still checked for rows, order, labels and provenance."""
    plan = fake.make_plan(num_samples=15)
    fake.publish(url, plan, make_shard=make_shard)
    (fault,) = verify(url)
    assert fault.key == plan.shard_key(0)
    assert re.fullmatch(problem, fault.problem)


def test_a_manifest_beyond_any_reason_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an object under the manifest's key no more is fetched than a manifest can have."""
    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, fake.make_plan(num_samples=20))
    size = len(open_store(url).get(MANIFEST_KEY))
    monkeypatch.setattr("genworker.bulk.manifest.MAX_MANIFEST_BYTES", size)
    assert len(open_dataset(url)) == 20
    monkeypatch.setattr("genworker.bulk.manifest.MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(DatasetError, match=f"_manifest.json: has more than {size - 1} bytes"):
        open_dataset(url)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_does_not_inherit_what_a_thread_has_locked(url: str, manifest: Manifest) -> None:
    """A DataLoader forks whatever other threads are doing."""
    dataset = open_dataset(url)
    assert dataset[7].index == 7
    with dataset._lock:  # as by another thread, in the middle of a read
        child = os.fork()
        if child == 0:
            os._exit(int(dataset[7].index != 7))
    for _ in range(400):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0

"""Published tar shards as WebDataset, Hugging Face, tar and our own commands see them, and hostile ones."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import uuid
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from genworker import codecs, formats
from genworker.bulk import ledger
from genworker.cli.look import describe, make_sheet
from genworker.errors import DatasetError
from genworker.formats import webdataset
from genworker.reading import open_dataset, verify
from genworker.schema import ImageSchema, SampleBatch
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM = 50
PROVENANCE = {"plan_id": "0123456789abcdef", "first_index": "0", "num_samples": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published dataset of PNG images in tar shards, control objects included."""
    fake.publish(str(tmp_path / "set"), fake.make_plan(num_samples=NUM, format="webdataset"), num_receipt_copies=3)
    return tmp_path / "set"


def test_the_bytes_of_a_shard_are_those_of_the_layout() -> None:
    """A shard of layout 1 has these bytes on every machine, with any Python: changing them needs a new `library` text."""
    schema = ImageSchema(channels=1, height=2, width=2, num_classes=3)
    writer = formats.make("webdataset", schema, codecs.make("raw", schema)).writer(PROVENANCE)
    writer.write(SampleBatch(np.arange(2), np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1), np.array([2, 0])))
    data = writer.close()
    assert len(data) == 10240
    assert webdataset.WebDatasetFormat.library == "ustar 1"
    assert hashlib.sha256(data).hexdigest() == "c3be4f51d48782d426612f29903aa9a505c02dc098e1f1a6026690bd851c957f"


def test_tar_sees_plain_files_that_never_change(folder: Path) -> None:
    """Python's tarfile sees one image and one label per sample, side by side, with fixed owner, mode and time."""
    shards = sorted((folder / "data").iterdir())
    assert [path.name for path in shards] == [f"train-{index:05d}-of-00004.tar" for index in range(4)]
    with tarfile.open(shards[1]) as tar:
        members = tar.getmembers()
        assert '"first_index":"15"' in tar.pax_headers["comment"]
        assert [member.name for member in members[:3]] == ["000000000015.png", "000000000015.cls", "000000000016.png"]
        assert len(members) == 30
        for member in members:
            assert member.isreg()
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
            assert member.mode == 0o644
        label = tar.extractfile("000000000016.cls")
        assert label is not None
        assert label.read() == b"2"


def test_the_systems_tar_lists_a_shard_without_a_word_of_warning(folder: Path) -> None:
    """GNU tar (or what is called so here) unpacks a shard and has nothing to complain about."""
    shard = folder / "data" / "train-00003-of-00004.tar"
    done = subprocess.run(["tar", "-xf", shard, "-C", folder.parent], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert len(list(folder.parent.glob("*.png"))) == len(list(folder.parent.glob("*.cls"))) == 5


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves closing to the interpreter
def test_webdataset_sees_every_sample_once(folder: Path) -> None:
    """The webdataset library, by brace pattern, gives every image and label in order, and nothing else."""
    import webdataset as wds

    pattern = str(folder / "data" / "train-{00000..00003}-of-00004.tar")
    rows = list(wds.WebDataset(pattern, shardshuffle=False).decode("rgb8"))
    gc.collect()  # here, where the warning about it is ignored, and not in another test
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM))
    assert expected.labels is not None
    assert [row["__key__"] for row in rows] == [f"{index:012d}" for index in range(NUM)]
    assert [row["cls"] for row in rows] == expected.labels.tolist()
    for row, pixels in zip(rows, expected.pixels, strict=True):
        assert {key for key in row if not key.startswith("__")} == {"png", "cls"}
        np.testing.assert_array_equal(row["png"], pixels)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_latents_and_scores(tmp_path: Path) -> None:
    """The webdataset library's own decoders give latents as arrays and scores as JSON."""
    import webdataset as wds

    plan = fake.make_plan(format="webdataset", columns=("label", "latents", "score"))
    fake.publish(str(tmp_path), plan)
    rows = list(wds.WebDataset(str(tmp_path / plan.shard_key(1)), shardshuffle=False).decode("rgb8"))
    gc.collect()
    expected = fake.samples_of(fake.SCHEMA, np.arange(15, 30), plan.extras)
    assert expected.latents is not None
    assert expected.scores is not None
    for row, latents, score in zip(rows, expected.latents, expected.scores, strict=True):
        assert {key for key in row if not key.startswith("__")} == {"png", "cls", "latents.npy", "json"}
        np.testing.assert_array_equal(row["latents.npy"], latents)
        assert np.float32(row["json"]["score"]) == score


@pytest.mark.parametrize(("codec", "field", "streaming"), [("png", "png", True), ("jpeg", "jpg", False)])
def test_hugging_face_sees_every_sample_once(tmp_path: Path, codec: str, field: str, streaming: bool) -> None:
    """load_dataset(folder) picks its webdataset builder by itself and gives pictures and labels, without a network."""
    folder = tmp_path / "set"
    fake.publish(str(folder), fake.make_plan(format="webdataset", codec=codec), num_receipt_copies=3)
    script = f"""
import sys
import numpy as np
from datasets import Image, load_dataset
from tests.fakes import dataset as fake
rows = load_dataset(sys.argv[1], streaming={streaming})
assert list(rows) == ["train"], rows
assert set(rows["train"].features) == {{"{field}", "cls", "__key__", "__url__"}}, rows["train"].features
assert rows["train"].features["{field}"] == Image()
found = list(rows["train"])
expected = fake.samples_of(fake.SCHEMA, np.arange(50))
assert [row["__key__"] for row in found] == [f"{{index:012d}}" for index in range(50)]
assert [int(row["cls"]) for row in found] == expected.labels.tolist()
for row, pixels in zip(found, expected.pixels, strict=True):
    seen = np.asarray(row["{field}"])
    assert seen.shape == pixels.shape
    assert {codec != "png"} or (seen == pixels).all()
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment)


def test_our_own_commands_see_tar_shards_as_any_others(folder: Path) -> None:
    """open, verify, info, sheet and the adoption of a shard without receipt work as for Parquet."""
    url = str(folder)
    dataset = open_dataset(url)
    np.testing.assert_array_equal(dataset[31].pixels, fake.pixels_of(fake.SCHEMA, np.array([31]))[0])
    assert verify(url) == []
    assert describe(url)["format"] == "webdataset, png"
    assert make_sheet(url, 4, 0, None).width > 100
    store, plan = open_store(url), dataset.plan
    receipt = ledger.adopt(store, plan, plan.task(2))
    assert receipt.sha256 == dataset.manifest.shards[2].sha256
    store.put(plan.shard_key(2), fake.shard_bytes(plan, plan.task(1)), overwrite=True)
    with pytest.raises(DatasetError, match="was not written by this job"):
        ledger.adopt(store, plan, plan.task(2))


def test_shard_written_wrong_is_found_by_verify() -> None:
    """Tar shards whose digests match are checked for order and labels as Parquet shards are."""

    def shuffled(plan: fake.Plan, task: fake.Task) -> bytes:
        writer = plan.open_format().writer(plan.provenance(task))
        batch = fake.samples_of(plan.image_schema, np.arange(task.num_samples)[::-1].copy())
        writer.write(batch)
        return writer.close()

    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, fake.make_plan(num_samples=15, format="webdataset"), make_shard=shuffled)
    (fault,) = verify(url)
    assert fault.problem == "row 0 has sample_index 14, expected 0"


def retarred(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """A shard of two samples whose second image's header was changed, with all checksums made right again."""
    writer = formats.make("webdataset", fake.SCHEMA, codecs.make("png", fake.SCHEMA)).writer(PROVENANCE)
    writer.write(fake.samples_of(fake.SCHEMA, np.arange(2)))
    data = bytearray(writer.close())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        first = tar.getmembers()[0].offset
        member = tar.getmembers()[2]
    at = member.offset
    change(member)
    data[at : at + 512] = member.tobuf(tarfile.USTAR_FORMAT)[:512]
    length = data[:first].index(b'"crc32":"') + 9
    data[length : length + 8] = b"%08x" % zlib.crc32(data[first:])
    return bytes(data)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", "../../etc/passwd", "member '../../etc/passwd' at byte .* is none of a shard"),
        ("name", "/000000000001.png", "is none of a shard"),
        ("name", "sub/000000000001.png", "is none of a shard"),
        ("name", "000000000001.PNG", "is none of a shard"),
        ("name", "000000000001.json", "stands where an image .* is due"),
        ("name", "000000000001.cls", "stands where an image .* is due"),
        ("name", "000000000007.png", "sample 000000000007 has no label"),
        ("type", tarfile.SYMTYPE, "is no plain file"),
        ("type", tarfile.LNKTYPE, "is no plain file"),
        ("type", tarfile.CHRTYPE, "is no plain file"),
        ("mode", 0o4755, "is no plain file"),
        ("mtime", 1, "is no plain file"),
        ("size", 2**32, "is none of a shard"),
        ("size", 4000, "member"),
    ],
)
def test_hostile_members_are_refused(field: str, value: object, problem: str) -> None:
    """Paths, links, devices, foreign names and false sizes are refused even where every checksum is right."""
    maker = formats.make("webdataset", fake.SCHEMA, codecs.make("png", fake.SCHEMA))
    assert len(maker.reader(retarred(lambda _member: None)).sample_indices()) == 2
    with pytest.raises(DatasetError, match=problem):
        maker.reader(retarred(lambda member: setattr(member, field, value)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 10240,
        b"PK\x03\x04" * 3000,
        b"\0" * 512 + b"99 comment=" + b"[" * 60000 + b"\n",
        b"\0" * 512 + b'30 comment={"genworker":{"crc32":"zz"}}\n',
        b"\0" * 512 + b'30 comment={"genworker":{"crc32":"' + b"f" * 5000 + b'","provenance":{}}}\n',
    ],
)
def test_what_is_no_shard_is_refused(data: bytes) -> None:
    """Empty, foreign and forged beginnings are a DatasetError, whatever they promise."""
    with pytest.raises(DatasetError, match="WebDataset shard"):
        formats.make("webdataset", fake.SCHEMA, codecs.make("png", fake.SCHEMA)).reader(data)


def test_a_tar_file_of_somebody_else_is_refused() -> None:
    """A sound tar file without our header is no shard of a dataset."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo("000000000000.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(struct.pack(">I", 7)))
    with pytest.raises(DatasetError, match="does not begin as shards of genworker do"):
        formats.make("webdataset", fake.SCHEMA, codecs.make("png", fake.SCHEMA)).reader(sink.getvalue())

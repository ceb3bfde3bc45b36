"""Tar shards are read by their headers, whatever wrote them: the webdataset library, tar programs, genworker."""

from __future__ import annotations

import gc
import io
import itertools
import json
import struct
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from genworker import codecs, formats
from genworker.errors import SourceError, UsageError
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources import tar_index
from genworker.sources.tar import members
from genworker.sources.tar_samples import Rules
from genworker.sources.webdataset import WebDatasetConfig, WebDatasetSource
from genworker.stores import open_store
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Iterable


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    """A tar file as Python's own library writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pairs(*numbers: int) -> list[tuple[str, bytes]]:
    """A picture and a label for each number: the pixel value is the number, the label its last digit."""
    return [entry for n in numbers for entry in ((f"{n:06}.png", picture(n)), (f"{n:06}.cls", b"%d" % (n % 10)))]


def source(url: Path | str, **more: Any) -> WebDatasetSource:
    return WebDatasetSource(WebDatasetConfig(url=str(url), **{"image_size": 8, "channels": 1, **more}))


def values(source_: WebDatasetSource, *indices: int) -> list[int]:
    batch = source_.read(np.array(indices or range(len(source_)), np.int64))
    return [int(v) for v in batch.pixels[:, 4, 4, 0]]


def labels(source_: WebDatasetSource) -> list[int] | None:
    found = source_.read(np.arange(len(source_))).labels
    return None if found is None else found.tolist()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves closing to the interpreter
def test_what_the_webdataset_library_writes_is_read(tmp_path: Path) -> None:
    """Shards of webdataset's own ShardWriter, with encoded images, classes and other fields, are read as it reads them."""
    with webdataset.ShardWriter(str(tmp_path / "train-%05d.tar"), maxcount=4, verbose=0) as writer:
        for n in range(10):
            pixels = np.full((8, 8, 3), 20 * n, np.uint8)
            writer.write({"__key__": f"folder/{n:04}", "png": pixels, "cls": n % 3, "json": {"label": 99}, "txt": "x"})
    found = source(tmp_path, channels=3)
    assert values(found) == [20 * n for n in range(10)]
    assert labels(found) == [n % 3 for n in range(10)]
    assert found.schema.num_classes == 3
    pipeline = webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False).decode("rgb8")
    theirs = [(int(sample["png"][0, 0, 0]), sample["cls"]) for sample in pipeline]
    gc.collect()  # here, where the warning about it is ignored, and not in another test
    assert theirs == list(zip(values(found), labels(found) or [], strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_of_all_kinds_are_read(kind: str, tmp_path: Path) -> None:
    """png, jpg and webp, under any case of their extension; other members are passed over."""
    extension = {"PNG": "png", "JPEG": "JPG", "WEBP": "webp"}[kind]
    write_tar(
        tmp_path / "x.tar",
        [
            ("a.txt", b"a text"),
            (f"a.{extension}", picture(100, kind)),
            ("b.txt", b""),
            (f"b.{extension}", picture(50, kind)),
        ],
    )
    found = source(tmp_path)
    assert values(found) == [100, 50]
    assert labels(found) is None


def test_labels_come_from_json(tmp_path: Path) -> None:
    """img2dataset's layout: jpg, txt and json; the label is a key of the JSON, and absent it the data is unlabelled."""
    files = []
    for n in range(4):
        about = json.dumps({"label": n % 2, "kind": 3 - n, "caption": "x"}).encode()
        files += [(f"{n:09}.jpg", picture(9 * n, "JPEG")), (f"{n:09}.json", about), (f"{n:09}.txt", b"x")]
    write_tar(tmp_path / "labelled" / "00000.tar", files)
    assert labels(source(tmp_path / "labelled")) == [0, 1, 0, 1]
    assert labels(source(tmp_path / "labelled", label_key="kind")) == [3, 2, 1, 0]
    write_tar(tmp_path / "plain" / "00000.tar", [("0.jpg", picture(1, "JPEG")), ("0.json", b'{"caption": "x"}')])
    assert labels(source(tmp_path / "plain")) is None
    with pytest.raises(SourceError, match=r"sample 0: its label is no 'kind' in its JSON; labels are class numbers"):
        source(tmp_path / "plain", label_key="kind")
    for broken in (b'{"label": 1', b"[" * 200_000, b'{"label": 1' + b"0" * 5000 + b"}"):
        write_tar(tmp_path / "broken" / "00000.tar", [("0.jpg", picture(1, "JPEG")), ("0.json", broken)])
        with pytest.raises(SourceError, match=r"sample 0: its label is in JSON that cannot be read; labels are class"):
            source(tmp_path / "broken", label_key="label")


def test_members_can_be_named(tmp_path: Path) -> None:
    """A sample with several images says by extension which one counts; a wrong name is answered with those there are."""
    path = write_tar(
        tmp_path / "x.tar", [("0.input.png", picture(7)), ("0.output.png", picture(9)), ("0.kind", b" 4\n")]
    )
    found = source(path, image_extension="output.png", label_extension="kind", num_classes=6)
    assert (values(found), labels(found), found.schema.num_classes) == ([9], [4], 6)
    with pytest.raises(
        SourceError, match=r"sample 0 has the members \.input\.png, \.output\.png, \.kind and none that"
    ):
        source(path)
    with pytest.raises(SourceError, match=r"and no \.jpg; set image_extension to input\.png or output\.png to"):
        source(path, image_extension="jpg")
    assert values(source(path, image_extension=".input.png", label_extension=".KIND")) == [7]
    with pytest.raises(SourceError, match=r"and no \.in\.png; set image_extension to input\.png or"):
        source(path, image_extension=".in.png")


@pytest.mark.parametrize("extension", ["tif", "gif", "npy"])
def test_images_of_other_kinds_are_to_be_converted(extension: str, tmp_path: Path) -> None:
    """What cannot be decoded is not advised."""
    path = write_tar(tmp_path / "x.tar", [(f"0.{extension}", b"..."), ("0.txt", b"")])
    with pytest.raises(SourceError, match=r"and none that is an image; images are read as png, .*bmp: convert them"):
        source(path)


@pytest.mark.parametrize("num_classes", [None, 12])
def test_a_genworker_dataset_is_read_by_its_manifest(num_classes: int | None, tmp_path: Path) -> None:
    """Shards that genworker wrote come back pixel by pixel, whole datasets only."""
    schema = ImageSchema(channels=3, height=8, width=8, num_classes=3)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    keys = [f"data/train-{part:05}-of-00002.tar" for part in range(2)]
    (tmp_path / "data").mkdir()
    for part, key in enumerate(keys):
        writer = formats.get("webdataset")(schema, codecs.make("png", schema)).writer({"num_samples": "3"})
        rows = np.arange(3 * part, 3 * part + 3)
        writer.write(SampleBatch(rows, pixels[rows], rows % 3))
        (tmp_path / key).write_bytes(writer.close())
    fake.vouch(tmp_path, keys)
    (tmp_path / ".genworker").mkdir()
    (tmp_path / ".genworker" / "plan.json").write_text("{}")
    found = source(tmp_path, channels=3, num_classes=num_classes)
    assert np.array_equal(found.read(np.arange(6)).pixels, pixels)
    assert labels(found) == [0, 1, 2, 0, 1, 2]
    assert found.schema.num_classes == (num_classes or 3)
    (tmp_path / keys[1]).write_bytes((tmp_path / keys[0]).read_bytes())
    found = source(tmp_path, channels=3, num_classes=num_classes)
    assert np.array_equal(found.read(np.arange(3)).pixels, pixels[:3])
    with pytest.raises(SourceError, match=rf"{keys[1]}: has SHA-256 .*, the manifest says .* changed after the job"):
        found.read(np.arange(3, 6))
    (tmp_path / "_manifest.json").unlink()
    with pytest.raises(SourceError, match="without a manifest, so it is unfinished"):
        source(tmp_path)


@pytest.mark.parametrize("block_bytes", [1, 5000, 10**9])
def test_samples_of_all_shards_are_numbered_through(block_bytes: int, tmp_path: Path) -> None:
    """Index i is sample i of the shards in key order, however they are cut; an empty shard has none."""
    write_tar(tmp_path / "b.tar", pairs(14, 15, 16, 17))
    write_tar(tmp_path / "a.tar", pairs(10, 11, 12, 13))
    write_tar(tmp_path / "ab.tar", [])
    found = source(tmp_path, block_bytes=block_bytes)
    assert values(found) == list(range(10, 18))
    assert values(found, 7, 0, 4) == [17, 10, 14]
    assert labels(found) == list(range(8))
    assert len(found.blocks.ends) == {1: 8, 5000: 4, 10**9: 2}[block_bytes]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_kind_of_tar_are_read(format: int, tmp_path: Path) -> None:
    """Names beyond 100 characters stand in a prefix, a GNU record or a pax record; samples start at those."""
    folder = "/".join(["deep" * 6] * 6) if format == tarfile.USTAR_FORMAT else "d\u00fcnn" * 60
    files = [(f"{folder}/{name}", content) for name, content in pairs(1, 2, 3)]
    found = source(write_tar(tmp_path / "x.tar", files, format), block_bytes=1)
    assert values(found) == [1, 2, 3]
    assert labels(found) == [1, 2, 3]


def test_members_are_those_that_tarfile_sees(tmp_path: Path) -> None:
    """Name, place and size of every plain file agree with Python's tarfile; folders, links and devices are passed over."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for n, kind in enumerate(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.AREGTYPE, tarfile.CHRTYPE]
        ):
            member = tarfile.TarInfo(f"{n}" * 120 + ".png")
            member.type, member.linkname = kind, "elsewhere"
            member.size = 700 * n if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    data = path.read_bytes()
    ours = [(m.name, m.start, m.size) for m in members(lambda at, size: data[at : at + size], len(data), "x.tar")]
    with tarfile.open(path) as tar:
        assert ours == [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert len(ours) == 2


def test_a_size_in_base_256_is_read() -> None:
    """GNU tar writes sizes of 8 GiB and more in binary; only headers are asked for, so the file need not be there."""
    member = tarfile.TarInfo("0.png")
    member.size = 2**34
    header = member.tobuf(tarfile.GNU_FORMAT)
    found = list(members(lambda at, size: header[at : at + size], 512 + 2**34, "x.tar"))
    assert [(m.size, m.end) for m in found] == [(2**34, 512 + 2**34)]


def hostile(kind: bytes, size: bytes) -> bytes:
    """One header with a size of any bytes, and a checksum that holds."""
    block = bytearray(512)
    block[:5], block[124:136], block[148:156], block[156:157] = b"0.png", size.ljust(12, b"\0"), b" " * 8, kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [b"-0000001000", b"+1000", b"0b1", b"1_0", b"9", b"1 1"])
@pytest.mark.parametrize("kind", [b"0", b"5", b"x"])
def test_a_size_that_is_no_number_is_damage(kind: bytes, size: bytes) -> None:
    """A sign would send the reader back to where it was, for ever."""
    header = hostile(kind, size)
    found = members(lambda at, count: header[at : at + count] if at >= 0 else b"", 512, "x.tar")
    with pytest.raises(SourceError, match="no tar header at byte 0"):
        list(itertools.islice(found, 10))


@pytest.mark.parametrize("size", ["abc", "", "-512", "9" * 5_000, "1_0"])
def test_a_pax_size_that_is_no_number_is_damage(size: str, tmp_path: Path) -> None:
    """It is told as such, in one line."""
    member = tarfile.TarInfo("0.png")
    member.pax_headers = {"size": size}
    data = member.tobuf(tarfile.PAX_FORMAT)
    with pytest.raises(SourceError, match=r"the pax header at byte 0 (has the size .*|is damaged)"):
        list(members(lambda at, count: data[at : at + count], len(data), "x.tar"))


def test_splits_are_told_by_file_names(tmp_path: Path) -> None:
    """Shards named after splits are told apart."""
    write_tar(tmp_path / "train-00000.tar", pairs(1))
    write_tar(tmp_path / "val-00000.tar", pairs(2))
    write_tar(tmp_path / "test-00000.tar", pairs(3))
    assert values(source(tmp_path)) == [1]
    assert values(source(tmp_path, split="test")) == [3]
    assert values(source(tmp_path / "train-00000.tar")) == [1]


def test_shards_that_are_not_read_are_one_remark(tmp_path: Path) -> None:
    """Compressed shards beside plain ones, and names without a split beside others, are told in one line."""
    for name in ("train-0.tar", "extra-1.tar", "extra-0.tar", "test-0.tar"):
        write_tar(tmp_path / name, pairs(1))
    for name in ("b.tar.gz", "train-1.tgz", "C.TAR", "test-1.tar.gz", "_notes.tar.gz", "labels.csv.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
    found = source(tmp_path)
    assert values(found) == [1]
    assert found.remarks == (
        f"{tmp_path}: files that are not read: 2, extra-0.tar first, because their names tell no split and those of others "
        "do: name them train-....tar to have them read; 3, C.TAR first, because only uncompressed files whose names end in "
        ".tar, in small letters, are read: unpack or rename what is to be used",
    )


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR", "a.tar.zst"])
def test_a_compressed_shard_is_refused_with_what_is_read(name: str, tmp_path: Path) -> None:
    """A compressed file, or a folder or prefix of nothing else, is answered with the rule."""
    write_tar(tmp_path / name, pairs(1))
    store = open_store(f"memory://compressed-{name}")
    store.put(name, b"...")
    for url in (tmp_path / name, tmp_path, store.url, f"{store.url}/{name}"):
        with pytest.raises(SourceError, match=r"only uncompressed files whose names end in \.tar, .* unpack or rename"):
            source(url)


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            [*pairs(1), ("2.png", picture(2))],
            {},
            r"sample 2: has no label \(2\.cls\), and all samples need one: add it",
        ),
        (
            [*pairs(1), ("2.png", b""), ("2.cls", b"boot")],
            {},
            "sample 2: its label is b'boot'; labels are class numbers",
        ),
        (
            [*pairs(1), ("2.png", b""), ("2.cls", b"-1")],
            {},
            "sample 2: its label is -1; labels are class numbers from 0",
        ),
        ([("0.png", picture(1)), ("0.cls", b"-1")], {}, "sample 0: its label is -1; labels are class numbers from 0"),
        (
            [("0.png", picture(1)), ("0.cls", b"-1")],
            {"num_classes": 3},
            "its label is -1; labels are class numbers from",
        ),
        (pairs(3, 7), {"num_classes": 7}, r"sample 000007: its label is 7; labels must lie in \[0, num_classes 7\)"),
        ([("0.png", b"")], {"num_classes": 3}, "num_classes 3: samples have no label; set label_extension"),
        ([*pairs(1), ("2.png", b""), ("2.PNG", b"")], {}, "sample 2 has two members with the same extension"),
        ([("README", b"")], {}, "its 1 tar files hold no samples"),
        (
            [("0.bin", b""), ("0.cls", b"1")],
            {},
            r"members \.bin, \.cls and none .*; generate the dataset with codec png",
        ),
    ],
)
def test_wrong_labels_and_members_are_named(
    files: list[tuple[str, bytes]], settings: dict[str, int], message: str, tmp_path: Path
) -> None:
    """What cannot be trained on is refused with the sample's key."""
    path = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(SourceError, match=message):
        values(source(path, **settings))


def test_corrupt_samples_are_replaced_and_named_by_key(tmp_path: Path) -> None:
    """A sample without an image, or with a broken one, is replaced by the next good one and named so that it can be found."""
    files = [*pairs(1), ("2.png", b"<html>"), ("2.cls", b"2"), ("3.cls", b"3"), *pairs(4)]
    found = source(write_tar(tmp_path / "x.tar", files), block_bytes=1)
    assert values(found) == [1, 4, 4, 4]
    assert labels(found) == [1, 4, 4, 4]
    assert found.corrupt == ["x.tar sample 2", "x.tar sample 3"]
    with pytest.raises(SourceError, match=r"x\.tar sample 2; the last one cannot be decoded"):
        values(source(tmp_path, max_corrupt=0))


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    """A shard that is cut short, overwritten in the middle, or compressed is refused, never read up to the damage."""
    path = write_tar(tmp_path / "x.tar", pairs(*range(20)))
    whole = path.read_bytes()
    header = whole.index(b"000007.png")
    path.write_bytes(whole[:header] + b"\1" * 512 + whole[header + 512 :])
    with pytest.raises(SourceError, match=rf"x\.tar: there is no tar header at byte {header}; the file is damaged"):
        source(tmp_path)
    path.write_bytes(whole[: header + 540])
    with pytest.raises(SourceError, match=rf"x\.tar: is cut short: the member at byte {header} ends at byte"):
        source(tmp_path)
    path.write_bytes(whole[: header + 100])
    with pytest.raises(SourceError, match=f"no tar header at byte {header}"):
        source(tmp_path)
    path.write_bytes(struct.pack("<2sB", b"\x1f\x8b", 8) + whole)
    with pytest.raises(SourceError, match="no tar header at byte 0; the file is damaged, or compressed"):
        source(tmp_path)


def test_a_shard_that_changes_is_noticed(tmp_path: Path) -> None:
    """A shard that was replaced while the source was open, or since its index was made, is an error and not other images."""
    path = write_tar(tmp_path / "x.tar", pairs(*range(20)))
    opened = source(path, block_bytes=1)
    write_tar(path, pairs(*range(3)))
    with pytest.raises(SourceError, match=r"x\.tar: has changed since it was opened"):
        values(opened, 19)


def test_the_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index, the next opening reads the headers of no shard but the first; the images are the same."""
    for n in range(3):
        write_tar(tmp_path / "data" / f"{n}.tar", pairs(*range(10 * n, 10 * n + 10)))
    plain = source(tmp_path / "data", block_bytes=4000)
    index = str(tmp_path / "index.json")
    made = source(tmp_path / "data", block_bytes=4000, index=index)
    assert Path(index).is_file()

    def no_scan(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the shards are scanned again")

    monkeypatch.setattr(tar_index, "scan", no_scan)
    again = source(tmp_path / "data", block_bytes=4000, index=index)
    assert values(again) == values(made) == values(plain) == list(range(30))
    assert again.digest() == made.digest() == plain.digest()
    assert again.schema == plain.schema
    with pytest.raises(SourceError, match=r"was made of other shards of .*, or with other settings; delete it"):
        source(tmp_path / "data", block_bytes=5000, index=index)
    write_tar(tmp_path / "data" / "4.tar", pairs(1))
    with pytest.raises(SourceError, match="was made of other shards"):
        source(tmp_path / "data", block_bytes=4000, index=index)
    Path(index).write_text("{}")
    with pytest.raises(SourceError, match=r"index\.json: is no index of tar shards"):
        source(tmp_path / "data", block_bytes=4000, index=index)


@pytest.mark.parametrize(
    "index", ["", "index", "data/idx.tar", "s3://bucket/index", "index.json/", "a.JSON", "s3://a.json"]
)
def test_an_index_that_could_be_taken_for_a_shard_is_refused(index: str) -> None:
    """The name of the index has to end in .json, which is said when the spec is read."""
    with pytest.raises(UsageError, match=rf"key 'index' is '{index}': must name an object that ends in \.json"):
        WebDatasetConfig.parse({"image_size": 8, "url": "data", "index": index}, origin="spec")


def test_only_the_wanted_bytes_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large members the headers alone are read at the start, and reading one image fetches its stretch."""
    store = open_store("memory://tar-only-the-wanted-bytes")
    noise = np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(8):
            for name, content in ((f"{n}.png", picture(n)), (f"{n}.depth", noise.bytes(4_000_000))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    store.put("x.tar", buffer.getvalue())
    fetched = []

    class CountingStore(MemoryStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            data = super().get(key, start=start, length=length)
            fetched.append(len(data))
            return data

    monkeypatch.setattr("genworker.sources.shard_files.open_store", CountingStore)
    found = source(store.url, block_bytes=1)
    assert sum(fetched) < len(buffer.getvalue()) / 5
    assert max(fetched) == 2**18
    fetched.clear()
    assert values(found, 5) == [5]
    assert 4_000_000 < sum(fetched) < 4_010_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[0, 10**6, 2]]}, "a.tar has [0-9]+ bytes, and no 2 samples in"),
        ({"spans": [[-512, 512, 1]]}, "is no index of tar shards"),
        ({"spans": [[0, 1024, 10**30]]}, "is no index of tar shards"),
        ({"spans": [[0, 1024, 1], [0, 1024, 1]]}, "is no index of tar shards"),
        ({"largest_label": 2**62}, "is no index of tar shards"),
        ({"largest_label": 2**24}, "its labels make num_classes 16777217 .* less than or equal to 16777216"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Places outside a shard, more samples than it has room for and labels beyond reason are one clean error."""
    write_tar(tmp_path / "a.tar", pairs(1, 2))
    index = tmp_path / "index.json"
    source(tmp_path, index=str(index))
    kept = json.loads(index.read_text())
    kept["shards"][0] |= change
    index.write_text(json.dumps(kept))
    with pytest.raises(SourceError, match=message):
        source(tmp_path, index=str(index))


def test_the_padding_at_the_end_may_be_missing(tmp_path: Path) -> None:
    """A file that ends with the content of its last member has all its samples."""
    path = write_tar(tmp_path / "a.tar", pairs(1, 2))
    whole = path.read_bytes()
    index = tar_index.scan(
        open_store(str(tmp_path)), next(open_store(str(tmp_path)).list()), Rules(None, "cls", "label"), 1, labels=True
    )
    path.write_bytes(whole[: index.spans[-1].stop - 1])
    for _ in range(2):  # the index is made, and read again
        assert values(source(tmp_path, index=str(tmp_path / "index.json"))) == [1, 2]


def test_a_label_beyond_reason_is_refused(tmp_path: Path) -> None:
    """Without num_classes the largest label decides, and there is a largest number of classes."""
    write_tar(tmp_path / "a.tar", [("0.png", picture(1)), ("0.cls", b"2147483647")])
    with pytest.raises(SourceError, match="its labels make num_classes 2147483648"):
        source(tmp_path)


@pytest.mark.parametrize(
    "label", [("cls", b"cat"), ("json", b'{"label": "cat"}'), ("json", b'{"label": 1' + b"0" * 30 + b"}")]
)
def test_data_whose_labels_are_none_can_be_trained_on_without(label: tuple[str, bytes], tmp_path: Path) -> None:
    """Words, and numbers beyond any class."""
    extension, content = label
    write_tar(tmp_path / "a.tar", [("0.png", picture(3)), (f"0.{extension}", content)])
    with pytest.raises(SourceError, match=r"labels are class numbers .*label_extension: none"):
        source(tmp_path)
    opened = source(tmp_path, label_extension="none")
    assert labels(opened) is None
    assert values(opened, 0) == [3]

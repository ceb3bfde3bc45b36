"""Encoded images in Parquet are read row by row, whatever wrote them, and fetched no more than needed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker import codecs, formats
from genworker.errors import SourceError
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources import parquet_files, shard_files
from genworker.sources.parquet import ParquetConfig, ParquetSource
from genworker.sources.shard_files import RangeFile
from genworker.stores import open_store
from genworker.stores.local import LocalStore
from tests.fakes import dataset as fake
from tests.memory import growth

if TYPE_CHECKING:
    from pathlib import Path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, Any], *, class_names: list[str] | None = None, **options: Any) -> Path:
    table = pa.table(columns)
    if class_names is not None:
        features = {"label": {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def rows(*numbers: int) -> dict[str, Any]:
    """Hugging Face's layout: the pixel value is the number, the label its last digit."""
    return {"image": [{"bytes": png(n), "path": None} for n in numbers], "label": [n % 10 for n in numbers]}


def source(url: Path, **more: Any) -> ParquetSource:
    return ParquetSource(ParquetConfig(url=str(url), **{"image_size": 8, "channels": 1, **more}))


def values(source_: ParquetSource, *indices: int) -> list[int]:
    batch = source_.read(np.array(indices or range(len(source_)), np.int64))
    return [int(v) for v in batch.pixels[:, 4, 4, 0]]


def labels(source_: ParquetSource) -> list[int] | None:
    found = source_.read(np.arange(len(source_))).labels
    return None if found is None else found.tolist()


def test_rows_of_all_files_and_row_groups_are_numbered_through(tmp_path: Path) -> None:
    """Index i is row i of the files in key order, across row groups, an empty file included."""
    write(tmp_path / "data" / "b.parquet", rows(14, 15, 16, 17), row_group_size=3)
    write(tmp_path / "data" / "a.parquet", rows(10, 11, 12, 13), row_group_size=2)
    write(tmp_path / "data" / "ab.parquet", rows(1), row_group_size=2)
    pq.write_table(pq.read_table(tmp_path / "data" / "ab.parquet").slice(0, 0), tmp_path / "data" / "ab.parquet")
    found = source(tmp_path)
    assert values(found) == list(range(10, 18))
    assert values(found, 7, 0, 4) == [17, 10, 14]
    assert labels(found) == list(range(8))


def test_one_file_can_be_named(tmp_path: Path) -> None:
    """A URL that ends in .parquet is that file alone."""
    write(tmp_path / "other.parquet", rows(1))
    path = write(tmp_path / "one file.parquet", rows(2, 3))
    assert values(source(path)) == [2, 3]
    assert values(ParquetSource(ParquetConfig(url=path.as_uri(), image_size=8, channels=1))) == [2, 3]
    with pytest.raises(SourceError, match=r"absent\.parquet: there is no such file"):
        source(tmp_path / "absent.parquet")


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_images_too(type_: Any, tmp_path: Path) -> None:
    """An image column may be plain binary, under another usual name, without labels."""
    found = source(write(tmp_path / "x.parquet", {"img": pa.array([png(5), png(6)], type_), "text": ["a", "b"]}))
    assert values(found) == [5, 6]
    assert labels(found) is None
    assert found.schema.num_classes == 0


def test_columns_can_be_named(tmp_path: Path) -> None:
    """Any image and label column will do when it is named, and a wrong name is answered with the right ones."""
    path = write(
        tmp_path / "x.parquet", {"photo": [png(5), png(6)], "kind": pa.array([0, 3], pa.uint8()), "label": ["a", "b"]}
    )
    found = source(path, image_column="photo", label_column="kind")
    assert (values(found), labels(found), found.schema.num_classes) == ([5, 6], [0, 3], 4)
    with pytest.raises(
        SourceError, match="no column called image or img; set image_column to one of photo, kind, label"
    ):
        source(path)
    with pytest.raises(SourceError, match="label_column 'sort': there is no such column; it has photo, kind, label"):
        source(path, image_column="photo", label_column="sort")
    with pytest.raises(SourceError, match="column 'label' is string; labels are class numbers"):
        source(path, image_column="photo")
    with pytest.raises(SourceError, match="column 'kind' is uint8; images are read from encoded bytes"):
        source(path, image_column="kind", label_column="kind")


def test_class_names_come_from_hugging_faces_metadata(tmp_path: Path) -> None:
    """ClassLabel names are the classes, also those that no row has."""
    found = source(write(tmp_path / "x.parquet", rows(0, 1), class_names=["a", "b", "c"]))
    assert found.schema.class_names == ("a", "b", "c")
    assert found.schema.num_classes == 3


@pytest.mark.parametrize("names", ["abc", {"a": 0, "b": 1}, ["a", 1], 3, None])
def test_names_that_are_no_list_of_words_name_nothing(names: Any, tmp_path: Path) -> None:
    """Foreign metadata may say anything: letters of a word are no classes."""
    table = pa.table(rows(0, 1))
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(described, tmp_path / "x.parquet")
    assert source(tmp_path).schema.num_classes == 2
    assert source(tmp_path).schema.class_names == ()


@pytest.mark.parametrize("statistics", [True, False])
def test_without_names_the_largest_label_counts(statistics: bool, tmp_path: Path) -> None:
    """The number of classes is the largest label of all row groups + 1, with and without statistics in the footer."""
    write(tmp_path / "a.parquet", rows(7, 1, 2, 3), row_group_size=2, write_statistics=statistics)
    write(tmp_path / "b.parquet", rows(4, 5), write_statistics=statistics)
    assert source(tmp_path).schema.num_classes == 8
    assert source(tmp_path, num_classes=10).schema.num_classes == 10


@pytest.mark.parametrize(
    ("label", "settings", "message"),
    [
        ([0, None], {}, "column label: holds 1 nulls"),
        ([0, -1], {}, "column label: holds -1; labels are class numbers from 0: correct them"),
        ([0, -1], {"num_classes": 1}, r"column label: holds -1; labels must lie in \[0, num_classes 1\)"),
        ([0, 5], {"num_classes": 5}, "column label: holds 5"),
    ],
)
def test_labels_outside_are_refused(label: list[int], settings: dict[str, int], message: str, tmp_path: Path) -> None:
    """A missing, negative or too large label names the file and the value instead of reaching the network."""
    path = write(tmp_path / "x.parquet", {"image": [png(1), png(2)], "label": label})
    with pytest.raises(SourceError, match=message):
        values(source(path, **settings), 0)


def test_splits_are_told_by_file_names(tmp_path: Path) -> None:
    """Files and folders named after splits are told apart as Hugging Face does; other files alone are training data."""
    write(tmp_path / "data" / "train-00000-of-00001.parquet", rows(1))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", rows(2))
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", rows(3))
    assert values(source(tmp_path)) == [1]
    assert values(source(tmp_path, split="test")) == [2]
    plain = write(tmp_path / "plain" / "latest.parquet", rows(4))
    assert values(source(plain)) == [4]
    with pytest.raises(SourceError, match="has no split 'test': no file name tells a split"):
        source(plain, split="test")
    with pytest.raises(SourceError, match="has no split 'train': its files are of test; set split"):
        source(tmp_path / "data" / "test-00000-of-00001.parquet")


def test_files_that_tell_no_split_beside_others_are_a_remark(tmp_path: Path) -> None:
    """Files are left out where others tell a split, which is said; those of other splits are no surprise."""
    for n, name in enumerate(("train-0", "validation-0", "test-0")):
        write(tmp_path / f"{name}.parquet", rows(n))
    assert source(tmp_path).remarks == ()
    write(tmp_path / "extra-0.parquet", rows(3))
    for split, value in (("train", 0), ("test", 2)):
        found = source(tmp_path, split=split)
        assert values(found) == [value]
        assert found.remarks == (
            f"{tmp_path}: files that are not read: 1, extra-0.parquet first, because their names tell no split and those of "
            f"others do: name them {split}-....parquet to have them read",
        )


@pytest.mark.parametrize("name", ["up.PARQUET", "x.parquet.gz", "x.Parquet.zst"])
def test_a_file_in_another_guise_is_refused_with_what_is_read(name: str, tmp_path: Path) -> None:
    """A name in capitals and a compressed file are answered with the rule, alone and in a folder."""
    write(tmp_path / name, rows(1))
    for url in (tmp_path / name, tmp_path):
        with pytest.raises(
            SourceError, match=r"only uncompressed files whose names end in \.parquet, .* unpack or rename"
        ):
            source(url)


def test_a_genworker_dataset_is_read_by_its_manifest(tmp_path: Path) -> None:
    """Only the manifest's shards are read, a lost one is named, and without a manifest the dataset is unfinished."""
    for n in range(3):
        write(tmp_path / "data" / f"train-{n:05}-of-00002.parquet", rows(n))
    (tmp_path / ".genworker").mkdir()
    (tmp_path / ".genworker" / "plan.json").write_text("{}")
    with pytest.raises(SourceError, match="without a manifest, so it is unfinished"):
        source(tmp_path)
    keys = [f"data/train-{n:05}-of-00002.parquet" for n in range(2)]
    fake.vouch(tmp_path, keys)
    assert values(source(tmp_path)) == [0, 1]
    (tmp_path / keys[1]).unlink()
    with pytest.raises(SourceError, match=f"1 shards of the manifest are gone, {keys[1]} first"):
        source(tmp_path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A genworker dataset of two shards, as far as sources look at it."""
    keys = [f"data/train-{n:05}-of-00002.parquet" for n in range(2)]
    for n, key in enumerate(keys):
        write(tmp_path / key, rows(3 + n))  # both have the same size
    fake.vouch(tmp_path, keys)
    return tmp_path


def test_another_shard_than_the_manifests_is_refused_before_its_first_image(published: Path) -> None:
    """A shard of the right size and other bytes is found by its SHA-256, one of another size at once; others are read."""
    first, second = sorted((published / "data").iterdir())
    good = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert second.stat().st_size == len(good)
    found = source(published, num_classes=10)
    assert values(found, 0) == [3]
    for _ in range(2):
        with pytest.raises(
            SourceError, match=rf"{second.name}: has SHA-256 .*, the manifest says .* changed after the job"
        ):
            values(found, 1)
    second.write_bytes(good + b"x")
    with pytest.raises(SourceError, match=rf"{second.name}: has {len(good) + 1} bytes, the manifest says {len(good)}"):
        source(published)


def test_a_shard_is_compared_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is asked for when a shard is first read, not for each of its images, nor for shards that nobody reads."""
    asked: list[str] = []
    head = LocalStore.head
    monkeypatch.setattr(LocalStore, "head", lambda store, key: asked.append(key) or head(store, key))
    found = source(published, num_classes=10, cache_bytes=0)
    assert asked == []
    for _ in range(2):
        assert values(found, 0, 0, 1) == [3, 3, 4]
    assert sorted(asked) == [f"data/train-{n:05}-of-00002.parquet" for n in range(2)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("_SUCCESS", None, "without _SUCCESS, so the job stopped at its last step"),
        ("_SUCCESS", "", "none of a genworker dataset"),
        ("_SUCCESS", "{}", "none of a genworker dataset"),
        ("_SUCCESS", '{"manifest_sha256": "0"}', "_manifest.json has SHA-256 [0-9a-f]{64}, _SUCCESS says 0; one"),
        ("_manifest.json", "[]", "none of a genworker dataset"),
        ("_manifest.json", '{"shards": []}', "_manifest.json has SHA-256"),
        ("_manifest.json", '{"shards": [{"key": "a"}]}', "none of a genworker dataset: KeyError"),
        ("_manifest.json", "[" * 100_000, "none of a genworker dataset"),
        ("_manifest.json", "[" * 200_001, "_manifest.json and _SUCCESS have .* bytes; at most 200000 are read"),
    ],
)
def test_a_manifest_that_nothing_vouches_for_is_refused(
    name: str, text: str | None, message: str, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """_SUCCESS has to be there and has to name the manifest's own SHA-256, and neither may be huge."""
    monkeypatch.setattr(shard_files, "_MAX_MANIFEST_BYTES", 200_000)
    if text is None:
        (published / name).unlink()
    else:
        (published / name).write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        source(published)
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_shard_that_genworker_wrote_is_read_without_loss(num_classes: int, tmp_path: Path) -> None:
    """What the parquet format and the png codec write comes back pixel by pixel."""
    schema = ImageSchema(channels=3, height=8, width=8, num_classes=num_classes)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    written = SampleBatch(np.arange(5), pixels, np.arange(5) % 3 if num_classes else None)
    writer = formats.get("parquet")(schema, codecs.make("png", schema)).writer({})
    writer.write(written)
    (tmp_path / "train-0.parquet").write_bytes(writer.close())
    found = source(tmp_path, channels=3)
    assert np.array_equal(found.read(np.arange(5)).pixels, pixels)
    assert labels(found) == (None if written.labels is None else written.labels.tolist())
    assert found.schema.num_classes == num_classes


def test_raw_pixels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """A genworker dataset of raw pixels is refused at once instead of being called corrupt, image by image."""
    schema = ImageSchema(channels=1, height=8, width=8)
    writer = formats.get("parquet")(schema, codecs.make("raw", schema)).writer({})
    writer.write(SampleBatch(np.arange(2), np.zeros((2, 8, 8, 1), np.uint8), None))
    (tmp_path / "train-0.parquet").write_bytes(writer.close())
    with pytest.raises(
        SourceError, match=r"train-0\.parquet: holds raw pixels, not image files; generate .* codec png"
    ):
        source(tmp_path)


def test_corrupt_rows_are_replaced_and_named_by_file_and_row(tmp_path: Path) -> None:
    """A row with broken bytes or none is replaced by the next good one and named so that it can be found."""
    write(tmp_path / "a.parquet", rows(0, 1))
    broken = [{"bytes": png(2), "path": None}, {"bytes": None, "path": "x.png"}, {"bytes": b"no", "path": None}, None]
    write(tmp_path / "b.parquet", {"image": broken, "label": [2, 3, 4, 5]}, row_group_size=1)
    found = source(tmp_path)
    assert values(found) == [0, 1, 2, 0, 0, 0]
    assert found.corrupt == ["b.parquet row 1", "b.parquet row 2", "b.parquet row 3"]
    with pytest.raises(SourceError, match=r"b\.parquet row 1; the last one holds no bytes \(null, or only a path\)"):
        values(source(tmp_path, max_corrupt=0))


@pytest.mark.parametrize("lacking", ["a", "b", "c"])
@pytest.mark.parametrize("asked", [None, "label"])
def test_a_file_without_labels_beside_others_is_refused(lacking: str, asked: str | None, tmp_path: Path) -> None:
    """Whichever file comes first, labels are neither dropped nor made up; the way out is to train without."""
    for n, name in enumerate("abc"):
        write(tmp_path / f"{name}.parquet", {"image": [png(n)]} if name == lacking else rows(n))
    with pytest.raises(SourceError) as caught:
        source(tmp_path, label_column=asked)
    setting = "label_column 'label': " if asked else ""
    assert str(caught.value) == (
        f"{tmp_path}: {setting}1 of 3 files have no column 'label', {lacking}.parquet first, which has image; "
        f"{'b' if lacking == 'a' else 'a'}.parquet has it, and all files need the same columns, or label_column: none"
    )
    found = source(tmp_path, label_column="none")
    assert (values(found), labels(found)) == ([0, 1, 2], None)


@pytest.mark.parametrize(("lacking", "other"), [("a", "b"), ("b", "a")])
def test_a_file_without_images_beside_others_is_refused(lacking: str, other: str, tmp_path: Path) -> None:
    """As for labels, but there is no way without."""
    write(tmp_path / f"{lacking}.parquet", {"text": ["x"]})
    write(tmp_path / f"{other}.parquet", rows(1))
    with pytest.raises(
        SourceError,
        match=rf"1 of 2 files have no column 'image', {lacking}\.parquet first, which has text; .* same columns$",
    ):
        source(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_file_cut_short_is_named(keep: int, tmp_path: Path) -> None:
    """A half-written Parquet file is refused when it is opened, with its name and size."""
    path = write(tmp_path / "x.parquet", rows(*range(20)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=rf"x\.parquet \({keep} bytes\) is no whole Parquet file"):
        source(tmp_path)


def test_a_file_damaged_inside_is_named(tmp_path: Path) -> None:
    """Damage behind a good footer shows up when the row group is read, as an error that names file and row group."""
    path = write(tmp_path / "x.parquet", rows(*range(50)), compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.parquet: row group 0 cannot be read"):
        values(source(tmp_path), 0)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    """A dataset of zero rows cannot be trained on."""
    path = write(tmp_path / "x.parquet", rows(1))
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(SourceError, match="1 Parquet files hold no rows"):
        source(tmp_path)


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_the_size_of_the_cache_changes_no_image(cache_bytes: int, tmp_path: Path) -> None:
    """Row groups that were dropped from the cache are fetched again."""
    write(tmp_path / "x.parquet", rows(*range(20)), row_group_size=3)
    found = source(tmp_path, cache_bytes=cache_bytes)
    order = np.random.default_rng(0).permutation(20).tolist()
    assert values(found, *order) == order
    assert len(found._cache) == (1 if cache_bytes == 0 else 7)


def test_only_the_wanted_bytes_are_fetched(tmp_path: Path) -> None:
    """Reading one image of a remote file fetches its footer and its row group, not the file."""
    store = open_store("memory://only-the-wanted-bytes")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    images = []
    for pixels in noise:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    path = write(tmp_path / "x.parquet", {"image": images}, row_group_size=4, compression="none", use_dictionary=False)
    info = store.put("x.parquet", path.read_bytes())

    class CountingFile(RangeFile):
        fetched = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            CountingFile.fetched += len(data)
            return data

    with pq.ParquetFile(CountingFile(store, info), pre_buffer=True) as file:
        file.read_row_group(3, columns=["image"])
    assert len(b"".join(images[12:16])) < CountingFile.fetched < info.size / 2


def test_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """Where pyarrow would abort on what the footer says of single columns, the file is read or refused all the same."""
    script = """
import sys
from pathlib import Path
from genworker.errors import GenworkerError
from genworker.sources import parquet_files, shard_files
from genworker.sources.parquet import ParquetConfig, ParquetSource
from tests.fakes import dataset as fake
from tests.memory import growth
plan = fake.make_plan(num_samples=20)
data = fake.shard_bytes(plan, plan.task(0))
path = Path(sys.argv[1]) / "a.parquet"
# The counts of repetition and definition levels of the columns stand here; found by fuzzing.
for position in range(2225, 2245):
    path.write_bytes(data[:position] + bytes([96]) + data[position + 1 :])
    try:
        ParquetSource(ParquetConfig(url=str(path), image_size=8, channels=3))
    except GenworkerError:
        continue
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", [b"sample_index", b"image", b"bytes", b"path", b"label"])
def test_column_names_that_are_no_text_are_refused(name: bytes, tmp_path: Path) -> None:
    """A name that is not UTF-8, of a nested column too, is a SourceError."""
    plan = fake.make_plan(num_samples=20)
    data = bytearray(fake.shard_bytes(plan, plan.task(0)))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[data.index(name, footer)] = 0x80
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match="is no whole Parquet file"):
        ParquetSource(ParquetConfig(url=str(tmp_path), image_size=8, channels=3))


def test_a_page_with_another_checksum_is_refused(tmp_path: Path) -> None:
    """A label that turned into another one shows where its writer left checksums of pages; without them it cannot."""
    for checksums in (True, False):
        path = write(
            tmp_path / "x.parquet",
            rows(1, 2, 3),
            compression="none",
            use_dictionary=False,
            write_page_checksum=checksums,
        )
        stored = np.arange(1, 4, dtype=np.int64).tobytes()
        path.write_bytes(path.read_bytes().replace(stored, stored.replace(b"\2", b"\7")))
        if checksums:
            with pytest.raises(SourceError, match=r"x\.parquet: row group 0 cannot be read: .*CRC checksum"):
                labels(source(path, num_classes=10))
        else:
            assert labels(source(path, num_classes=10)) == [1, 7, 3]


@pytest.mark.parametrize("struct", [False, True])
def test_an_image_that_many_rows_name_is_in_memory_once(struct: bool, tmp_path: Path) -> None:
    """A few hundred bytes that stand for 300 images of a megabyte take no 300 MB."""
    image = png(7) + bytes(1_000_000)
    column: Any = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([image]))
    if struct:
        column = pa.StructArray.from_arrays([column], names=["bytes"])
    path = write(
        tmp_path / "x.parquet",
        {"image": column},
        compression="zstd",
        dictionary_pagesize_limit=2**22,
        store_schema=False,
    )
    assert path.stat().st_size < 2_000
    with growth() as grown:
        found = source(path, cache_bytes=2**20)
        assert values(found, 0, 299) == [7, 7]
    assert grown.mib < 50


def test_a_row_group_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many rows, or far more bytes than the file has, are refused by the footer, with what to do."""
    path = write(tmp_path / "x.parquet", {"image": [bytes(1000)] * 100}, compression="zstd", use_dictionary=False)
    size = path.stat().st_size
    monkeypatch.setattr(parquet_files, "MAX_BYTES", 50_000)
    with pytest.raises(
        SourceError, match=rf"x\.parquet \({size} bytes\): row group 0 has 100 rows that unpack to 10.* smaller"
    ):
        source(path)
    monkeypatch.setattr(parquet_files, "MAX_BYTES", 2**28)
    monkeypatch.setattr(parquet_files, "MAX_ROWS", 99)
    with pytest.raises(SourceError, match=r"has 100 rows .*; the limits are 99 rows"):
        source(path)


@pytest.mark.parametrize(
    "column",
    [pa.array(["a", "b"]), pa.array([0.5, 1.0]), pa.array([True, False]), pa.array([None, 1]), pa.array([-1, -1])],
    ids=str,
)
def test_data_whose_labels_are_none_can_be_trained_on_without(column: Any, tmp_path: Path) -> None:
    """Every refusal of labels says so."""
    write(tmp_path / "a.parquet", {"image": [png(0), png(1)], "label": column})
    with pytest.raises(SourceError, match="label_column: none"):
        source(tmp_path).read(np.arange(2))
    opened = source(tmp_path, label_column="none")
    assert labels(opened) is None
    assert opened.schema.num_classes == 0
    assert values(opened, 0, 1) == [0, 1]


@pytest.mark.parametrize("label", [[-1, -1], [0, -1]])
def test_labels_below_zero_have_a_rule_that_can_be_kept(label: list[int], tmp_path: Path) -> None:
    """They are refused when the data is opened, and not taken for no classes until they are read."""
    write(tmp_path / "a.parquet", {"image": [png(0), png(1)], "label": label})
    with pytest.raises(
        SourceError, match="holds -1; labels are class numbers from 0: correct them, or label_column: none"
    ):
        source(tmp_path)


def test_a_label_beyond_64_bits_is_told_as_it_is(tmp_path: Path) -> None:
    """The largest unsigned number is not taken for -1."""
    write(tmp_path / "a.parquet", {"image": [png(0)], "label": pa.array([2**64 - 1], pa.uint64())})
    with pytest.raises(SourceError, match="holds 18446744073709551615; labels must lie in"):
        labels(source(tmp_path, num_classes=3))


def test_class_names_have_to_agree(tmp_path: Path) -> None:
    """In another order, the same numbers are other classes."""
    write(tmp_path / "a.parquet", rows(0, 1), class_names=["cat", "dog"])
    write(tmp_path / "b.parquet", rows(0, 1), class_names=["dog", "cat"])
    with pytest.raises(
        SourceError, match=r"a\.parquet has the class names \['cat', 'dog'\], b\.parquet has \['dog', 'cat'\]"
    ):
        source(tmp_path)


def test_long_lists_of_class_names_are_told_where_they_differ(tmp_path: Path) -> None:
    """Of a thousand names the message holds a few."""
    names = [f"class {n}" for n in range(1000)]
    write(tmp_path / "a.parquet", rows(0), class_names=names)
    write(tmp_path / "b.parquet", rows(0), class_names=[*names[:700], "other", *names[701:]])
    with pytest.raises(
        SourceError, match=r"\(of 1000, from 700 on\) \['class 700', .*, b\.parquet has .* from 700 on\) \['other', "
    ) as caught:
        source(tmp_path)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("unnamed", ["a", "c"])
def test_files_without_class_names_number_those_of_the_others(unnamed: str, tmp_path: Path) -> None:
    """A writer that drops Hugging Face's features contradicts nothing, which is said, where its labels are in range."""
    write(tmp_path / "b.parquet", rows(0, 1), class_names=["cat", "dog"])
    write(tmp_path / f"{unnamed}.parquet", rows(1, 0))
    found = source(tmp_path)
    assert found.schema.class_names == ("cat", "dog")
    assert sorted(labels(found) or []) == [0, 0, 1, 1]
    assert found.remarks == (
        f"{tmp_path}: column label: files without class names: 1, {unnamed}.parquet first; their labels are read as numbers "
        "of the classes that other files name: correct them where they mean others",
    )
    write(tmp_path / f"{unnamed}.parquet", rows(1, 2))
    with pytest.raises(
        SourceError,
        match=rf"{unnamed}\.parquet: column label: holds 2; labels must lie in \[0, 2\), the number of class names",
    ):
        source(tmp_path)
    assert source(tmp_path, label_column="none").remarks == ()


def test_features_that_are_no_features_name_no_classes(tmp_path: Path) -> None:
    """Foreign metadata may say anything, and nest as deep as it likes."""
    for text in ("[" * 200_000, "{}", "[]", '{"info": {"features": {"label": 3}}}'):
        table = pa.table(rows(0, 1)).replace_schema_metadata({"huggingface": text})
        pq.write_table(table, tmp_path / "a.parquet")
        assert source(tmp_path).schema.class_names == ()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([png(0)]), pa.array([png(1)])], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: has 2 columns called 'image'; name them apart"):
        source(tmp_path)

"""What every shard format promises, run over the tables of formats and codecs."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker import codecs, formats
from genworker.errors import DatasetError, PlanError, UsageError
from genworker.formats import parquet
from genworker.schema import NO_EXTRAS, Extras, ImageSchema, SampleBatch

PROVENANCE = {"plan_id": "0123456789abcdef", "first_index": "100", "num_samples": "37"}
SCHEMA = ImageSchema(channels=3, height=6, width=5, num_classes=4)
PAIRS = [(format, codec) for format in formats.names() for codec in codecs.names()]
# (format, codec, channels) for all that the codec can store.
SHAPES = [(format, codec, channels) for format, codec in PAIRS for channels in codecs.get(codec).channels]


ALL = Extras(latent_dim=5, score=True)
FILES: dict[str, bytes] = {}  # what lies beside the last shard that was written


def samples(schema: ImageSchema, num: int = 37, first: int = 100, extras: Extras = NO_EXTRAS) -> SampleBatch:
    random = np.random.default_rng(first)
    return SampleBatch(
        sample_index=np.arange(first, first + num),
        pixels=random.integers(0, 256, (num, *schema.pixel_shape), dtype=np.uint8),
        labels=random.integers(0, schema.num_classes, num) if schema.num_classes else None,
        latents=random.standard_normal((num, extras.latent_dim), np.float32) if extras.latent_dim else None,
        scores=random.standard_normal(num, np.float32) if extras.score else None,
    )


def cut(batch: SampleBatch, ends: list[int]) -> list[SampleBatch]:
    return [batch.part(a, b) for a, b in zip([0, *ends], [*ends, len(batch)], strict=True)]


def shard(
    format: str, codec: str, schema: ImageSchema, batches: list[SampleBatch], extras: Extras = NO_EXTRAS
) -> bytes:
    writer = formats.make(format, schema, codecs.make(codec, schema), extras).writer(
        PROVENANCE | {"num_samples": str(sum(len(batch) for batch in batches))}, FILES.__setitem__
    )
    for batch in batches:
        writer.write(batch)
    return writer.close()


@pytest.mark.parametrize(("format", "codec", "channels"), SHAPES)
@pytest.mark.parametrize("num_classes", [0, 1, 4])
def test_reading_gives_back_what_was_written(format: str, codec: str, channels: int, num_classes: int) -> None:
    """Indices, labels, provenance and what the codec makes of the pixels come back in order, as wholes and row by row."""
    schema = ImageSchema(channels=channels, height=6, width=5, num_classes=num_classes)
    batch = samples(schema)
    encoder = codecs.make(codec, schema)
    expected = np.stack([encoder.decode(encoder.encode(pixels)) for pixels in batch.pixels])
    if encoder.lossless:
        np.testing.assert_array_equal(expected, batch.pixels)
    reader = formats.make(format, schema, encoder).reader(shard(format, codec, schema, [batch]), FILES.__getitem__)
    assert reader.provenance == PROVENANCE
    np.testing.assert_array_equal(reader.sample_indices(), batch.sample_index)
    read = list(reader.batches())
    np.testing.assert_array_equal(np.concatenate([part.sample_index for part in read]), batch.sample_index)
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in read]), expected)
    for row in (36, 0, 17):
        one = reader.read_row(row)
        assert one.sample_index.tolist() == [100 + row]
        np.testing.assert_array_equal(one.pixels[0], expected[row])
        if batch.labels is None:
            assert one.labels is None
        else:
            assert one.labels is not None
            assert one.labels.tolist() == [batch.labels[row]]
    with pytest.raises(IndexError):
        reader.read_row(37)
    if batch.labels is None:
        assert all(part.labels is None for part in read)
    else:
        np.testing.assert_array_equal(np.concatenate([part.labels for part in read]), batch.labels)


@pytest.mark.parametrize("format", formats.names())
def test_reading_can_begin_at_any_row(format: str) -> None:
    """batches(first_row) gives the samples from that row to the last, across row groups and none at the end."""
    batch = samples(SCHEMA, 2600)
    reader = formats.make(format, SCHEMA, codecs.make("raw", SCHEMA)).reader(
        shard(format, "raw", SCHEMA, [batch]), FILES.__getitem__
    )
    for first in (0, 1, 649, 650, 651, 1024, 1999, 2599, 2600):
        read = list(reader.batches(first))
        assert [index for part in read for index in part.sample_index.tolist()] == list(range(100 + first, 2700))
        if read:
            np.testing.assert_array_equal(np.concatenate([part.pixels for part in read]), batch.pixels[first:])


@pytest.mark.parametrize("format", formats.names())
@settings(max_examples=15, deadline=None)
@given(ends=st.lists(st.integers(0, 600), max_size=6), codec=st.sampled_from(["png", "raw", "jpeg"]))
def test_bytes_do_not_depend_on_how_batches_are_cut(format: str, codec: str, ends: list[int]) -> None:
    """The same samples give the same bytes however the calls of write() divide them, empty batches included."""
    batch = samples(SCHEMA, 600, extras=ALL)
    whole = shard(format, codec, SCHEMA, [batch], ALL)
    assert shard(format, codec, SCHEMA, cut(batch, sorted(ends)), ALL) == whole


@pytest.mark.parametrize("format", formats.names())
@pytest.mark.parametrize("num_classes", [0, 4])
@pytest.mark.parametrize("extras", [Extras(latent_dim=5), Extras(score=True), ALL, Extras(latent_dim=1000)])
def test_latents_and_scores_come_back_bit_for_bit(format: str, num_classes: int, extras: Extras) -> None:
    """Optional columns are read as they were written, whole and row by row, whichever are there."""
    schema = SCHEMA.model_copy(update={"num_classes": num_classes})
    batch = samples(schema, 300, extras=extras)
    if batch.scores is not None:
        batch.scores[:4] = [0.1, -3.4e38, 1.4e-45, 16777217]
    data = shard(format, "raw", schema, [batch], extras)
    reader = formats.make(format, schema, codecs.make("raw", schema), extras).reader(data, FILES.__getitem__)
    read = list(reader.batches()), [reader.read_row(row) for row in range(0, 300, 50)]
    for parts, rows in zip(read, (slice(None), slice(0, 300, 50)), strict=True):
        for name in ("labels", "latents", "scores"):
            expected, seen = getattr(batch, name), [getattr(part, name) for part in parts]
            if expected is None:
                assert seen == [None] * len(parts)
            else:
                assert seen[0].dtype == expected.dtype
                np.testing.assert_array_equal(np.concatenate(seen), expected[rows])


@pytest.mark.parametrize("format", formats.names())
def test_missing_or_other_latents_and_scores_are_refused(format: str) -> None:
    """Writers refuse latents and scores that are missing, unwanted or not finite; readers refuse shards of other columns."""
    codec = codecs.make("raw", SCHEMA)
    plain, full = samples(SCHEMA), samples(SCHEMA, extras=ALL)
    assert full.scores is not None
    for extras, batch, problem in (
        (ALL, plain, "0 latents per sample; the dataset stores 5"),
        (NO_EXTRAS, full, "5 latents per sample; the dataset stores 0"),
        (Extras(latent_dim=5), full, "scores are given"),
        (Extras(score=True), plain, "scores are missing"),
        (ALL, replace(full, scores=np.full(37, np.inf, np.float32)), "not finite"),
    ):
        with pytest.raises(ValueError, match=problem):
            formats.make(format, SCHEMA, codec, extras).writer(PROVENANCE, FILES.__setitem__).write(batch)
    for written, wanted in ((ALL, Extras(latent_dim=5)), (Extras(score=True), ALL), (Extras(latent_dim=4), ALL)):
        data = shard(format, "raw", SCHEMA, [samples(SCHEMA, extras=written)], written)
        with pytest.raises(DatasetError):
            list(formats.make(format, SCHEMA, codec, wanted).reader(data, FILES.__getitem__).batches())


@pytest.mark.parametrize(("format", "codec"), PAIRS)
def test_truncated_shard_is_refused(format: str, codec: str) -> None:
    """A shard that lost its end, at any of many positions, is a DatasetError and never a crash."""
    maker = formats.make(format, SCHEMA, codecs.make(codec, SCHEMA))
    data = shard(format, codec, SCHEMA, [samples(SCHEMA)])
    for length in {*range(0, len(data), 13), *range(len(data) - 40, len(data))}:
        with pytest.raises(DatasetError):
            for _ in maker.reader(data[:length], FILES.__getitem__).batches():
                pass


@pytest.mark.parametrize(("format", "codec"), PAIRS)
def test_changed_byte_is_refused_or_harmless(format: str, codec: str) -> None:
    """One changed byte anywhere gives a DatasetError, or the same samples; never other pixels, never a crash."""
    maker = formats.make(format, SCHEMA, codecs.make(codec, SCHEMA))
    data = shard(format, codec, SCHEMA, [samples(SCHEMA)])
    whole = np.concatenate([part.pixels for part in maker.reader(data, FILES.__getitem__).batches()])
    for position in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        try:
            read = list(maker.reader(bytes(damaged), FILES.__getitem__).batches())
        except DatasetError:
            continue
        np.testing.assert_array_equal(np.concatenate([part.pixels for part in read]), whole)


@pytest.mark.parametrize(("format", "codec"), PAIRS)
def test_shard_of_another_kind_is_refused(format: str, codec: str) -> None:
    """A shard without the label column, or with fewer rows than it promises, is a DatasetError that says so."""
    unlabelled = SCHEMA.model_copy(update={"num_classes": 0})
    data = shard(format, codec, unlabelled, [samples(unlabelled)])
    maker = formats.make(format, SCHEMA, codecs.make(codec, SCHEMA))
    with pytest.raises(DatasetError, match="label"):
        maker.reader(data, FILES.__getitem__)
    writer = maker.writer(PROVENANCE, FILES.__setitem__)
    writer.write(samples(SCHEMA, 36))
    with pytest.raises(DatasetError, match="36 rows and says that it has 37"):
        maker.reader(writer.close(), FILES.__getitem__)


@pytest.mark.parametrize(("format", "codec"), PAIRS)
def test_writer_refuses_what_its_schema_does_not_allow(format: str, codec: str) -> None:
    """Missing, unwanted or impossible labels, an empty shard and a second close are ValueErrors."""
    batch = samples(SCHEMA, 3)
    maker = formats.make(format, SCHEMA, codecs.make(codec, SCHEMA))
    writer = maker.writer(PROVENANCE, FILES.__setitem__)
    for labels in (None, np.array([0, 1, 4]), np.array([0, -1, 2])):
        with pytest.raises(ValueError, match="labels"):
            writer.write(SampleBatch(batch.sample_index, batch.pixels, labels))
    with pytest.raises(ValueError, match="at least one sample"):
        writer.close()
    writer.write(batch)
    writer.close()
    with pytest.raises(ValueError, match="closed before"):
        writer.close()


@pytest.mark.parametrize(("format", "codec"), PAIRS)
def test_too_large_shards_are_refused_before_work_starts(format: str, codec: str) -> None:
    """samples_per_shard above the limit is a PlanError with the value seen, the reason and the largest that works."""
    schema = ImageSchema(channels=3, height=64, width=64)
    maker = codecs.make(codec, schema)
    limit = formats.make(format, schema, maker).max_samples_per_shard()
    assert 100_000 < limit < (2**31 / (64 * 64 * 3) if format != "files" else 2**24)
    formats.check_samples_per_shard(format, schema, maker, limit)
    with pytest.raises(PlanError, match=f"samples_per_shard 30000000: .* 64x64x3 .* 2 GiB.*; use at most {limit}"):
        formats.check_samples_per_shard(format, schema, maker, 30_000_000)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1), (28, 28), (97, 103), (256, 256)])
@pytest.mark.parametrize(("format", "codec", "channels"), [shape for shape in SHAPES if shape[0] != "files"])
def test_limit_holds_for_pixels_that_do_not_compress(
    format: str, codec: str, channels: int, height: int, width: int
) -> None:
    """A shard of noise grows by fewer bytes for each sample than max_samples_per_shard counts on."""
    schema = ImageSchema(channels=channels, height=height, width=width)
    maker = codecs.make(codec, schema)
    size = len(maker.encode(samples(schema, 1).pixels[0]))
    assert size * formats.make(format, schema, maker).max_samples_per_shard() < 2**31


def test_unknown_format_is_answered_with_the_known_names() -> None:
    """A format that nobody registered is a UsageError with all names and the nearest one."""
    with pytest.raises(UsageError, match="known: parquet, webdataset, files; did you mean 'parquet'"):
        formats.get("parket")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([500], [1]),
        ([500] * 255, [255]),
        ([500] * 256, [64, 128, 192, 256]),
        ([2**20] * 640, [64, 128, 192, 256, 320, 384, 448, 512, 576, 640]),
        ([40 * 2**20] * 3, [2, 3]),
        ([1] * 999 + [10**6], [1000]),
    ],
)
def test_row_groups_are_cut_by_bytes(sizes: list[int], expected: list[int]) -> None:
    """Row groups hold about 64 MiB, and a shard of 256 rows or more has four, unless one image outweighs all others."""
    assert parquet.row_group_ends(sizes) == expected


def test_parquet_layout_is_what_readers_are_promised() -> None:
    """Image bytes are plain, the rest is zstd, pages are indexed and summed, and metadata tells Hugging Face the types."""
    schema = SCHEMA.model_copy(update={"class_names": ("ankle boot", "bag", "coat", "dress")})
    data = shard("parquet", "png", schema, [samples(schema, 300)])
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.num_row_groups == 4
    columns = {file.metadata.row_group(0).column(i).path_in_schema: i for i in range(4)}
    for path, number in columns.items():
        column = file.metadata.row_group(0).column(number)
        is_image = path == "image.bytes"
        assert column.compression == ("UNCOMPRESSED" if is_image else "ZSTD")
        assert column.is_stats_set == (path in {"sample_index", "label"})
        assert column.has_offset_index
        assert column.has_column_index == column.is_stats_set
        assert ("RLE_DICTIONARY" in column.encodings) == (path == "label")
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "sample_index": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": ["ankle boot", "bag", "coat", "dress"], "_type": "ClassLabel"},
    }
    assert file.read(["image"]).column("image")[0].as_py()["path"] == "000000000100.png"
    damaged = bytearray(data)
    damaged[file.metadata.row_group(0).column(columns["image.bytes"]).data_page_offset + 200] ^= 1
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(io.BytesIO(damaged), page_checksum_verification=True)


# A data page's header in Thrift's compact form: its kind, two sizes, the CRC-32 of the page, and what follows.
PAGE_HEADER = re.compile(rb"\x15\x00(?:\x15[\x80-\xff]*[\x00-\x7f]){2}\x15([\x80-\xff]*[\x00-\x7f])\x1c")


def test_parquet_pages_end_where_the_content_says() -> None:
    """One more sample near the start changes the pages around it; those after it are the same in both versions."""
    schema = ImageSchema(channels=3, height=128, width=128)
    batch = samples(schema, 200)
    without = [batch.part(0, 10), batch.part(11, 200)]
    before, after = (
        set(PAGE_HEADER.findall(shard("parquet", "raw", schema, batches))) for batches in (without, [batch])
    )
    assert len(after) > 10
    assert len(before & after) > 0.7 * len(after)


def test_raw_parquet_says_how_to_read_its_bytes() -> None:
    """Raw pixels are a plain binary column, and the file's metadata holds their shape and type."""
    data = shard("parquet", "raw", SCHEMA, [samples(SCHEMA)])
    file = pq.ParquetFile(io.BytesIO(data))
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    shape = tuple(int(metadata[f"genworker.image.{key}"]) for key in ("height", "width", "channels"))
    first = file.read(["image"]).column("image")[0].as_py()
    pixels = np.frombuffer(first, metadata["genworker.image.dtype"]).reshape(shape)
    np.testing.assert_array_equal(pixels, samples(SCHEMA).pixels[0])

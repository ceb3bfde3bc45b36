"""What every data source must do. A new source is tested by being in the registry, once it has an example here."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker import sources
from genworker.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.sources.base import Source, SourceConfig
from genworker.stores import open_store

NUM_IMAGES = 12


def png(number: int) -> bytes:
    """A 28x28 grey picture that differs for every number."""
    rows, columns = np.mgrid[:28, :28]
    buffer = io.BytesIO()
    Image.fromarray(((rows * 5 + columns * number) % 256).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def idx_folder(folder: Path, *, shift: int = 0) -> dict[str, Any]:
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png(n + shift)))) for n in range(NUM_IMAGES)])
    images = struct.pack(">4I", 0x803, NUM_IMAGES, 28, 28) + pixels.tobytes()
    labels = struct.pack(">2I", 0x801, NUM_IMAGES) + bytes(n % 3 for n in range(NUM_IMAGES))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    return {"url": str(folder)}


def image_folder(folder: Path, *, shift: int = 0) -> dict[str, Any]:
    for number in range(NUM_IMAGES):
        path = folder / f"class {number % 3}" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number + 7 * shift))
    return {"url": str(folder), "image_size": 16, "channels": 3}


def parquet_folder(folder: Path, *, shift: int = 0) -> dict[str, Any]:
    features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for part in range(2):
        numbers = range(part * NUM_IMAGES // 2, (part + 1) * NUM_IMAGES // 2)
        table = pa.table(
            {
                "image": [{"bytes": png(n + 7 * shift), "path": f"{n}.png"} for n in numbers],
                "label": [n % 3 for n in numbers],
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"train-{part:05}-of-00002.parquet", row_group_size=4)
    return {"url": str(folder), "image_size": 28, "channels": 1}


def tar_folder(folder: Path, *, shift: int = 0) -> dict[str, Any]:
    for part in range(2):
        with tarfile.open(folder / f"train-{part:05}.tar", "w") as tar:
            for number in range(part * NUM_IMAGES // 2, (part + 1) * NUM_IMAGES // 2):
                for extension, content in (("png", png(number + 7 * shift)), ("cls", b"%d" % (number % 3))):
                    member = tarfile.TarInfo(f"{number:06}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"url": str(folder), "image_size": 28, "channels": 1, "block_bytes": 3000}


# One example per registered source: fill a folder, return what its Config needs.
EXAMPLES: dict[str, Callable[..., dict[str, Any]]] = {
    "idx": idx_folder,
    "fashion-mnist": idx_folder,
    "image-folder": image_folder,
    "parquet": parquet_folder,
    "webdataset": tar_folder,
}

every_source = pytest.mark.parametrize("name", sources.SOURCES)


def example(name: str, folder: Path, *, shift: int = 0, **more: Any) -> SourceConfig:
    assert name in EXAMPLES, f"source {name!r} is registered without an example: add one to EXAMPLES in {__file__}"
    folder.mkdir(exist_ok=True)
    return sources.get(name).Config.parse(EXAMPLES[name](folder, shift=shift) | more, origin="example")


def read(source: Source, *indices: int) -> Any:
    return source.read(np.array(indices, np.int64))


@every_source
def test_the_config_carries_the_registered_name(name: str, tmp_path: Path) -> None:
    """A spec's `name` picks the source: each Config defaults to its registered name and allows no other."""
    config = example(name, tmp_path)
    assert config.name == name
    with pytest.raises(UsageError, match="name"):
        sources.get(name).Config.parse({**config.model_dump(), "name": "other"}, origin="spec")


@every_source
def test_a_batch_has_the_shape_that_the_schema_tells(name: str, tmp_path: Path) -> None:
    """Pixels are uint8 [N, H, W, C] and labels int64 in [0, num_classes), as the schema says."""
    source = sources.open_source(example(name, tmp_path))
    batch = read(source, *range(len(source)))
    assert len(source) == NUM_IMAGES
    assert batch.pixels.dtype == np.uint8
    assert batch.pixels.shape == (NUM_IMAGES, *source.schema.pixel_shape)
    assert batch.labels.dtype == np.int64
    assert sorted(batch.labels) == sorted(n % 3 for n in range(NUM_IMAGES))
    assert len(source.schema.class_names) in (0, source.schema.num_classes)
    assert source.corrupt == []


@every_source
def test_images_come_in_the_order_asked_for(name: str, tmp_path: Path) -> None:
    """Reading several indices, repeats included, gives what reading each alone gives."""
    source = sources.open_source(example(name, tmp_path))
    together = read(source, 7, 0, 11, 7)
    assert together.sample_index.tolist() == [7, 0, 11, 7]
    for position, index in enumerate([7, 0, 11, 7]):
        alone = read(source, index)
        assert np.array_equal(together.pixels[position], alone.pixels[0])
        assert together.labels[position] == alone.labels[0]


@every_source
def test_what_usually_lies_beside_data_is_no_remark(name: str, tmp_path: Path) -> None:
    """Whoever trains is told of files that are not read, and not of those that nobody takes for images."""
    config = example(name, tmp_path)
    for beside in ("README.md", "LICENSE", "dataset_infos.json", ".gitattributes", ".cache/x.tar.gz", ".old/x.gif"):
        (tmp_path / beside).parent.mkdir(exist_ok=True)
        (tmp_path / beside).write_text("beside")
    assert not sources.open_source(config).remarks


@every_source
def test_no_images_are_an_empty_batch(name: str, tmp_path: Path) -> None:
    """A rank may have nothing to read."""
    source = sources.open_source(example(name, tmp_path))
    assert read(source).pixels.shape == (0, *source.schema.pixel_shape)


@every_source
@pytest.mark.parametrize("index", [-1, NUM_IMAGES])
def test_an_index_outside_is_refused(name: str, index: int, tmp_path: Path) -> None:
    """Neither a negative index nor one past the end wraps around silently."""
    with pytest.raises(IndexError, match=f"index {index}: the source has {NUM_IMAGES} images"):
        read(sources.open_source(example(name, tmp_path)), 0, index)


@every_source
def test_equal_data_gives_equal_digests(name: str, tmp_path: Path) -> None:
    """The digest follows the data: the same at another place, another one for other or fewer images."""
    here, there, other = tmp_path / "here", tmp_path / "there", tmp_path / "other"
    digest = sources.open_source(example(name, here)).digest()
    assert len(digest) == 64
    assert sources.open_source(example(name, there)).digest() == digest
    assert sources.open_source(example(name, other, shift=1)).digest() != digest
    assert sources.open_source(example(name, here, limit=5)).digest() != digest


@every_source
@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_any_store_gives_the_same_data(name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A source reads an object store as it reads a folder, S3 over HTTP included."""
    local = example(name, tmp_path)
    if kind == "memory":
        store = open_store(f"memory://{tmp_path.name}/below")
    else:
        server = request.getfixturevalue("moto")
        request.getfixturevalue("point_at")(server)
        store = open_store(f"s3://{server.new_bucket()}/below")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    here, there = sources.open_source(local), sources.open_source(local.model_copy(update={"url": store.url}))
    assert there.digest() == here.digest()
    assert np.array_equal(read(there, *range(NUM_IMAGES)).pixels, read(here, *range(NUM_IMAGES)).pixels)


@every_source
def test_blocks_hold_every_image_once(name: str, tmp_path: Path) -> None:
    """Where a source says which images lie together, its blocks cover all images in order; fetching ahead changes none."""
    for more in ({}, {"limit": 5}):
        config = example(name, tmp_path / f"{len(more)}", **more)
        source = sources.open_source(config)
        everything = np.arange(len(source))
        if source.blocks is not None:
            assert source.blocks.window >= 1
            assert source.blocks.ends[-1] == len(source)
            assert (np.diff(source.blocks.ends, prepend=0) >= 0).all()
        source.prefetch(everything)
        again = sources.open_source(config)
        assert np.array_equal(source.read(everything).pixels, again.read(everything).pixels)


@every_source
def test_many_threads_may_read_at_a_time(name: str, tmp_path: Path) -> None:
    """The training loop reads held-out images while its loader reads others; each gets what it asked for."""
    source = sources.open_source(example(name, tmp_path))
    expected = read(source, *range(NUM_IMAGES)).pixels
    source = sources.open_source(example(name, tmp_path))
    orders = [np.random.default_rng(n).permutation(NUM_IMAGES) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        for order, batch in zip(orders, pool.map(source.read, orders), strict=True):
            assert np.array_equal(batch.pixels, expected[order])


@every_source
def test_limit_takes_the_first_images(name: str, tmp_path: Path) -> None:
    """A limit shortens the source and changes no image, and one beyond the end changes nothing."""
    whole = sources.open_source(example(name, tmp_path))
    few = sources.open_source(example(name, tmp_path, limit=5))
    assert len(few) == 5
    assert few.schema == whole.schema
    assert np.array_equal(read(few, *range(5)).pixels, read(whole, *range(5)).pixels)
    assert len(sources.open_source(example(name, tmp_path, limit=10**9))) == NUM_IMAGES


@every_source
def test_an_absent_split_is_refused(name: str, tmp_path: Path) -> None:
    """Training images never stand in for a test split that is not there."""
    with pytest.raises(SourceError, match="test"):
        sources.open_source(example(name, tmp_path, split="test"))


@every_source
def test_an_empty_folder_is_named(name: str, tmp_path: Path) -> None:
    """A folder without data gives an error that names the folder."""
    empty = tmp_path / "nothing here"
    empty.mkdir()
    with pytest.raises(SourceError, match="nothing here"):
        sources.open_source(example(name, tmp_path / "full", url=str(empty)))


@pytest.mark.parametrize("name", sorted(set(sources.SOURCES) - {"fashion-mnist"}))
def test_a_missing_url_is_named(name: str, tmp_path: Path) -> None:
    """A source without a default place says that its url is missing and what it should be."""
    with pytest.raises(SourceError, match=f"source {name}: url is missing; set it to"):
        sources.open_source(example(name, tmp_path, url=None))


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    """A misspelt name gives the list of names and the nearest one."""
    with pytest.raises(
        UsageError, match="known: idx, fashion-mnist, image-folder, parquet, webdataset; did you mean 'parquet'"
    ):
        sources.get("parqet")

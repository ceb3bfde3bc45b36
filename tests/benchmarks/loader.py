"""How fast training data arrives, from a folder and from an S3 server on this machine, and how much memory it takes.

Run it on a quiet machine: `python -m tests.benchmarks.loader --json results.json`. Every part runs in a process of its own.
Pictures are 64x64 RGB PNGs made of the shipped images; the server is rclone over a local folder, so S3 figures hold the cost of
HTTP and none of a network's.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import resource
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.sources.base import Source

BATCH = 256
SIZE = {"image_size": 64, "channels": 3}
NUM_DISTINCT = 2_000
PER_SHARD = 2_000
KINDS = ("parquet", "webdataset", "image-folder", "idx")


# ---- parts: each returns numbers by name, and runs in a fresh process ----


def rate(values: dict[str, Any], num_images: int) -> dict[str, float]:
    """Images per second of a loader that nobody waits for, after its first batches."""
    from genworker.training.loader import Loader

    began = time.perf_counter()
    source = _open(values)
    opened = time.perf_counter() - began
    with Loader(source, batch_size=BATCH, seed=0) as loader:
        for _ in range(2):
            next(loader)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(num_images // BATCH):
            next(loader)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = num_images // BATCH * BATCH
    return {"open_seconds": opened, "rate": count / seconds, "rate_per_cpu_second": count / cpu}


def memory(values: dict[str, Any], num_images: int) -> dict[str, float]:
    """Peak memory of an epoch of data that is larger than the cache, beyond what the imports took."""
    import torch  # noqa: F401 - so that the baseline has it

    from genworker.training.loader import Loader

    source = _open({**values, "cache_bytes": 0, "limit": BATCH})
    with Loader(source, batch_size=BATCH, seed=0) as loader:
        next(loader)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    source = _open(values)
    began = time.perf_counter()
    with Loader(source, batch_size=BATCH, seed=0) as loader:
        for _ in range(num_images // BATCH):
            next(loader)
    cache: Any = source._cache  # type: ignore[attr-defined]
    assert source.blocks is not None
    return {
        "before_mib": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "blocks": float(len(source.blocks.ends)),
        "window": float(source.blocks.window),
        "fetched": float(cache.num_fetched),
        "rate": num_images // BATCH * BATCH / (time.perf_counter() - began),
    }


def scattered(values: dict[str, Any], num_images: int) -> dict[str, float]:
    """The same data in the order of one permutation over all images, as if it lay in no blocks."""
    from genworker.training.loader import Loader

    source = _open(values)
    source.blocks = None
    began = time.perf_counter()
    with Loader(source, batch_size=BATCH, seed=0, prefetch=0) as loader:
        for _ in range(num_images // BATCH):
            next(loader)
    cache: Any = source._cache  # type: ignore[attr-defined]
    count = num_images // BATCH * BATCH
    return {"rate": count / (time.perf_counter() - began), "fetched_per_image": cache.num_fetched / count}


def training(values: dict[str, Any], num_images: int) -> dict[str, float]:
    """Share of its time that a real, small training run waits for data, over all but its first report."""
    import torch

    from genworker.stores import open_store
    from genworker.training.loop import Hooks, train
    from genworker.training.spec import TrainSpec

    torch.set_num_threads(1)
    stack = {"widths": [32, 16], "blocks": 1, "patch": 2}
    spec = TrainSpec.parse(
        {
            "data": values,
            "family": {"name": "vae", "latent_dim": 32, "encoder": stack, "decoder": stack},
            "training": {"images": num_images, "batch_size": 64, "report_every_images": num_images // 4},
            "evaluation": {"num_samples": 0},
        },
        origin="benchmark",
    )
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            spec,
            _open(values),
            open_store(folder),
            rank=0,
            world_size=1,
            device=torch.device("cpu"),
            hooks=Hooks(on_report=lambda metrics: reports.append(dict(metrics))),
        )
    later = reports[1:]
    return {
        "wait_share": sum(report["data_wait_share"] for report in later) / len(later),
        "first_wait_share": reports[0]["data_wait_share"],
        "rate": sum(report["images_per_second"] for report in later) / len(later),
    }


def _open(values: dict[str, Any]) -> Source:
    from genworker import sources

    return sources.open_source(sources.get(values["name"]).Config.parse(values, origin="benchmark"))


# ---- data ----


def make_pictures() -> tuple[list[bytes], list[int]]:
    """Shipped images at 64x64, each in a colour of its class and with a little noise: PNGs of about 8 KB."""
    import numpy as np
    from PIL import Image

    from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource

    batch = FashionMnistSource(FashionMnistConfig(url="shipped", limit=NUM_DISTINCT)).read(np.arange(NUM_DISTINCT))
    assert batch.labels is not None
    noise, colours = np.random.default_rng(0), np.random.default_rng(1).uniform(0.4, 1, (10, 3))
    pictures = []
    for pixels, label in zip(batch.pixels, batch.labels, strict=True):
        grey = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((64, 64), Image.Resampling.BICUBIC), np.float64)
        colour = grey[:, :, None] * colours[label] + noise.normal(0, 3, (64, 64, 3))
        buffer = io.BytesIO()
        Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
        pictures.append(buffer.getvalue())
    return pictures, batch.labels.tolist()


def write_parquet(folder: Path, num_images: int, row_group: int) -> None:
    """Shards of an image and a label column, uncompressed as PNGs are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures, labels = make_pictures()
    folder.mkdir(parents=True)
    for part, first in enumerate(range(0, num_images, PER_SHARD)):
        rows = [n % NUM_DISTINCT for n in range(first, min(first + PER_SHARD, num_images))]
        table = pa.table({"image": [pictures[n] for n in rows], "label": [labels[n] for n in rows]})
        path = folder / f"train-{part:05}.parquet"
        pq.write_table(table, path, row_group_size=row_group, compression="none", use_dictionary=["label"])


def write_tars(folder: Path, num_images: int) -> None:
    """Shards as the webdataset library writes them."""
    pictures, labels = make_pictures()
    folder.mkdir(parents=True)
    for part, first in enumerate(range(0, num_images, PER_SHARD)):
        with tarfile.open(folder / f"train-{part:05}.tar", "w") as tar:
            for n in range(first, min(first + PER_SHARD, num_images)):
                at = n % NUM_DISTINCT
                for extension, content in (("png", pictures[at]), ("cls", b"%d" % labels[at])):
                    member = tarfile.TarInfo(f"{n:09}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_files(folder: Path, num_images: int) -> None:
    """One file per image below its class."""
    pictures, labels = make_pictures()
    for n in range(num_images):
        path = folder / f"class-{labels[n % NUM_DISTINCT]}" / f"{n:09}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[n % NUM_DISTINCT])


def write_idx(folder: Path, num_images: int) -> None:
    """IDX files of the shipped images, 28x28 grey: the source that holds everything in memory."""
    import numpy as np

    from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource

    batch = FashionMnistSource(FashionMnistConfig(url="shipped")).read(np.arange(10_000))
    assert batch.labels is not None
    folder.mkdir(parents=True)
    numbers = np.array([0x803, 10_000, 28, 28], ">u4").tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(numbers + batch.pixels.tobytes())
    numbers = np.array([0x801, 10_000], ">u4").tobytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(numbers + batch.labels.astype(np.uint8).tobytes())


# ---- the whole ----


def fresh(part: Callable[[dict[str, Any], int], dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run a part in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(part, arguments)


def values_of(name: str, url: str, **more: Any) -> dict[str, Any]:
    """The ``data`` part of a spec."""
    own = {} if name == "idx" else SIZE | ({"cache_bytes": 2**26} if name in ("parquet", "webdataset") else {})
    return {"name": name, "url": f"{url}/{name}"} | own | more


def measure(
    folder: Path, s3_url: str, *, num_images: int, large_images: int, cache_bytes: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Make the data below ``folder``, which is also what the server serves, and yield the figures of each part."""
    write_parquet(folder / "large" / "parquet", large_images, row_group=250)
    write_tars(folder / "large" / "webdataset", large_images)
    for name in ("parquet", "webdataset"):
        size = sum(path.stat().st_size for path in (folder / "large" / name).iterdir())
        cut = {"block_bytes": 2**21} if name == "webdataset" else {}
        values = values_of(name, f"{s3_url}/large", **cut, cache_bytes=cache_bytes)
        sizes = {"data_mib": size / 2**20, "cache_mib": cache_bytes / 2**20}
        yield f"memory {name} S3", sizes | fresh(memory, values, large_images)
        yield f"scattered {name} S3", fresh(scattered, values, BATCH)
    write_parquet(folder / "parquet", num_images, row_group=250)
    write_tars(folder / "webdataset", num_images)
    write_files(folder / "image-folder", num_images)
    write_idx(folder / "idx", num_images)
    places = {"folder": str(folder), "S3": s3_url}
    for name, (place, url) in itertools.product(KINDS, places.items()):
        more = {"block_bytes": 2**21} if name == "webdataset" else {}
        yield f"rate {name} {place}", fresh(rate, values_of(name, url, **more), num_images)
    for name in ("parquet", "image-folder"):
        yield f"training {name} S3", fresh(training, values_of(name, s3_url), 4096)


def main() -> None:
    """Run all parts and print them."""
    from tests.servers import rclone_server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--large-images", type=int, default=100_000)
    parser.add_argument("--cache-mib", type=int, default=128, help="for the large data")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, rclone_server(Path(folder)) as server:
        os.environ.update(server.environment)
        data = Path(folder) / "buckets" / "data"
        for name, numbers in measure(
            data,
            "s3://data",
            num_images=arguments.images,
            large_images=arguments.large_images,
            cache_bytes=arguments.cache_mib * 2**20,
        ):
            found[name] = numbers
            print(f"{name:32}", "  ".join(f"{key} {value:,.2f}" for key, value in numbers.items()), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

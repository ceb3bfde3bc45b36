"""Sizes and speeds of every codec in every format, per million images, on one thread.

    python -m tests.benchmarks.formats

28x28x1: the first Fashion-MNIST images that ship with genworker. 64x64x3: squares cut at random from a photograph (Grace
Hopper, in matplotlib's sample data) and resized. A shard is written from pixels and read back to pixels in memory, so no disk
and no network is in the figures. CPU time of the thread, the median of some rounds, in which all pairs take turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image

from genworker import codecs, formats
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource

if TYPE_CHECKING:
    from genworker.formats.base import Format
    from genworker.schema import Pixels

_CODECS = ("png", "webp", "webp-lossy:90", "jpeg:90", "raw")
_MILLION = 1_000_000


def clothes(num: int) -> Pixels:
    """Fashion-MNIST images, uint8 [num, 28, 28, 1]."""
    pixels: Pixels = FashionMnistSource(FashionMnistConfig(url="shipped", limit=num)).read(np.arange(num)).pixels
    return pixels


def photographs(num: int) -> Pixels:
    """Squares of a photograph, uint8 [num, 64, 64, 3]."""
    random = np.random.default_rng(0)
    with Image.open(f"{mpl.get_data_path()}/sample_data/grace_hopper.jpg") as image:
        found = []
        for _ in range(num):
            side = int(random.integers(64, 257))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            square = image.resize((64, 64), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
            found.append(np.asarray(square.convert("RGB")))
    return np.stack(found)


def measure(maker: Format, batch: SampleBatch) -> tuple[int, float, float]:
    """Bytes of a shard, and CPU seconds to write and to read it."""
    files: dict[str, bytes] = {}
    began = time.thread_time()
    writer = maker.writer({"plan_id": "0" * 16, "first_index": "0", "num_samples": str(len(batch))}, files.__setitem__)
    for first in range(0, len(batch), 128):
        writer.write(batch.part(first, first + 128))
    data = writer.close()
    written = time.thread_time()
    reader = maker.reader(data, files.__getitem__)
    # Row by row in formats that decode in threads of their own, whose time would not be seen.
    if files:
        for row in range(len(batch)):
            reader.read_row(row)
    else:
        for _ in reader.batches():
            pass
    return reader.num_bytes, written - began, time.thread_time() - written


def main() -> None:
    """Print one table per kind of image."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=4000, help="per shard; a quarter of it of the larger ones")
    arguments.add_argument("--rounds", type=int, default=5)
    args = arguments.parse_args()
    for pixels in (clothes(args.images), photographs(args.images // 4)):
        num, height, width, channels = pixels.shape
        schema = ImageSchema(channels=channels, height=height, width=width, num_classes=10)
        batch = SampleBatch(np.arange(num), pixels, np.arange(num) % 10)
        made = {
            (codec, format): formats.make(format, schema, codecs.make(codec, schema))
            for codec, format in itertools.product(_CODECS, formats.names())
        }
        seen: dict[tuple[str, str], list[tuple[int, float, float]]] = {pair: [] for pair in made}
        for _ in range(args.rounds):
            for pair, maker in made.items():
                seen[pair].append(measure(maker, batch))
        print(
            f"\n{height}x{width}x{channels}, {num} images per shard, medians of {args.rounds} rounds, per million images:\n"
        )
        print("| codec | format | GB | CPU s to write | CPU s to read | objects |")
        print("|---|---|---|---|---|---|")
        for (codec, format), rounds in seen.items():
            size = rounds[0][0] / num * _MILLION / 1e9
            write, read = (statistics.median(row[part] for row in rounds) / num * _MILLION for part in (1, 2))
            objects = "a million" if made[codec, format].beside_name(0) else "as many as shards"
            print(f"| {codec} | {format} | {size:.2f} | {write:.0f} | {read:.0f} | {objects} |")


if __name__ == "__main__":
    main()

"""Libraries that encode images, beside the ones that our codecs use, on one thread.

    python -m tests.benchmarks.encoders

Images as in `tests.benchmarks.formats`. CPU time of the thread, the best of some rounds, in which all libraries take turns.
simplejpeg and opencv-python-headless are measured where they are installed; genworker does not need them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import time
from typing import TYPE_CHECKING, Any

import imagecodecs
from PIL import Image

from genworker import codecs
from genworker.schema import ImageSchema
from tests.benchmarks.formats import clothes, photographs

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.schema import Pixels

    Encode = Callable[[Pixels], Any]


QUALITY = 90


def plain(pixels: Pixels) -> Pixels:
    """Without a channel axis of length one, as most libraries want gray images."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def pillow(pixels: Pixels, **options: Any) -> bytes:
    """By Pillow; ``options`` as `PIL.Image.Image.save` takes them."""
    file = io.BytesIO()
    Image.fromarray(plain(pixels)).save(file, **options)
    return file.getvalue()


def opencv(cv2: Any, extension: str, settings: list[int], pixels: Pixels) -> bytes:
    """By OpenCV, which wants blue, green, red."""
    image = pixels if pixels.shape[-1] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(extension, image, settings)[1])


def simple_jpeg(simplejpeg: Any, pixels: Pixels) -> bytes:
    """By simplejpeg, every colour at full resolution."""
    colours = {"colorspace": "GRAY"} if pixels.shape[-1] == 1 else {"colorspace": "RGB", "colorsubsampling": "444"}
    return bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, **colours))


def encoders(schema: ImageSchema) -> dict[str, Encode]:
    """All that can be measured here, by format, library and settings."""

    def ours(name: str) -> Encode:
        return codecs.make(name, schema).encode

    def of_imagecodecs(name: str, **options: Any) -> Encode:
        return lambda pixels: getattr(imagecodecs, name)(plain(pixels), **options)

    found: dict[str, Encode] = {
        "png, as our codec does it": ours("png"),
        "png: imagecodecs, libpng, level 1": of_imagecodecs("png_encode", level=1),
        "png: imagecodecs, spng, level 1": of_imagecodecs("spng_encode", level=1),
        "png: Pillow, level 1": functools.partial(pillow, format="png", compress_level=1),
        "png: Pillow, level 6": functools.partial(pillow, format="png", compress_level=6),
        f"jpeg {QUALITY}, as our codec does it": ours(f"jpeg:{QUALITY}"),
        f"jpeg {QUALITY}: Pillow": functools.partial(pillow, format="jpeg", quality=QUALITY, subsampling=0),
        "webp, as our codec does it": ours("webp"),
        "webp: Pillow, lossless, method 0": functools.partial(
            pillow, format="webp", lossless=True, quality=0, method=0
        ),
        f"webp {QUALITY}, as our codec does it": ours(f"webp-lossy:{QUALITY}"),
        f"webp {QUALITY}: Pillow, method 4": functools.partial(pillow, format="webp", quality=QUALITY, method=4),
    }
    cv2, simplejpeg = optional("cv2"), optional("simplejpeg")
    if cv2:
        cv2.setNumThreads(1)
        full = [
            cv2.IMWRITE_JPEG_QUALITY,
            QUALITY,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        found["png: OpenCV, level 1"] = functools.partial(opencv, cv2, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1])
        found[f"jpeg {QUALITY}: OpenCV"] = functools.partial(opencv, cv2, ".jpg", full)
    if simplejpeg:
        found[f"jpeg {QUALITY}: simplejpeg"] = functools.partial(simple_jpeg, simplejpeg)
    return dict(sorted(found.items()))


def optional(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: not measured")
        return None


def seconds(encode: Encode, images: list[Pixels]) -> float:
    """CPU seconds of this thread for all images."""
    began = time.thread_time()
    for image in images:
        encode(image)
    return time.thread_time() - began


def main() -> None:
    """Print one table per kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="a quarter of it of the larger ones")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for pixels in (clothes(arguments.images), photographs(arguments.images // 4)):
        num, height, width, channels = pixels.shape
        made = encoders(ImageSchema(channels=channels, height=height, width=width))
        images = list(pixels)
        best = dict.fromkeys(made, float("inf"))
        for _ in range(arguments.rounds):
            for name, encode in made.items():
                best[name] = min(best[name], seconds(encode, images))
        print(f"\n{height}x{width}x{channels}, {num} images, best of {arguments.rounds} rounds:\n")
        print("| encoder | us per image | bytes |\n|---|---|---|")
        for name, encode in made.items():
            size = sum(len(encode(image)) for image in images) / num
            print(f"| {name} | {best[name] / num * 1e6:.0f} | {size:,.0f} |")


if __name__ == "__main__":
    main()

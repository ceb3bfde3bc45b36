"""The tar layout of shards (ustar with one pax global header), byte by byte.

Made here because the bytes that the standard library's tarfile makes have changed between versions of Python. In and out:
bytes of headers. It reads and writes no file.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import TYPE_CHECKING

from genworker.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512
FILE = b"0"
_RECORD = 20 * BLOCK  # tar files end with two blocks of zeros and are filled up to a whole record
_GLOBAL = b"g"
_GLOBAL_NAME = "pax_global_header"


def padded(size: int) -> int:
    """Bytes that a member of ``size`` bytes takes after its header."""
    return -(-size // BLOCK) * BLOCK


def end_of(position: int) -> int:
    """Length of a tar file whose last member ends at ``position``."""
    return -(-(position + 2 * BLOCK) // _RECORD) * _RECORD


def header(name: str, size: int, type: bytes) -> bytes:
    """One ustar header (POSIX.1-2001, pax): owner root, mode 644, time 0."""
    fields = (name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size, b"%011o" % 0)
    rest = (type, b"", b"ustar\x0000", b"", b"", b"", b"")
    blank = struct.pack("100s8s8s8s12s12s8sc100s8s32s32s8s8s167x", *fields, b" " * 8, *rest)
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def global_header(provenance: Mapping[str, str], crc32: int) -> bytes:
    """What stands at the front of a shard: its provenance and the CRC-32 of all that follows."""
    lines = {"version": 1, "crc32": f"{crc32:08x}", "provenance": dict(sorted(provenance.items()))}
    text = b" comment=" + json.dumps({"genworker": lines}, separators=(",", ":")).encode() + b"\n"
    # A pax record begins with its own length, in decimal, which counts itself.
    length = next(total for digits in range(1, 9) if len(str(total := digits + len(text))) == digits)
    record = b"%d" % length + text
    return header(_GLOBAL_NAME, len(record), _GLOBAL) + record + bytes(-len(record) % BLOCK)


def read_global_header(data: bytes) -> tuple[dict[str, str], int]:
    """Provenance, and where the members start; raises DatasetError unless all that follows has the CRC-32 it should."""
    match = re.match(rb"[0-9]{1,5} comment=(.{1,65536})\n", data[BLOCK : BLOCK + 2**17])
    try:
        lines = json.loads(match[1])["genworker"] if match else {}
        provenance = {str(key): str(value) for key, value in lines["provenance"].items()}
        crc32 = int(lines["crc32"], 16)
        header = global_header(provenance, crc32)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration, struct.error) as err:
        raise DatasetError(
            f"WebDataset shard of {len(data)} bytes: it does not begin as shards of genworker do; it is damaged or foreign"
        ) from err
    if not data.startswith(header):
        raise DatasetError(
            "WebDataset shard: its first header is not as this version of genworker writes it; the shard is damaged"
        )
    seen = zlib.crc32(memoryview(data)[len(header) :])
    if seen != crc32:
        raise DatasetError(
            f"WebDataset shard of {len(data)} bytes: its members have CRC-32 {seen:08x}, it says {crc32:08x}; it is cut "
            "short or was changed"
        )
    return provenance, len(header)

"""The members of a tar file by their headers, without reading what lies between.

In: a way to read byte ranges. Out: name and place of each plain file, as ustar, GNU tar and pax write them. Nothing is ever
extracted, links and devices are passed over, and a damaged header is an error instead of an early end. (The standard
library's tarfile takes eight times as long for a header and ends quietly at a damaged one.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from genworker.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
_FILES = b"0\x007"  # plain, plain as old tar writes it, contiguous
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_MAX_EXTENDED_BYTES = 2**20  # of a pax header or a long name; real ones have a few hundred
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")

_PAX_SIZE = re.compile(rb"[0-9]{1,18}")
_OCTAL = re.compile(rb"[0-7]+")


class Member(NamedTuple):
    """A plain file of a tar file; all numbers count bytes from its start."""

    name: str
    header: int  # where its first header begins, an extended one included
    start: int  # of its content
    size: int
    end: int  # where the next header begins


def members(read: Callable[[int, int], bytes], size: int, where: str) -> Iterator[Member]:
    """Yield the plain files of a tar file, or of a stretch of one that begins at a header.

    Args:
        read: ``read(start, length)`` returns that many bytes, fewer only at the end.
        size: bytes of the file.
        where: names the file in messages.

    Raises:
        SourceError: a header is damaged, or the file ends inside a member.
    """
    position = header = 0
    long_name: str | None = None
    long_size: int | None = None
    while position < size:
        block = read(position, BLOCK)
        if not any(block):  # two blocks of zeros end a tar file; what follows is padding
            return
        kind, content, length = block[156:157], position + BLOCK, _size(block, position, where)
        if kind in _FILES and long_size is not None:
            length = long_size
        end = content + -(-length // BLOCK) * BLOCK
        if content + length > size:
            raise SourceError(
                f"{where}: is cut short: the member at byte {position} ends at byte {content + length}, the file at {size}"
            )
        if kind in (_PAX, _LONG_NAME):
            if length > _MAX_EXTENDED_BYTES:
                raise SourceError(f"{where}: the extended header at byte {position} has {length} bytes; it is damaged")
            text = read(content, length)
            if kind == _PAX:
                records = _pax_records(text, position, where)
                long_name = records.get(b"path", b"").decode("utf-8", "replace") or long_name
                long_size = _pax_size(records[b"size"], position, where) if b"size" in records else None
            else:
                long_name = text.rstrip(b"\0").decode("utf-8", "replace")
        elif kind not in (_PAX_GLOBAL, _LONG_LINK):
            if kind in _FILES:
                yield Member(long_name or _name(block), header, content, length, end)
            long_name = long_size = None
        position = end
        if kind not in (_PAX, _LONG_NAME, _LONG_LINK):
            header = end


def _size(block: bytes, position: int, where: str) -> int:
    """The size that a header tells, once its checksum holds."""
    try:
        told = _octal(block[148:156])
        if len(block) == BLOCK and told == sum(block) - sum(block[148:156]) + 8 * ord(" "):
            field = block[124:136]
            return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    except ValueError:
        pass
    raise SourceError(f"{where}: there is no tar header at byte {position}; the file is damaged, or compressed")


def _octal(field: bytes) -> int:
    """A number of a header. Raises ValueError where there are not only digits: a sign would send the reader backwards."""
    digits = field.strip(b" \0") or b"0"
    if _OCTAL.fullmatch(digits) is None:
        raise ValueError(f"{digits!r} is no octal number")
    return int(digits, 8)


def _pax_size(value: bytes, position: int, where: str) -> int:
    if _PAX_SIZE.fullmatch(value) is None:
        raise SourceError(f"{where}: the pax header at byte {position} has the size {value[:20]!r}; it is damaged")
    return int(value)


def _name(block: bytes) -> str:
    name, prefix = block[:100].rstrip(b"\0"), b""
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].rstrip(b"\0")
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_records(text: bytes, position: int, where: str) -> dict[bytes, bytes]:
    """The records of a pax header, each a line ``<length> <key>=<value>`` whose length counts all of it."""
    records, at = {}, 0
    while at < len(text):
        match = _PAX_RECORD.match(text, at)
        if match is None or not match.end() < (stop := at + int(match[1])) <= len(text):
            raise SourceError(f"{where}: the pax header at byte {position} is damaged")
        records[match[2]] = text[match.end() : stop - 1]
        at = stop
    return records

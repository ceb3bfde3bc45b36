"""What a key may be, the same in every store, so that a dataset can be copied from any store to any other.

In: keys as callers or listings spell them. Out: the key, or `UsageError`. Nothing here touches a store.
"""

from __future__ import annotations

from genworker.errors import UsageError

# Unfinished writes of the local store live here; no store accepts or lists keys below it.
TEMPORARY_PREFIX = ".genworker/tmp/"
MAX_KEY_BYTES = 1024  # the limit of S3


def check_key(key: str) -> str:
    """Return ``key`` if it is valid.

    Raises:
        UsageError: it is empty, absolute, too long, or has a backslash, a control character, or an empty, ``.`` or
            ``..`` part; a key with one of these would name different objects in different stores, or one outside.
    """
    if problem := _problem(key):
        raise UsageError(
            f"key {key!r}: {problem}; a key is a relative path with forward slashes, such as data/part-0.tar"
        )
    return key


def is_key(key: str) -> bool:
    """Whether ``key`` is valid; listings skip foreign objects whose names are not."""
    return not _problem(key)


def check_range(start: int, length: int | None) -> None:
    """Check the byte range of a `get`.

    Raises:
        UsageError: ``start`` or ``length`` is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise UsageError(f"byte range start={start}, length={length}: neither may be negative")


def _problem(key: str) -> str:
    problems = {
        "it is empty": not key,
        "it is absolute": key.startswith("/"),
        "it has a backslash": "\\" in key,
        "it has a control character": any(char < " " or char == "\x7f" for char in key),
        "it has a lone surrogate, which UTF-8 cannot hold": any("\ud800" <= char <= "\udfff" for char in key),
        "it has an empty, '.' or '..' part": any(part in {"", ".", ".."} for part in key.split("/")),
        f"names below {TEMPORARY_PREFIX} are kept for unfinished writes": f"{key}/".startswith(TEMPORARY_PREFIX),
        f"it has more than {MAX_KEY_BYTES} bytes": len(key.encode(errors="replace")) > MAX_KEY_BYTES,
    }
    return next((problem for problem, holds in problems.items() if holds), "")

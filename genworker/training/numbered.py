"""Names of the objects that a run makes again and again: by images seen, with so many digits that they sort by them.

In: a prefix, images seen, a suffix. Out: ``<prefix>images-000000000042<suffix>``, and back. Another name is somebody's.
"""

from __future__ import annotations

import re

_NUMBER = re.compile("images-([0-9]{12,18})")


def key_of(prefix: str, images_seen: int, suffix: str) -> str:
    """The name after so many images."""
    return f"{prefix}images-{images_seen:012d}{suffix}"


def images_of(key: str, prefix: str, suffix: str) -> int | None:
    """The images seen that ``key`` names, or None where it is no such name."""
    found = _NUMBER.fullmatch(key.removeprefix(prefix).removesuffix(suffix))
    return int(found[1]) if found and key == key_of(prefix, int(found[1]), suffix) else None

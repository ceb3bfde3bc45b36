"""Files that are not read although they look as if they were meant: said in a line, instead of left out without a word.

In: keys of a store. Out: whether one is a shard in another guise, and the line for whoever trains on the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".lzma", ".lz", ".z", ".br", ".zip")
_SHORT_FORMS = {"tar": (".tgz", ".tbz", ".tbz2", ".txz", ".tzst")}


def in_other_guise(name: str, extension: str) -> bool:
    """Whether a file would end in ``.extension`` (in small letters) if it were not compressed, or not written in capitals."""
    if name.endswith(f".{extension}"):
        return False
    plain = name.lower()
    if plain.endswith(_SHORT_FORMS.get(extension, ())):
        return True
    for ending in _COMPRESSED:
        plain = plain.removesuffix(ending)
    return plain.endswith(f".{extension}")


def only_plain(extension: str) -> str:
    """The rule and the next step for such files, for messages."""
    return (
        f"only uncompressed files whose names end in .{extension}, in small letters, are read: unpack or rename what is to be "
        "used"
    )


def remarks_on(url: str, *groups: tuple[Sequence[str], str]) -> tuple[str, ...]:
    """One line on all files that are not read, or nothing where there are none.

    Args:
        url: where they lie.
        groups: their keys, and for each group the reason and the next step, to stand behind "because".
    """
    told = [f"{len(keys)}, {min(keys)} first, because {reason}" for keys, reason in groups if keys]
    return (f"{url}: files that are not read: {'; '.join(told)}",) if told else ()

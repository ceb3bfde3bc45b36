"""Which split a name tells: one table for file names and for folder names.

In: paths below a source's URL. Out: the split that a file or a folder at the top belongs to. Nothing is opened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What is no training data under any of its names is told from what is, and is not taken for a test set.
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
# A word of a path that names a split, as Hugging Face's loader sees it: train-00000-of-00010, data/test/0, my_train; and as
# Hive's writers do: split=train/0.
_WORD = re.compile(rf"(?:^|[/_.\- =])({'|'.join(_SPLITS)})(?=[/_.\- 0-9]|$)")


def split_of(path: str) -> str | None:
    """The split that a path names, in any case; the last word counts, since folders hold more than one meaning."""
    words = _WORD.findall(path.lower())
    return _SPLITS[words[-1]] if words else None


def split_folders(keys: Iterable[str]) -> dict[str, str]:
    """The folders at the top of ``keys`` that are splits, and which; none where they are classes.

    Where all of them tell splits, and more than one, all are. Else a folder is a split if that is its whole name, and either
    all have such names, or one of them holds folders alone (a class holds images), or they tell more than one split. So
    train/ with images beside car/ is a class of vehicles, and so are steam train/ and electric train/.
    """
    tops, flat = set(), set()
    for key in keys:
        top, *deeper = key.split("/")[:-1] or [""]
        tops.add(top)
        if not deeper:
            flat.add(top)
    told = {top: split for top in sorted(tops) if (split := split_of(top))}
    if told.keys() == tops and (len(set(told.values())) > 1 or (len(tops) == 1 and not flat)):
        return told
    whole = {top: split for top, split in told.items() if top.lower().rpartition("=")[2] in _SPLITS}
    sure = whole.keys() == tops or len(set(whole.values())) > 1 or not whole.keys() <= flat
    return whole if sure else {}

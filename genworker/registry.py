"""Looking names up in the literal tables of the extension packages, with an error that helps."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from genworker.errors import UsageError


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for a name that is not known, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def lookup(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import what ``table`` holds under ``name``, a dotted path ending in a class.

    Raises:
        UsageError: the name is not in the table; the message lists those that are, and the nearest.
    """
    if name not in table:
        raise UsageError(f"{kind} {name!r}: there is no such {kind}; known: {', '.join(table)}{nearest(name, table)}")
    module, _, attribute = table[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)

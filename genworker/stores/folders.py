"""Folders that are made on the way to a file, and that are not to stay where no file did.

In: paths. Out: nothing but folders that are gone. It removes no folder that was there before, and none that holds anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def leaving_no_empty(*folders: Path) -> Iterator[list[Path]]:
    """Remove at the end those of ``folders``, and of those above them, that were missing before and are empty.

    Gives the missing ones, the deepest first.
    """
    missing = sorted(
        {folder for path in folders for folder in (path, *path.parents) if not folder.exists()},
        key=lambda folder: len(folder.parts),
        reverse=True,
    )
    try:
        yield missing
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()

"""Which columns of Parquet files hold images and labels, whether they can, and what the classes are called.

In: Arrow schemas. Out: names of columns and classes, or an error that says what the files would have to look like. No rows are
read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genworker.errors import SourceError
from genworker.sources.base import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_MAX_SHOWN = 10  # class names in a message


def choose_columns(
    url: str, schemas: Mapping[str, Any], image: str | None, label: str | None
) -> tuple[str, str | None]:
    """The image column and the label column (None: unlabelled): those asked for, or those with a usual name in any file.

    Raises SourceError where there is none for images, or a file lacks one, whichever file comes first: one without labels
    among others must not make all of them unlabelled. ``schemas`` are those of all files, by their keys.
    """
    wanted = image if image is not None else _usual(schemas, _IMAGE_COLUMNS)
    if wanted is None:
        seen = next(iter(schemas.values())).names
        raise SourceError(
            f"{url}: has no column called {' or '.join(_IMAGE_COLUMNS)}; set image_column to one of "
            f"{', '.join(seen) or '(no columns)'}"
        )
    _require(url, schemas, wanted, "" if image is None else f"image_column {image!r}: ", "")
    if label == UNLABELLED:
        return wanted, None
    labels = label if label is not None else _usual(schemas, _LABEL_COLUMNS)
    if labels is not None:
        asked = "" if label is None else f"label_column {label!r}: "
        _require(url, schemas, labels, asked, ", or label_column: none")
    return wanted, labels


def _usual(schemas: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that any file has a column of."""
    return next((name for name in names if any(name in schema.names for schema in schemas.values())), None)


def _require(url: str, schemas: Mapping[str, Any], name: str, asked: str, otherwise: str) -> None:
    """Raise SourceError unless all files have a column; what the user ``asked`` and can do ``otherwise`` is for the message."""
    lacking = [key for key, schema in schemas.items() if name not in schema.names]
    if not lacking:
        return
    seen = ", ".join(schemas[lacking[0]].names) or "(no columns)"
    if len(lacking) == len(schemas):
        raise SourceError(f"{url}: {asked}there is no such column; it has {seen}")
    holder = next(key for key, schema in schemas.items() if name in schema.names)
    raise SourceError(
        f"{url}: {asked}{len(lacking)} of {len(schemas)} files have no column {name!r}, {lacking[0]} first, which has {seen}; "
        f"{holder} has it, and all files need the same columns{otherwise}"
    )


def check_types(where: str, schema: Any, image: str, label: str | None) -> None:
    """Raise SourceError unless a file, which ``where`` names, has its columns once, and they can hold images and labels."""
    if (schema.metadata or {}).get(b"genworker.image.codec") == b"raw":
        raise SourceError(
            f"{where}: holds raw pixels, not image files; generate the dataset with codec png to train on it"
        )
    double = [name for name in (image, label) if name is not None and schema.names.count(name) > 1]
    if double:
        raise SourceError(f"{where}: has {schema.names.count(double[0])} columns called {double[0]!r}; name them apart")
    type_ = schema.field(image).type
    encoded = type_
    if pa.types.is_struct(type_):
        encoded = next((field.type for field in type_ if field.name == "bytes"), type_)
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise SourceError(
            f"{where}: column {image!r} is {type_}; images are read from encoded bytes (binary, or struct<bytes, path>)"
        )
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise SourceError(
            f"{where}: column {label!r} is {schema.field(label).type}; labels are class numbers (integers): convert "
            "it, name another label_column, or train without labels (label_column: none)"
        )


def class_names_of(metadata: Mapping[bytes, bytes], label: str | None) -> tuple[str, ...]:
    """The class names that Hugging Face's features give the label column, or none."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature.get("names")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        # Foreign metadata may say anything; without names the classes are numbers.
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def agreed_class_names(
    where: str, keys: Sequence[str], named: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[int]]:
    """The class names of the files that have some, and which files have none although others do.

    A file without names contradicts nothing: writers that do not know Hugging Face's features drop them.

    Args:
        where: the files and the column, for messages.
        keys: of the files.
        named: the class names of each, empty where it has none.

    Raises:
        SourceError: two files name other classes, for then their numbers mean other things.
    """
    first = next((index for index, names in enumerate(named) if names), None)
    if first is None:
        return (), []
    for key, names in zip(keys, named, strict=True):
        if names and names != named[first]:
            same = [a == b for a, b in zip(named[first], names, strict=False)]
            at = same.index(False) if False in same else len(same)
            raise SourceError(
                f"{where}: {keys[first]} has the class names {_shown(named[first], at)}, {key} has {_shown(names, at)}; all "
                "files need the same, in the same order, or label_column: none"
            )
    return named[first], [index for index, names in enumerate(named) if not names]


def _shown(names: Sequence[str], at: int) -> str:
    """Class names for a message: all of a few, else their number and those from the one on that matters."""
    if len(names) <= _MAX_SHOWN:
        return str(list(names))
    return f"(of {len(names)}, from {at} on) {list(names[at : at + _MAX_SHOWN])}"

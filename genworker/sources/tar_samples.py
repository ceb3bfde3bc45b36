"""WebDataset's rules: which members of a tar file make up a sample, which of them is its image, and what is its label.

In: members in the order in which they are stored. Out: samples. Members that follow each other and have the same name up to
the first dot are one sample.
"""

from __future__ import annotations

import json
import re
import reprlib
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from genworker.errors import SourceError
from genworker.sources.base import UNLABELLED, labels_must

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from genworker.sources.tar import Member

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp")
_TOO_LARGE = 10**18  # for a class number
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # of a name without a dot, WebDataset makes nothing


class Sample(NamedTuple):
    """The members of one sample by extension (in lower case, all after the first dot of the name)."""

    key: str
    parts: Mapping[str, Member]
    header: int  # where its first header begins
    end: int  # where the next sample's begins


def samples(members: Iterable[Member], where: str) -> Iterator[Sample]:
    """Yield the samples of a tar file; raises SourceError where an extension comes twice in one."""
    named = ((match[1], match[2].lower(), member) for member in members if (match := _NAME.fullmatch(member.name)))
    for key, group in groupby(named, key=lambda entry: entry[0]):
        entries = list(group)
        parts = {extension: member for _, extension, member in entries}
        if len(parts) < len(entries):
            raise SourceError(f"{where}: sample {key} has two members with the same extension; keys must be unique")
        yield Sample(key, parts, entries[0][2].header, entries[-1][2].end)


class Rules(NamedTuple):
    """Where a sample's image and label are; chosen once for all shards.

    Attributes:
        image: extension of the image, or None for the first that is one of ``IMAGE_EXTENSIONS``.
        label: extension of the label, ``cls`` or ``json`` or another that holds a number; None for unlabelled data.
        key: what holds the label in a JSON object.
    """

    image: str | None
    label: str | None
    key: str

    def image_of(self, sample: Sample) -> Member | None:
        """The member with the image, or None."""
        if self.image is not None:
            return sample.parts.get(self.image)
        return next((member for extension, member in sample.parts.items() if extension in IMAGE_EXTENSIONS), None)

    def label_of(self, sample: Sample, content: bytes | None, where: str) -> int:
        """The class number, from 0, in the label's bytes (None: the sample lacks that member); raises SourceError."""
        what = f"{where}: sample {sample.key}"
        if content is None:
            raise SourceError(
                f"{what}: has no label ({sample.key}.{self.label}), and all samples need one: add it, or train without labels "
                "(label_extension: none)"
            )
        value: object
        absent = f"no {self.key!r} in its JSON"
        try:
            if self.label == "json" or str(self.label).endswith(".json"):
                value = json.loads(content)[self.key]
            else:
                value = int(content) if re.fullmatch(rb"\s*-?[0-9]{1,18}\s*", content) else content[:40]
        except (KeyError, TypeError):
            value = None
        except (ValueError, RecursionError):
            value, absent = None, "in JSON that cannot be read"
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _TOO_LARGE:
            seen = absent if value is None else reprlib.repr(value)
            raise SourceError(
                f"{what}: its label is {seen}; labels are class numbers (integers): name another label_extension, or train "
                "without labels (label_extension: none)"
            )
        if value < 0:
            raise SourceError(f"{what}: its label is {value}; {labels_must(0)}, or label_extension: none")
        return value


def has_label(sample: Sample, content: bytes | None, where: str) -> bool:
    """Whether a sample has a label that is found unasked: ``.cls``, or ``label`` in its JSON, whose bytes are ``content``.

    Raises SourceError for JSON that cannot be read: what is damaged is not unlabelled.
    """
    if "cls" in sample.parts:
        return True
    if content is None:
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise SourceError(
            f"{where}: sample {sample.key}: its JSON cannot be read, so whether it holds a label is unknown "
            f"({reprlib.repr(content)}): repair it, or train without labels (label_extension: none)"
        ) from err
    return isinstance(found, dict) and "label" in found


def refuse_label(sample: Sample, content: bytes | None, where: str) -> None:
    """Raise SourceError where a sample of data that the first one made unlabelled has a label; see `has_label`."""
    if has_label(sample, content, where):
        kind = "cls" if "cls" in sample.parts else "json"
        raise SourceError(
            f"{where}: sample {sample.key}: has a label (.{kind}), which the first sample of all has not, and all samples need "
            "one: add it to those without, or train without labels (label_extension: none)"
        )


def choose_rules(
    first: Sample, asked: tuple[str | None, str | None, str | None], content: bytes | None, where: str
) -> Rules:
    """The rules by what the first sample has, unless the user named something.

    Data whose first sample has no label is unlabelled; all others have to be so too, see `refuse_label`.

    Args:
        first: the first sample of all shards.
        asked: the user's ``image_extension``, ``label_extension`` and ``label_key``.
        content: the first sample's JSON, if it has one.
        where: names the shard in messages.
    """
    # The dot before an extension is no part of it, but many write it.
    image, label = (name and name.lower().removeprefix(".") for name in asked[:2])
    key = asked[2]
    if label == UNLABELLED:
        label = None
    elif label is None and key is not None:
        label = "json"
    elif label is None and has_label(first, content, where):
        label = "cls" if "cls" in first.parts else "json"
    return Rules(image, label, key or "label")


def image_hint(first: Sample) -> str:
    """The next step where the first sample has no image under the extension that was looked for."""
    if "bin" in first.parts:
        return "generate the dataset with codec png to train on it"
    # Such as input.png, which is not taken unasked: there may be several.
    likely = [extension for extension in first.parts if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]
    if likely:
        return f"set image_extension to {' or '.join(likely)} to train on it"
    return (
        f"images are read as {', '.join(IMAGE_EXTENSIONS)}: convert them, or set image_extension where a member is such an "
        "image under another name"
    )

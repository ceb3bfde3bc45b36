"""Where the samples of tar shards lie, found by reading their headers, and the object that keeps this for the next time.

In: shards and the rules for samples. Out: per shard the stretches of samples that are fetched together; nothing per sample, so
that the index of any data stays small. Of large members only the headers are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from genworker.config import Spec
from genworker.errors import ObjectExistsError, ObjectMissingError, SourceError
from genworker.sources.encoded import NUM_THREADS
from genworker.sources.tar import BLOCK, members
from genworker.sources.tar_samples import Rules, Sample, choose_rules, image_hint, refuse_label, samples
from genworker.stores import open_store
from genworker.stores.base import get_at_most

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from genworker.stores.base import ObjectInfo, Store

# A member larger than this is skipped by asking for the next header; smaller ones cost less than another request.
_AHEAD_BYTES = 2**18
_MAX_INDEX_BYTES = 2**28  # of a million shards


class Span(NamedTuple):
    """Samples that are fetched together: a stretch of a tar file from the header of one to that of another."""

    start: int
    stop: int
    num_samples: int


class ShardIndex(Spec):
    """One shard.

    ``largest_label`` is -1 where labels were not read; ``headers`` is a SHA-256 over the names and sizes of all members.
    """

    key: str
    size: int
    spans: tuple[Span, ...]
    largest_label: Annotated[int, Field(ge=-1, lt=2**62)]
    headers: str

    @model_validator(mode="after")
    def _spans_lie_in_the_shard(self) -> ShardIndex:
        position = 0
        for span in self.spans:
            # Every sample has a header at least.
            if not (
                position <= span.start < span.stop <= self.size
                and 1 <= span.num_samples <= (span.stop - span.start) // BLOCK
            ):
                raise ValueError(f"{self.key} has {self.size} bytes, and no {span.num_samples} samples in {span[:2]}")
            position = span.stop
        return self


class TarIndex(Spec):
    """All shards of a split, and what decides how they were cut into spans.

    ``labels_read`` says that all labels were looked at, or, where ``label`` is None, that there are none.
    """

    version: Literal[1] = 1
    block_bytes: int
    image: str | None
    label: str | None
    label_key: str
    labels_read: bool
    shards: tuple[ShardIndex, ...]


class ReadAhead:
    """Byte ranges of one object, some kilobytes of which are fetched at a time; for one thread."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._at, self._buffer = 0, b""

    def __call__(self, start: int, length: int) -> bytes:
        """The bytes [start, start + length), fewer at the end of the object."""
        if not self._at <= start <= start + length <= self._at + len(self._buffer):
            self._at = start
            self._buffer = self._store.get(self._info.key, start=start, length=max(length, _AHEAD_BYTES))
        return self._buffer[start - self._at : start - self._at + length]


def samples_of(store: Store, info: ObjectInfo) -> Iterator[tuple[Sample, ReadAhead]]:
    """The samples of a shard, and what reads their members."""
    read, where = ReadAhead(store, info), f"{store.url}: {info.key}"
    for sample in samples(members(read, info.size, where), where):
        yield sample, read


def find_rules(
    store: Store, infos: Sequence[ObjectInfo], image: str | None, label: str | None, key: str | None
) -> Rules:
    """The rules by the first sample of all shards; raises SourceError where there is none, or it has no such image."""
    first = next(((*found, info.key) for info in infos for found in samples_of(store, info)), None)
    if first is None:
        raise SourceError(f"{store.url}: its {len(infos)} tar files hold no samples (members named <key>.<extension>)")
    sample, read, shard = first
    rules = choose_rules(sample, (image, label, key), _content(sample, "json", read), f"{store.url}: {shard}")
    if rules.image_of(sample) is None:
        wanted = f"no .{rules.image}" if rules.image else "none that is an image"
        raise SourceError(
            f"{store.url}: sample {sample.key} has the members {', '.join('.' + name for name in sample.parts)} and "
            f"{wanted}; {image_hint(sample)}"
        )
    return rules


def _content(sample: Sample, extension: str, read: ReadAhead) -> bytes | None:
    """The bytes of one member, or None where the sample lacks it."""
    part = sample.parts.get(extension)
    return read(part.start, part.size) if part else None


def scan(store: Store, info: ObjectInfo, rules: Rules, block_bytes: int, *, labels: bool) -> ShardIndex:
    """Index one shard; with ``labels``, read them too, or, where the rules know none, see that there are none.

    Raises SourceError for a damaged file or label, or one that should not be.
    """
    sha256, where = hashlib.sha256(), f"{store.url}: {info.key}"
    spans: list[Span] = []
    start, count, largest, end = -1, 0, -1, 0
    for sample, read in samples_of(store, info):
        if count and sample.end - start > block_bytes:
            spans.append(Span(start, end, count))
            count = 0
        start = sample.header if count == 0 else start
        # The padding of the last member may be missing; its content is all there.
        count, end = count + 1, min(sample.end, info.size)
        for member in sample.parts.values():
            sha256.update(f"{member.name}\0{member.size}\0".encode())
        if labels and rules.label is None:
            # The bytes of JSON are mostly here already, fetched with the headers.
            refuse_label(sample, _content(sample, "json", read), where)
        elif labels:
            largest = max(largest, rules.label_of(sample, _content(sample, str(rules.label), read), where))
    if count:
        spans.append(Span(start, end, count))
    return ShardIndex(
        key=info.key, size=info.size, spans=tuple(spans), largest_label=largest, headers=sha256.hexdigest()
    )


def index_of(
    store: Store, infos: Sequence[ObjectInfo], rules: Rules, block_bytes: int, *, labels: bool, url: str | None
) -> TarIndex:
    """Index all shards, many at a time; or take the index at ``url``, which is made there where it is missing.

    Raises:
        SourceError: a shard is damaged, or the index at ``url`` is of other shards or settings.
    """
    empty = TarIndex(
        block_bytes=block_bytes,
        image=rules.image,
        label=rules.label,
        label_key=rules.key,
        labels_read=labels,
        shards=(),
    )
    if url is not None and (kept := _load(url)) is not None:
        same = kept.model_copy(update={"shards": ()}) == empty
        if not same or [(s.key, s.size) for s in kept.shards] != [(info.key, info.size) for info in infos]:
            raise SourceError(
                f"index {url}: was made of other shards of {store.url}, or with other settings; delete it, or name "
                "another object"
            )
        return kept
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        shards = tuple(pool.map(lambda info: scan(store, info, rules, block_bytes, labels=labels), infos))
    index = empty.model_copy(update={"shards": shards})
    if url is not None:
        _save(url, index)
    return index


def _place(url: str) -> tuple[Store, str]:
    parent, _, name = url.rpartition("/")
    return open_store(parent or "/"), name


def _load(url: str) -> TarIndex | None:
    store, name = _place(url)
    try:
        return TarIndex.model_validate_json(get_at_most(store, name, _MAX_INDEX_BYTES, SourceError))
    except ObjectMissingError:
        return None
    except ValueError as err:
        raise SourceError(f"index {url}: is no index of tar shards: {str(err)[:500]}; delete it") from err


def _save(url: str, index: TarIndex) -> None:
    store, name = _place(url)
    with contextlib.suppress(ObjectExistsError):  # another worker made the same one at the same time
        store.put(name, index.model_dump_json().encode())

"""Receipts and shards as columns behave as the mappings and tuples of models that they stand for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genworker.bulk import shard_table
from genworker.bulk.receipt_table import ReceiptTable
from genworker.bulk.records import Manifest, Receipt
from genworker.bulk.shard_table import ShardEntry, ShardTable
from genworker.config import canonical_json
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAN = fake.make_plan(num_samples=500, samples_per_shard=10)  # 50 shards
NUM_SHARDS = 50


def receipt(index: int, attempt: int = 0) -> Receipt:
    return Receipt(
        shard_index=index,
        num_samples=1 + index,
        num_bytes=10**12 + index,
        sha256=hashlib.sha256(b"%d" % index).hexdigest(),
        attempt=attempt,
    )


steps = st.lists(st.tuples(st.integers(0, NUM_SHARDS - 1), st.integers(0, 3), st.booleans()), max_size=40)


@settings(max_examples=60, deadline=None)
@given(script=steps)
def test_a_table_of_receipts_is_a_mapping(script: list[tuple[int, int, bool]]) -> None:
    """Whatever is set and deleted, the table holds what a dict would."""
    table, expected = ReceiptTable(NUM_SHARDS), {}
    for index, attempt, deletes in script:
        if deletes and index in expected:
            del table[index], expected[index]
        else:
            table[index] = expected[index] = receipt(index, attempt)
    assert table == expected
    assert list(table) == sorted(expected)
    assert len(table) == len(expected)
    assert all((index in table) == (index in expected) for index in range(-2, NUM_SHARDS + 2))
    assert ReceiptTable.of(NUM_SHARDS, expected) == table
    assert table.num_samples.sum() == sum(one.num_samples for one in expected.values())
    chosen = table.there.copy()
    chosen[::2] = False
    assert table.where(chosen) == {index: one for index, one in expected.items() if index % 2}


@pytest.mark.parametrize("index", [-1, NUM_SHARDS])
def test_a_shard_that_the_plan_lacks_is_refused(index: int) -> None:
    """There is no place for a receipt outside the plan."""
    table = ReceiptTable(NUM_SHARDS)
    with pytest.raises(KeyError):
        table[index]
    with pytest.raises(KeyError):
        table[index] = receipt(3)
    with pytest.raises(KeyError):
        del table[3]


def entries(count: int, key: str = "data/ä-{}") -> tuple[ShardEntry, ...]:
    return tuple(
        ShardEntry(
            key=key.format(row), num_samples=1 + row, num_bytes=2 + row, sha256=hashlib.sha256(b"%d" % row).hexdigest()
        )
        for row in range(count)
    )


def manifest_of(shards: Sequence[ShardEntry]) -> Manifest:
    return Manifest(plan_id=PLAN.plan_id, plan=PLAN, num_samples=500, num_bytes=99, shards=shards)


@pytest.mark.parametrize("count", [0, 1, 3, 7, 20])
def test_a_manifest_is_the_same_with_columns(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Columns give the canonical JSON that a list of models gives, and read it back, in one chunk or in several."""
    monkeypatch.setattr(shard_table, "_CHUNK", 3)
    shards = entries(count)
    manifest = manifest_of(shards)
    assert isinstance(manifest.shards, ShardTable)
    assert tuple(manifest.shards) == shards == manifest.shards[:]
    text = canonical_json(manifest.model_dump(mode="json"))
    assert manifest.canonical() == text
    assert manifest.model_copy(update={"shards": shards}).canonical() == text
    again = Manifest.model_validate_json(text)
    assert again == manifest == Manifest.read(text.encode())
    assert hash(again.shards) == hash(manifest.shards)
    assert again.shards == shards
    assert again != manifest_of(entries(count + 1))
    for row, entry in enumerate(shards):
        assert manifest.shards.find(entry.sha256) == manifest.shards.key(row) == entry.key
    assert manifest.shards.find("0" * 64) is None
    with pytest.raises(IndexError):
        manifest.shards[count]


@pytest.mark.parametrize("row", [0, 2, 10])
@pytest.mark.parametrize(
    ("key", "value"), [("sha256", "f" * 63), ("num_bytes", 0), ("num_samples", "many"), ("key", 5), ("sha256", None)]
)
def test_a_wrong_row_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch, row: int, key: str, value: object) -> None:
    """The row and the key that are wrong are named, whichever chunk they are in."""
    monkeypatch.setattr(shard_table, "_CHUNK", 3)
    values = manifest_of(entries(12)).model_dump(mode="json")
    values["shards"][row][key] = value
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate(values)
    assert caught.value.errors()[0]["loc"][-2:] == (row, key)


def test_the_rows_of_canonical_json_are_scanned() -> None:
    """Canonical JSON is read row by row, with the same result; what was changed in any byte is read as ever, or refused."""
    manifest = manifest_of(entries(7, key="data/train-{}.parquet"))
    text = manifest.canonical().encode()
    scanned = ShardTable.scan(text)
    assert scanned is not None
    assert scanned[0] == manifest.shards
    assert Manifest.read(text) == manifest
    first, last = text.index(b'"shards"'), text.rindex(b"]")
    for position in range(first, last + 1, 5):
        for other in b'",0{':
            changed = text[:position] + bytes([other]) + text[position + 1 :]
            try:
                expected = Manifest.model_validate_json(changed)
            except ValidationError:
                with pytest.raises(ValidationError):
                    Manifest.read(changed)
            else:
                assert Manifest.read(changed) == expected


@pytest.mark.parametrize(
    "change", [(b'"num_bytes":2,', b'"num_bytes": 2,'), (b"data/0", b"data/\\u00e4"), (b"data/0", "ä".encode())]
)
def test_other_json_is_read_by_the_general_parser(change: tuple[bytes, bytes]) -> None:
    """Spaces, escapes and other alphabets are JSON too."""
    text = manifest_of(entries(3, key="data/{}")).canonical().encode().replace(*change)
    assert ShardTable.scan(text) is None
    assert Manifest.read(text) == Manifest.model_validate_json(text)

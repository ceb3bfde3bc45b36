"""What people write in specs is read as they mean it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genworker.errors import UsageError
from genworker.yaml_text import read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:8", "2:8"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("1e-3", 0.001),
        ("1.5E+6", 1.5e6),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("1_000_000", 1_000_000),
        ("-7", -7),
        ("0x1F", 31),
        ("0", 0),
        ("010", "010"),
        (".inf", math.inf),
        ("true", True),
        ("FALSE", False),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("null", None),
        ("~", None),
        ("[2, 1e3, a]", [2, 1000.0, "a"]),
        ("{a: 1:2, b: off}", {"a": "1:2", "b": "off"}),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1_000.5", 1000.5),
    ],
)
def test_numbers_and_switches_are_those_of_yaml_12(text: str, value: Any) -> None:
    """No base 60, no octal without a letter, no words for switches; exponents without a point."""
    found = read_value(text, "here")
    assert (found, type(found)) == (value, type(value))


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_what_python_writes_is_read_back(value: float | int | bool | None) -> None:
    """Any number, as Python or JSON write it."""
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else repr(value)
    assert text is not None
    found = read_value({"inf": ".inf", "-inf": "-.inf"}.get(text, text), "here")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 5\nseed: 6\n", "the key 'seed' twice, in lines 1 and 2"),
        ("training:\n  images: 5\nout: x\ntraining: {}\n", "the key 'training' twice, in lines 1 and 4"),
        ("a:\n  - {b: 1, c: 2, b: 3}\n", "the key 'b' twice, in lines 2 and 2"),
        ("{a: 1, 'a': 2}", "the key 'a' twice"),
        ("{? {a: 1, a: 2} : 3}", "the key 'a' twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, told: str) -> None:
    """YAML's reader keeps the last, and what the first one said is lost."""
    with pytest.raises(UsageError, match=f"^here has {told}.*; keep one of the two$"):
        read_value(text, "here")


def test_keys_of_different_mappings_may_be_alike() -> None:
    """Also where one of them is merged into another, or named by an alias."""
    assert read_value("{a: {b: 1}, c: {b: 2}, b: 3}", "here") == {"a": {"b": 1}, "c": {"b": 2}, "b": 3}
    assert read_value("a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: *x\n", "here") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "d": {"b": 1},
    }
    assert read_value("{1: a, '1': b}", "here") == {1: "a", "1": "b"}

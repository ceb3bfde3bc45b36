"""What people write in specs is read as they mean it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

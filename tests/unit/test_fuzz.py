"""Every parser of foreign input answers mutated input with what it holds or a GenworkerError, and nothing else.

`python -m tests.benchmarks.fuzz` tries thousands per parser and measures memory.
"""

from __future__ import annotations

import pytest

from tests import fuzz

NUM_INPUTS, NUM_BUNDLES = 60, 15  # a bundle's networks are built for every input


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about broken pictures
@pytest.mark.parametrize("name", fuzz.parsers())
def test_mutated_input_is_read_or_refused(name: str) -> None:
    """No mutation crashes; most are refused, so that the mutations are known to reach something that is checked."""
    num_inputs = NUM_BUNDLES if name.startswith("bundle") else NUM_INPUTS
    tally = fuzz.fuzz(name, num_inputs)
    assert not tally.crashes, dict(tally.crashes)
    assert tally.read + tally.refused == num_inputs
    assert tally.refused > 0


def test_what_is_no_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that raises anything else than a GenworkerError is found out."""

    def careless(data: bytes) -> None:
        if data != b"sound":
            raise KeyError(data[:1])

    monkeypatch.setattr(fuzz, "parsers", lambda: {"careless": fuzz.Parser((b"sound",), careless)})
    tally = fuzz.fuzz("careless", 50)
    assert sum(tally.crashes.values()) > 30

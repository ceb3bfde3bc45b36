"""Every parser of foreign input answers mutated input with what it holds or a GenworkerError, and nothing else.

`python -m tests.benchmarks.fuzz` tries thousands per parser and measures memory.
"""

from __future__ import annotations

import pytest

from tests import fuzz
from tests.benchmarks import fuzz as benchmark

NUM_INPUTS, NUM_BUNDLES = 60, 15  # a bundle's networks are built for every input


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about broken pictures
@pytest.mark.parametrize("name", fuzz.parsers())
def test_mutated_input_is_read_or_refused(name: str) -> None:
    """No mutation crashes; most are refused, so that the mutations are known to reach something that is checked."""
    num_inputs = NUM_BUNDLES if name.startswith("bundle") else NUM_INPUTS
    tally = fuzz.fuzz(name, num_inputs)
    assert not tally.crashes, tally.smallest
    assert tally.read + tally.refused >= num_inputs
    assert tally.refused > 0
    assert tally.mib < fuzz.parsers()[name].max_mib


def test_what_is_no_answer_is_counted_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that raises anything else than a GenworkerError is found out, with the smallest input that shows it."""

    def careless(data: bytes) -> None:
        if len(data) > 3 and data != b"sound as long as it is":
            raise KeyError("long")

    monkeypatch.setattr(fuzz, "parsers", lambda: {"careless": fuzz.Parser((b"sound as long as it is",), careless)})
    tally = fuzz.fuzz("careless", 50)
    assert list(tally.crashes) == ["KeyError: 'long'"]
    assert len(tally.smallest["KeyError: 'long'"]) < 22


def test_memory_that_an_input_takes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that answers a short input with much memory, if only for a moment, is found out."""

    def greedy(data: bytes) -> None:
        if data != b"sound":
            bytearray(b"x") * 200_000_000

    parser = fuzz.Parser((b"sound",), greedy)
    monkeypatch.setattr(fuzz, "parsers", lambda: {"greedy": parser})
    assert fuzz.fuzz("greedy", 3).mib > parser.max_mib


def test_the_benchmark_fails_with_a_crash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit status tells of a crash, of a process that ended, and of too much memory."""
    sound = {"read": 1, "refused": 9, "crashes": {}, "mib": 1.0, "seconds": 0.1}
    monkeypatch.setattr(benchmark.sys, "argv", ["fuzz", "--only", "template"])
    for seen, status in [
        (sound, 0),
        (sound | {"crashes": {"KeyError: 'x'": 2}}, 1),
        (sound | {"mib": fuzz.parsers()["template"].max_mib + 1.0}, 1),
        ("the process ended with -6", 1),
    ]:
        monkeypatch.setattr(benchmark, "in_a_process_of_its_own", lambda *_, seen=seen: seen)
        assert benchmark.main() == status
    assert "template: the process ended with -6" in capsys.readouterr().out

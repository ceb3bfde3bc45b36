"""Mutated inputs for everything that parses what a stranger may have written: each has to be read or refused, never a crash.

In: a parser's name, a number of inputs, a seed. Out: how many were read, how many refused with a GenworkerError, the most
memory that reading took, and what else happened, which is a bug. Hypothesis draws the mutations, so that a bug is shown with
the smallest input that it could find.
"""

from __future__ import annotations

import copy
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from genworker.errors import GenworkerError
from tests.foreign import Parser, parsers
from tests.memory import growth

if TYPE_CHECKING:
    import random

__all__ = ["Parser", "Tally", "fuzz", "mutated", "parsers"]

_ODD_NUMBERS = [
    0,
    1,
    -1,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    1e308,
    0.5,
    -0.0,
]
_ODD_VALUES: list[Any] = [
    *_ODD_NUMBERS,
    None,
    True,
    "",
    "x" * 300,
    "\ud800",
    "../../etc/passwd",
    [],
    {},
    [[]],
    {"a": {}},
]


@dataclass
class Tally:
    """What became of the inputs of one parser, and the memory that they took beyond the sound ones.

    ``crashes`` counts what is no answer by its kind; ``smallest`` holds an input for each kind, as small as was found.
    """

    read: int = 0
    refused: int = 0
    mib: float = 0.0
    crashes: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, bytes] = field(default_factory=dict)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four small or large changes: bits, bytes, numbers, cuts, repeats, splices; JSON also by its structure."""
    if data[:1] in {b"{", b"["} and rng.random() < 0.7:
        return _mutated_json(data, rng)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice([1, 1, 2, 4, 8, 16, 64, 512, 4096]), len(changed) - at)
        kind = rng.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            changed[at : at + length] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length
        elif kind == 3:
            number = int(rng.choice(_ODD_NUMBERS[:13])) % 2**64
            changed[at : at + 8] = struct.pack(rng.choice(["<Q", ">Q"]), number)
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 6:
            del changed[at:]
        else:
            start = rng.randrange(len(other) + 1)
            changed[at : at + length] = other[start : start + length]
    return bytes(changed)


def _mutated_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        here, path = value, []
        while isinstance(here, dict | list) and here and (not path or rng.random() < 0.8):
            key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            path.append((here, key))
            here = here[key]
        if not path:
            return b"[" * rng.choice([1, 1000, 100_000])
        parent, key = path[-1]
        kind = rng.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(["x", "name", "version", "", key + "_"])] = copy.deepcopy(rng.choice(_ODD_VALUES))
        elif kind == 2 and isinstance(parent[key], int | float):
            parent[key] = rng.choice([parent[key] + 1, parent[key] * 1000, -parent[key], *_ODD_NUMBERS])
        else:
            parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
    return json.dumps(value).encode()


def fuzz(name: str, num_inputs: int, seed: int = 0) -> Tally:
    """Give a parser ``num_inputs`` mutated inputs, fewer where one of them is neither read nor refused."""
    parser, tally = parsers()[name], Tally()
    for sound in parser.seeds:
        parser.parse(sound)

    @hypothesis.seed(f"{name} {seed}")
    @settings(
        max_examples=num_inputs,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @hypothesis.given(st.sampled_from(parser.seeds), st.sampled_from(parser.seeds), st.randoms(use_true_random=False))
    def one(data: bytes, other: bytes, rng: random.Random) -> None:
        changed = mutated(data, other, rng)
        try:
            parser.parse(changed)
        except GenworkerError:
            tally.refused += 1
        except Exception as err:
            kind = f"{type(err).__name__}: {str(err)[:150]}"
            tally.crashes[kind] += 1
            if len(changed) <= len(tally.smallest.setdefault(kind, changed)):
                tally.smallest[kind] = changed
            raise
        else:
            tally.read += 1

    with growth() as grown:
        try:
            one()
        except Exception:  # a crash, or hypothesis's group of several; they are counted already
            if not tally.crashes:
                raise
    tally.mib = grown.mib
    return tally

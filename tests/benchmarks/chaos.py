"""Hundreds of rounds of chaos, several at a time, and a table of what became of them.

    python -m tests.benchmarks.chaos --rounds 300 --seed 0 [--only NAME] [--at-once 3] [--format files] [--ray 2] [--errors]

Round i of scenario s is a function of (seed, s, i) as far as threads and processes let it be. A round that ends in anything
but the undisturbed run's bytes, or an exact error and then those bytes, is printed with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genworker.formats import FORMATS
from tests.chaos.clusters import RAY_SCENARIOS, ray_ground_in
from tests.chaos.ground import ground_in
from tests.chaos.scenarios import NEED_MOUNT, SCENARIOS, Outcome, can_mount

Played = tuple[str, int, "Outcome | str"]


def play(scenario: Callable[[Any, random.Random], Outcome], ground: Any, seed: str) -> Outcome | str:
    """One round; a string tells how it failed."""
    try:
        return scenario(ground, random.Random(seed))
    except Exception:
        return traceback.format_exc()


def play_many(options: argparse.Namespace) -> Iterator[Played]:
    """Rounds without Ray, several at a time."""
    with tempfile.TemporaryDirectory() as folder, ground_in(Path(folder), format=options.format) as ground:
        names = [options.only] if options.only else list(SCENARIOS)
        if not can_mount(folder):
            print("no file system can be mounted here: left out", ", ".join(sorted(NEED_MOUNT)))
            names = [name for name in names if name not in NEED_MOUNT]
        rounds = [(names[number % len(names)], number // len(names)) for number in range(options.rounds)]
        with ThreadPoolExecutor(options.at_once) as threads:
            playing = [
                threads.submit(play, SCENARIOS[name], ground, f"{options.seed}/{name}/{number}")
                for name, number in rounds
            ]
        for (name, number), future in zip(rounds, playing, strict=True):
            yield name, number, future.result()


def play_on_ray(options: argparse.Namespace) -> Iterator[Played]:
    """Rounds on a cluster, one at a time."""
    with tempfile.TemporaryDirectory() as folder, ray_ground_in(Path(folder)) as ground:
        for number in range(options.ray):
            for name, scenario in RAY_SCENARIOS.items():
                yield name, number, play(scenario, ground, f"{options.seed}/{name}/{number}")


def main() -> int:
    """Play rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--ray", type=int, default=0, help="rounds of each scenario on a Ray cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(SCENARIOS), help="one scenario")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--format", choices=sorted(FORMATS), default="parquet")
    parser.add_argument("--errors", action="store_true", help="print what jobs said when they ended unpublished")
    options = parser.parse_args()
    began = time.monotonic()
    played = list(play_many(options)) if options.rounds else []
    played += play_on_ray(options) if options.ray else []
    failed = [(name, number, outcome) for name, number, outcome in played if isinstance(outcome, str)]
    for name, number, trace in failed:
        print(f"FAILED {name}, seed {options.seed}, round {number}:\n{trace}")
    by_name: dict[str, list[Outcome]] = {}
    for name, _, outcome in played:
        if isinstance(outcome, Outcome):
            by_name.setdefault(name, []).append(outcome)
    outcomes = [outcome for each in by_name.values() for outcome in each]
    if options.errors:
        print("\n".join(sorted({outcome.error for outcome in outcomes if outcome.error})))
    print("| scenario | rounds | faults | published | resumed | errors | losses | duplicates |")
    print("|---|---|---|---|---|---|---|---|")
    for name, each in by_name.items():
        print_line(name, each)
    print_line("**all**", outcomes)
    print(f"\n{len(failed)} failed; {time.monotonic() - began:.0f} s")
    return bool(failed) or any(outcome.losses or outcome.duplicates for outcome in outcomes)


def print_line(name: str, outcomes: list[Outcome]) -> None:
    """One line of the table."""
    errors = ", ".join(sorted({outcome.error.partition(":")[0] for outcome in outcomes if outcome.error})) or "-"
    sums = [
        sum(getattr(outcome, what) for outcome in outcomes)
        for what in ("faults", "published", "resumed", "losses", "duplicates")
    ]
    faults, published, resumed, losses, duplicates = sums
    print(
        f"| {name} | {len(outcomes)} | {faults} | {published} | {resumed} | {errors} | {losses} | {duplicates} |",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())

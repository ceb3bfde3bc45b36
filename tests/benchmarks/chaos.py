"""Hundreds of rounds of chaos, several at a time, and a table of what became of them.

    python -m tests.benchmarks.chaos --rounds 300 --seed 0 [--only NAME] [--at-once 3] [--errors]

Round i of scenario s is a function of (seed, s, i) as far as threads and processes let it be. A round that ends in anything
but the undisturbed run's bytes, or an exact error and then those bytes, is printed with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.ground import Ground, ground_in
from tests.chaos.scenarios import NEED_MOUNT, SCENARIOS, Outcome, can_mount


def play(ground: Ground, name: str, seed: int, number: int) -> Outcome | str:
    """One round; a string tells how it failed."""
    try:
        return SCENARIOS[name](ground, random.Random(f"{seed}/{name}/{number}"))
    except Exception:
        return traceback.format_exc()


def main() -> int:
    """Play rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(SCENARIOS), help="one scenario")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--errors", action="store_true", help="print what jobs said when they ended unpublished")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ground_in(Path(folder)) as ground:
        names = [options.only] if options.only else list(SCENARIOS)
        if not can_mount(folder):
            print("no file system can be mounted here: left out", ", ".join(sorted(NEED_MOUNT)))
            names = [name for name in names if name not in NEED_MOUNT]
        rounds = [(names[number % len(names)], number // len(names)) for number in range(options.rounds)]
        with ThreadPoolExecutor(options.at_once) as threads:
            outcomes = list(threads.map(lambda each: play(ground, each[0], options.seed, each[1]), rounds))
    if options.errors:
        print(
            "\n".join(sorted({outcome.error for outcome in outcomes if isinstance(outcome, Outcome) and outcome.error}))
        )
    by_name: dict[str, list[Outcome]] = defaultdict(list)
    failed = 0
    for (name, number), outcome in zip(rounds, outcomes, strict=True):
        if isinstance(outcome, str):
            failed += 1
            print(f"FAILED {name}, seed {options.seed}, round {number}:\n{outcome}")
        else:
            by_name[name].append(outcome)
    print("| scenario | rounds | faults | published | resumed | errors | losses | duplicates |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        print_line(name, by_name[name])
    print_line("**all**", [outcome for each in by_name.values() for outcome in each])
    print(f"\n{failed} failed; {time.monotonic() - began:.0f} s")
    return bool(failed)


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

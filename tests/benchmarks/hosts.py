"""What hosts that come and go cost: every scenario of `tests.host_scenarios` several times, and a table of what became of it.

    python -m tests.benchmarks.hosts --rounds 3

Seconds lost are the wall clock of the disturbed command minus that of the undisturbed one on hosts alike in the same round.
A round in which a shard is lost, stored twice or different is printed, and the exit code is 1. Needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests import host_scenarios as scenarios
from tests.fakes.bundle import save_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host_scenarios import Outcome, Site

# In the order in which they are played: each with what it is compared with, which comes before it or right after it.
SCENARIOS: dict[str, tuple[Callable[[Site], Outcome], str | None]] = {
    "both hosts undisturbed": (scenarios.undisturbed, None),
    "a host killed": (scenarios.killed, "both hosts undisturbed"),
    "a host's raylet killed": (scenarios.raylet_killed, "both hosts undisturbed"),
    "a host cut off and frozen, back when its tasks were given away": (scenarios.cut_off, "both hosts undisturbed"),
    "a host announced to go in 3 s": (scenarios.announced, "both hosts undisturbed"),
    "a host joins late, the other has a slow link": (scenarios.late, "both from the start, one with a slow link"),
    "both from the start, one with a slow link": (scenarios.not_late, None),
    "training undisturbed": (scenarios.trained, None),
    "training, a host killed": (scenarios.training_killed, "training undisturbed"),
    "training, a host's raylet killed": (scenarios.training_raylet_killed, "training undisturbed"),
}


def play(site: Site, number: int) -> dict[str, Outcome | None]:
    """One round; None stands for a scenario that failed, which is printed."""
    outcomes: dict[str, Outcome | None] = {}
    for name, (scenario, _) in SCENARIOS.items():
        try:
            outcomes[name] = scenario(site)
        except Exception:
            print(f"FAILED {name}, round {number}:\n{traceback.format_exc()}", flush=True)
            outcomes[name] = None
            site.lose()
        print(f"round {number}: {name}: {outcomes[name]}, load {os.getloadavg()[0]:.1f}", flush=True)
    return outcomes


def main() -> int:
    """Play rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with scenarios.site_in(folder, save_bundle(str(folder / "bundle"))) as site:
            rounds = [play(site, number) for number in range(options.rounds)]
    print("| scenario | rounds | published | resumed | bytes equal | late puts refused | seconds | seconds lost |")
    print("|---|---|---|---|---|---|---|---|")
    for scenario, (_, baseline) in SCENARIOS.items():
        whole = [outcome for outcome in (each[scenario] for each in rounds) if outcome is not None]
        published = sum(outcome.published for outcome in whole)
        equal = "-" if scenario.startswith("training") else len(whole)
        lost = [
            disturbed.seconds - plain.seconds
            for each in rounds
            if baseline and (disturbed := each[scenario]) and (plain := each[baseline])
        ]
        print(
            f"| {scenario} | {len(rounds)} | {published} | {len(whole) - published} | {equal} "
            f"| {sum(outcome.refused for outcome in whole) or '-'} "
            f"| {_spread([outcome.seconds for outcome in whole])} | {_spread(lost)} |"
        )
    print(f"\n{time.monotonic() - began:.0f} s; load {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end")
    return any(outcome is None for each in rounds for outcome in each.values())


def _spread(values: list[float]) -> str:
    """Median, and all values in order."""
    if not values:
        return "-"
    each = ", ".join(f"{value:.0f}" for value in sorted(values))
    return each if len(values) == 1 else f"{statistics.median(values):.0f} ({each})"


if __name__ == "__main__":
    raise SystemExit(main())

"""Thousands of mutated inputs per parser of foreign input: what was read, what refused, crashes, and the most memory.

    python -m tests.benchmarks.fuzz --inputs 10000

Each parser runs in a process of its own, so that one that ends the process is counted and the memory is its own: the peak of
the resident set beyond what it was once all sound inputs had been read. Asking for more than a gibibyte fails there. The exit
status is 1 where anything crashed, or took more memory than its parser may.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tests import fuzz

_ROOM_BYTES = 2**30  # of addresses, beyond what the process has once the libraries are loaded


def one(name: str, num_inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz one parser in this process."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for sound in fuzz.parsers()[name].seeds:
        fuzz.parsers()[name].parse(sound)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + _ROOM_BYTES, resource.RLIM_INFINITY))
    began = time.process_time()
    tally = fuzz.fuzz(name, num_inputs, seed)
    return {
        "read": tally.read,
        "refused": tally.refused,
        "crashes": {f"{kind} <- {tally.smallest[kind][:300]!r}": count for kind, count in tally.crashes.items()},
        "mib": tally.mib,
        "seconds": time.process_time() - began,
    }


def in_a_process_of_its_own(name: str, num_inputs: int, seed: int) -> dict[str, Any] | str:
    """What `one` found, or how its process ended."""
    command = [sys.executable, "-m", "tests.benchmarks.fuzz", f"--here={name}"]
    command += ["--inputs", str(num_inputs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Print the table, and below it whatever is no answer; return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inputs", type=int, default=10_000, help="per parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", help="parsers whose name contains this")
    arguments.add_argument("--here", help="fuzz this one parser and print JSON")
    args = arguments.parse_args()
    if args.here:
        print(json.dumps(one(args.here, args.inputs, args.seed)))
        return 0
    findings: list[str] = []
    print("| parser | inputs | read | refused | crashes | memory above the start, MiB | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name, parser in fuzz.parsers().items():
        if args.only and args.only not in name:
            continue
        seen = in_a_process_of_its_own(name, args.inputs, args.seed)
        if isinstance(seen, str):
            findings.append(f"{name}: {seen}")
            print(f"| {name} | {args.inputs:,} | - | - | the process ended | - | - |", flush=True)
            continue
        findings += [f"{name}: {count} x {what}" for what, count in seen["crashes"].items()]
        if seen["mib"] > parser.max_mib:
            findings.append(f"{name}: took {seen['mib']:.0f} MiB, more than {parser.max_mib}")
        crashes = sum(seen["crashes"].values())
        inputs = seen["read"] + seen["refused"] + crashes
        print(
            f"| {name} | {inputs:,} | {seen['read']:,} | {seen['refused']:,} | {crashes} | {seen['mib']:.0f} | "
            f"{seen['seconds']:.0f} |",
            flush=True,
        )
    print("\n".join(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

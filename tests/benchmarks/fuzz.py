"""Thousands of mutated inputs per parser of foreign input: what was read, what refused, crashes, and the most memory.

    python -m tests.benchmarks.fuzz --inputs 10000

Each parser runs in a process of its own, so that one that ends the process is counted and the memory is its own: the peak of
the resident set beyond what it was once all sound inputs had been read.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import time
import warnings

from tests import fuzz


def one(name: str, num_inputs: int, seed: int) -> dict[str, object]:
    """Fuzz one parser in this process."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    parser = fuzz.parsers()[name]
    for sound in parser.seeds:
        parser.parse(sound)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    tally = fuzz.fuzz(name, num_inputs, seed)
    return {
        "read": tally.read,
        "refused": tally.refused,
        "crashes": dict(tally.crashes),
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "seconds": time.process_time() - began,
    }


def main() -> None:
    """Print the table, and below it whatever is no answer."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inputs", type=int, default=10_000, help="per parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", help="parsers whose name contains this")
    arguments.add_argument("--here", help="fuzz this one parser and print JSON")
    args = arguments.parse_args()
    if args.here:
        print(json.dumps(one(args.here, args.inputs, args.seed)))
        return
    findings: list[str] = []
    print("| parser | inputs | read | refused | crashes | memory above the start, MiB | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in fuzz.parsers():
        if args.only and args.only not in name:
            continue
        command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--here", name]
        command += ["--inputs", str(args.inputs), "--seed", str(args.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            findings.append(f"{name}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
            print(f"| {name} | {args.inputs} | - | - | the process ended with {done.returncode} | - | - |", flush=True)
            continue
        seen = json.loads(done.stdout.splitlines()[-1])
        crashes = sum(seen["crashes"].values())
        findings += [f"{name}: {count} x {what}" for what, count in seen["crashes"].items()]
        print(
            f"| {name} | {args.inputs:,} | {seen['read']:,} | {seen['refused']:,} | {crashes} | {seen['mib']:.0f} | "
            f"{seen['seconds']:.0f} |",
            flush=True,
        )
    print("\n".join(findings))


if __name__ == "__main__":
    main()

"""Measure every part, print tables, and store all figures as JSON if asked."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.generate.limits import CORES
from tests.benchmarks.generate.models import MODELS, save_bundle
from tests.benchmarks.generate.parts import PARTS, rounds_of
from tests.benchmarks.generate.tables import cpu, ratios, show, summary


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--bundle", help="URL of a trained bundle with classes, instead of an untrained generator")
    parser.add_argument("--samples", type=int, help="default: by model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-cold", action="store_true", help="leave out whole processes from a cold start")
    parser.add_argument("--json", type=Path, help="where to store all figures")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        print(json.dumps(PARTS[flags.part](flags.bundle, flags.samples, flags.folder)))
        return
    print(f"load before the start: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    results: dict[str, Any] = {"cores": CORES, "load": os.getloadavg()[0], "rounds": flags.rounds}
    for name in MODELS if flags.model == "all" else [flags.model]:
        family, schema, usual = MODELS[name]
        samples = flags.samples or usual
        with tempfile.TemporaryDirectory(prefix="genworker-benchmark-") as folder:
            url = flags.bundle or str(Path(folder) / "bundle")
            if not flags.bundle:
                save_bundle(url, family, schema)
            found = rounds_of(name, url, samples, flags.rounds, Path(folder), cold=not flags.no_cold)
        show(name, samples, found)
        rates, seconds = summary(found, samples), cpu(found, samples)
        results[name] = {"samples": samples, "parts": found, "rates": rates, "cpu": seconds}
        results[name]["ratios"] = ratios(rates, seconds)
        if flags.json:
            flags.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

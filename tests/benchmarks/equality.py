"""Largest relative difference of gradients between 1 worker and 2, 3 and 4, for both families and every loss, in float32.

python -m tests.benchmarks.equality
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.contracts import test_data_parallel as cases


def main() -> None:
    """Compute the gradients of every case in real process groups and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases.compute(folder)
        worst = dict.fromkeys(cases.WORLD_SIZES, 0.0)
        print("| case | " + " | ".join(f"{size} workers" for size in cases.WORLD_SIZES) + " |")
        print("|---|" + "---|" * len(cases.WORLD_SIZES))
        for case in cases.CASES:
            row = []
            for size in cases.WORLD_SIZES:
                difference = cases.relative_difference(cases.load(folder, case, size), cases.load(folder, case, 1))
                worst[size] = max(worst[size], difference)
                row.append(f"{difference:.1e}")
            print(f"| {case} | " + " | ".join(row) + " |")
        print("| largest | " + " | ".join(f"{worst[size]:.1e}" for size in cases.WORLD_SIZES) + " |")


if __name__ == "__main__":
    main()

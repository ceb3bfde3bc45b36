"""Peak memory of driver and actors for datasets of 1e5 to 1e7 samples: `python -m tests.benchmarks.generate.memory`.

A generator of a few hundred weights makes raw 8x8 images, so that ten million of them take minutes; shards hold the same number
of samples whatever the size of the dataset, because a shard in the making is what an actor holds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.generate.clock import family, start_ray
from tests.benchmarks.generate.models import save_bundle

FAMILY = {"latent_dim": 4, "embedding_dim": 4, "generator": {"widths": [4], "blocks": 0, "patch": 4}}
SCHEMA = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
PER_SHARD = 25_000


def peak_of(pid: int) -> int:
    """Largest resident size of a process so far, in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def actors() -> list[int]:
    """Process ids of the shard actors of this job."""
    found = []
    for pid in family():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # ended in between
        if title.startswith(b"ray::ShardActor"):
            found.append(pid)
    return found


def measure(samples: int, bundle: str, out: str) -> None:
    """Make one dataset and print peaks; runs in a process of its own."""
    from genworker.bulk.job import Progress, generate
    from genworker.bulk.request import GenerateSpec

    start_ray()
    peaks: dict[int, int] = {}

    def look(_: Progress) -> None:
        for pid in actors():
            peaks[pid] = peak_of(pid)

    spec = GenerateSpec(
        bundle=bundle,
        out=out,
        num_samples=samples,
        samples_per_shard=PER_SHARD,
        codec="raw",
        actors=2,
        micro_batch=1024,
        calibrate=False,
    )
    started = time.perf_counter()
    result = generate(spec, look)
    seconds = time.perf_counter() - started
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shown = ", ".join(f"{peak / 2**20:.0f}" for peak in sorted(peaks.values()))
    print(
        f"{samples:>12,} samples, {len(result.manifest.shards):>4} shards: driver {driver / 2**20:.0f} MiB, "
        f"actors {shown} MiB, {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    """Measure all sizes, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--one", nargs=2, metavar=("BUNDLE", "OUT"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        measure(flags.samples[0], *flags.one)
        return
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    for samples in flags.samples:
        with tempfile.TemporaryDirectory(prefix="genworker-memory-") as folder:
            save_bundle(f"{folder}/bundle", FAMILY, SCHEMA)
            command = [sys.executable, "-m", "tests.benchmarks.generate.memory", "--samples", str(samples)]
            subprocess.run([*command, "--one", f"{folder}/bundle", f"{folder}/out"], env=environment, check=True)


if __name__ == "__main__":
    main()

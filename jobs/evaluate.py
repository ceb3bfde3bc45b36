"""Entry for `ray job submit`: `python jobs/evaluate.py ...` takes the arguments of `genworker evaluate`."""

import sys

from genworker.cli import cli

if __name__ == "__main__":
    cli(["evaluate", *sys.argv[1:]])

"""Entry for `ray job submit`: `python jobs/generate.py ...` takes the arguments of `genworker generate`."""

import sys

from genworker.cli import cli

if __name__ == "__main__":
    cli(["generate", *sys.argv[1:]])

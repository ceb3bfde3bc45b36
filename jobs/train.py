"""Entry for `ray job submit`: `python jobs/train.py ...` takes the arguments of `genworker train`."""

import sys

from genworker.cli import cli

if __name__ == "__main__":
    cli(["train", *sys.argv[1:]])

"""`python -m genworker.cli`: the command line where its script is not on the path, as in a job."""

from genworker.cli import main

main()

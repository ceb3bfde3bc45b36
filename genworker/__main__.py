"""`python -m genworker` is `genworker`, with this Python."""

from __future__ import annotations

from genworker.cli import main

if __name__ == "__main__":
    main()

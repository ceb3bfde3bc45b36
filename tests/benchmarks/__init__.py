"""Commands that measure; their figures stand in RESULTS.md."""

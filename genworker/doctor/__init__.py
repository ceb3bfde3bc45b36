"""Checks of a machine, a cluster and a store before work is trusted to them: each ok, warn or fail, with the fix."""

"""Faults from outside, with seeds: every round ends in the undisturbed run's bytes, at once or after an exact error."""

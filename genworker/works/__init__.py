"""Bulk verbs: what an actor does with a task."""

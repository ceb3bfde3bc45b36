"""Bulk work: plans, tasks, the commit protocol, and the pool of Ray actors that evaluates a plan."""

"""Sampling: random numbers addressed by sample, and the engine that turns them into pixels."""

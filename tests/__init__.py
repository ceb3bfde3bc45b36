"""Tests of genworker, and what they share."""

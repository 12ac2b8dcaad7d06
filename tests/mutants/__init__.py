"""Faults that careless hands make, and the tests that notice them: `python -m tests.mutants`."""

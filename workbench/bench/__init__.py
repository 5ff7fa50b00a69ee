"""Benchmarks as programs: each prints a table with its peer and its ceiling."""

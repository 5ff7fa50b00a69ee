"""Benchmarks as programs: each prints a table with its peer and its ceiling, and can append rows to a file."""

"""Benchmarks: each ``python -m benchmarks.NAME`` prints one line of JSON."""

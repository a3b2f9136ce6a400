"""Benchmarks: each figure is compared with its raw limit, alternating within one run.

`python -m benchmarks` runs them and prints a table; docs/performance.md describes the method and the results.
"""

"""How fast this project is, beside what is possible: each figure against its raw limit, in turn, in one run.

`python -m benchmarks` measures and prints a table; docs/performance.md says how, and what came out.
"""

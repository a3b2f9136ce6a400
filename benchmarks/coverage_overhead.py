"""What coverage adds to a warm task call: the same calls with it and without, in turn, on one worker each.

Run as `python benchmarks/coverage_overhead.py [CALLS]`. It starts a cluster of its own, which ends with it. The action
executes about a hundred lines in one file. Goal: less than 3 ms more.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import coverage

from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.loggers import NullLogger

CONFIG = 'code: bench\nactions: {{work: {{entrypoint: "{module}:work"}}}}\n'
HEAD = """\
from synapse_runtime.decorators import action


@action
def work(params, context):
    total = 0
"""
BODY = "    if total % 2:\n        total += {0}\n    else:\n        total -= {0}\n"


def main() -> None:
    """Measure and print."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    taken: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as directory:
        plugin = Path(directory, "bench")
        plugin.mkdir()
        (plugin / "config.yaml").write_text(CONFIG.format(module="work"))
        (plugin / "work.py").write_text(
            HEAD + "".join(BODY.format(number) for number in range(40)) + "    return total\n"
        )
        cov = coverage.Coverage(data_file=str(plugin / "data"), branch=True, source=[str(plugin)], config_file=False)
        options = {"plugin": plugin, "logger": NullLogger(), "num_cpus": 0}
        with RayActorExecutor(**options) as off, RayActorExecutor(**options) as on:
            for _ in range(calls + 3):  # the first ones find cold caches
                taken["off"].append(_seconds(off))
                with cov.collect():
                    taken["on"].append(_seconds(on))
        cov.get_data().close()
    medians = {name: statistics.median(times[3:]) * 1000 for name, times in taken.items()}
    for name, median in medians.items():
        print(f"warm task call, coverage {name:<4} {median:6.2f} ms")
    print(f"coverage adds              {medians['on'] - medians['off']:+6.2f} ms   goal: less than +3.00 ms")


def _seconds(executor: RayActorExecutor) -> float:
    started = time.perf_counter()
    executor.execute("work", {})
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

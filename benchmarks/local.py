"""Calls in this process: the overhead of an action over its own work."""

from __future__ import annotations

import os
from collections.abc import Mapping

from benchmarks.actions import Echo, EchoParams, Say, plain
from benchmarks.bench import Bench, Benchmark
from benchmarks.measure import Pairs, in_turn, per_call
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from synapse_runtime.runner import run_plugin

_PARAMS = {"number": 2}


def call_by_hand() -> dict[str, int]:
    """Do by hand what an executor does around an action, as in a single test."""
    variables, directory = dict(os.environ), os.getcwd()
    try:
        return plain(EchoParams.model_validate(_PARAMS))
    finally:
        os.chdir(directory)
        if dict(os.environ) != variables:
            os.environ.clear()
            os.environ.update(variables)


def local_call(bench: Bench) -> Mapping[str, Pairs]:
    """Call an empty action."""
    executor = LocalExecutor()
    ours = per_call(lambda: executor.execute(Echo, _PARAMS), 1000)
    pairs = in_turn(ours, per_call(call_by_hand, 1000), bench.rounds(30, 8))
    return {"local-call": pairs, "local-call-time": pairs}


def event(bench: Bench) -> Pairs:
    """Log events in an action; the time of the call itself is subtracted."""
    count = 10_000
    executor = LocalExecutor(logger=NullLogger())

    def many() -> None:
        events: list[tuple[str, dict[str, int]]] = []
        for number in range(count):
            events.append(("step", {"number": number}))

    whole = per_call(lambda: executor.run(Say, {"events": count}).unwrap())
    empty = per_call(lambda: executor.run(Say, {"events": 0}).unwrap())
    raw = per_call(many)
    return in_turn(lambda: (whole() - empty()) / count, lambda: raw() / count, bench.rounds(30, 10))


def repeated_run_plugin(bench: Bench) -> Pairs:
    """Run an action of a plugin on disk repeatedly."""
    executor = LocalExecutor()
    path = str(bench.plugin)
    return in_turn(
        per_call(lambda: run_plugin(path, "echo", _PARAMS), 200),
        per_call(lambda: executor.execute(Echo, _PARAMS), 200),
        bench.rounds(30, 8),
    )


BENCHMARKS = (
    Benchmark(("local-call", "local-call-time"), local_call),
    Benchmark(("event",), event),
    Benchmark(("run-plugin",), repeated_run_plugin),
)

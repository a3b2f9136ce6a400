"""`python -m benchmarks.compare_sdk`: compare this project with synapse-sdk doing the same work.

Requires both packages, and Python 3.12.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import report, sides
from benchmarks.bench import SYNAPSE, Bench
from benchmarks.goals import Goal
from benchmarks.measure import BenchmarkFailed, Line, Pairs, in_turn, process_seconds, run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "performance" / "sdk.json"
_SDK_COMMAND = (sys.executable, "-c", "from synapse_sdk.cli import cli; cli()")
_RUN = ("plugin", "run", "echo", "--mode", "local", "--params", json.dumps(sides.PARAMS))
_IMPORT = """\
from pydantic import BaseModel
from {package}.action import BaseAction
from {package}.executors.local import LocalExecutor

class Params(BaseModel):
    number: int = 1

class Echo(BaseAction[Params]):
    def execute(self):
        return self.params.number
"""
# There are no goals here: those are set against raw limits.
WHAT = {
    "import": "import what is needed to run an action, whole process",
    "new": "`LocalExecutor().execute`, a new executor each time",
    "reused": "`LocalExecutor.execute`, one executor",
    "run_plugin": "`run_plugin(path, …)`, local, repeated",
    "command": "`synapse plugin run … --mode local`, whole process",
    "first": "first task call, connected to a running cluster",
    "warm": "warm task call",
    "job": "job, submit → result",
}
_ROUNDS = {"processes": 7, "local": 5, "task": 4, "job": 5}


def main() -> int:
    """Measure, print a table and write the results."""
    if not is_installed():
        print("synapse-sdk is not installed; run `make compare` or `nox -s compare`", file=sys.stderr)
        return 2
    try:
        with Bench() as bench:
            measured = _measure(bench)
    except KeyboardInterrupt:
        return 130
    except BenchmarkFailed as error:
        print(error, file=sys.stderr)
        return 1
    lines = [Line(Goal(name, what, "synapse-sdk", 1), measured[name]) for name, what in WHAT.items()]
    data = report.as_data(lines, (), quick=False, packages=("synapse-sdk", "ray", "pydantic"))
    print(f"\n{report.header(data)}\n")
    print(report.aligned([report.SDK_HEAD, *report.sdk_rows(data)]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report.as_json(data), encoding="utf-8")
    return 0


def is_installed() -> bool:
    """Return whether the SDK is installed. Importing it would not show that: without the SDK its names mean ours."""
    try:
        importlib.metadata.distribution("synapse-sdk")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _measure(bench: Bench) -> dict[str, Pairs]:
    plugins = {package: sides.write(package, bench.directory / package) for package in (sides.OURS, sides.SDK)}
    found: dict[str, Pairs] = {
        "import": _processes(bench, plugins, lambda package: (sys.executable, "-c", _IMPORT.format(package=package))),
        "command": _processes(
            bench, plugins, lambda package: (*(SYNAPSE if package == sides.OURS else _SDK_COMMAND), *_RUN)
        ),
    }
    found |= _sides(bench, plugins, "local")
    found |= _sides(bench, plugins, "task", bench.warm.address)
    found |= _sides(bench, plugins, "job", bench.warm.dashboard)
    return found


def _processes(bench: Bench, plugins: Mapping[str, Path], command: Callable[[str], tuple[str, ...]]) -> Pairs:
    ours, sdk = (process_seconds(command(package), bench.env, plugin) for package, plugin in plugins.items())
    return in_turn(ours, sdk, _ROUNDS["processes"])


def _sides(bench: Bench, plugins: Mapping[str, Path], what: str, *address: str) -> dict[str, Pairs]:
    """Run a new process of each side in turn; each process measures several things."""
    env = bench.env | (dict(bench.warm.variables) if address else {})
    answers: dict[str, list[dict[str, float]]] = {package: [] for package in plugins}
    for _ in range(_ROUNDS[what]):
        for package, plugin in plugins.items():
            command = (sys.executable, "-m", "benchmarks.sides", package, what, str(plugin), *address)
            answers[package].append(_answer(run(command, env, ROOT)))
        print(f"{what}: {answers[sides.OURS][-1]}, synapse-sdk: {answers[sides.SDK][-1]}", flush=True)
    names = answers[sides.OURS][0]
    return {
        name: Pairs([one[name] for one in answers[sides.OURS]], [one[name] for one in answers[sides.SDK]])
        for name in names
    }


def _answer(output: str) -> dict[str, float]:
    """Return the line of JSON in a side's output, which also contains messages of Ray."""
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    answer: dict[str, float] = json.loads(line)
    return answer


if __name__ == "__main__":
    sys.exit(main())

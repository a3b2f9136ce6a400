"""The environment of a benchmark run: its directories, processes and cluster, removed when the run ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.measure import BenchmarkFailed, Measurement, Pairs, child_environment, process_seconds, run
from benchmarks.plugin import write_plugin

SYNAPSE = (sys.executable, "-m", "synapse_runtime")
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Warm:
    """The warm cluster, with what code without this project needs to connect to it.

    Attributes:
        address: The cluster's own (GCS) address.
        dashboard: The URL of the Jobs API.
        variables: Environment variables that Ray needs in a process that connects.
    """

    address: str
    dashboard: str
    variables: Mapping[str, str]


class Bench:
    """One run of benchmarks. A context manager: on exit everything it has created and started is removed.

    Args:
        quick: Whether to measure with few rounds.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self._exits.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._exits.callback(_set_variable, "XDG_STATE_HOME", os.environ.get("XDG_STATE_HOME"))
        # Where this process looks for a warm cluster: it must not find the user's own.
        _set_variable("XDG_STATE_HOME", str(self.directory / "state"))
        self.plugin = write_plugin(self.directory / "benchmark")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exits.close()

    def rounds(self, full: int, quick: int) -> int:
        """Return the number of rounds to measure."""
        return quick if self.quick else full

    @property
    def env(self) -> dict[str, str]:
        """The environment of measured processes; they find the warm cluster, if there is one."""
        return child_environment()

    def python(self, code: str, **env: str) -> Measurement:
        """Return a measurement of a process that runs this code."""
        return process_seconds((sys.executable, "-c", code), self.env | env, self.plugin)

    def command(self, *arguments: str) -> Measurement:
        """Return a measurement of a `synapse` command."""
        return process_seconds((*SYNAPSE, *arguments), self.env, self.plugin)

    def pytest(self, *arguments: str | Path, ours: bool, **env: str) -> Measurement:
        """Return a measurement of a pytest session, with or without this project's plugin."""
        return process_seconds(self.session(*arguments, ours=ours), self.env | env, self.plugin)

    @staticmethod
    def session(*arguments: str | Path, ours: bool) -> tuple[str, ...]:
        """Return the command of a pytest session. Only plugins given by `-p` are loaded: see `child_environment`."""
        return (*_PYTEST, *(("-p", "synapse") if ours else ()), *map(str, arguments))

    @cached_property
    def warm(self) -> Warm:
        """A warm cluster with two CPUs, started when it is first needed and shut down with the run."""
        # The idle timeout shuts it down if this process is killed.
        up = [*SYNAPSE, "cluster", "up", "--cpus", "2", "--idle-timeout", "5m", "--json"]
        self._exits.callback(_stop_cluster, self.directory)
        started = json.loads(run(up, self.env, self.directory))
        token = _token(Path(started["directory"]))
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that Ray uses the loopback address
        }
        return Warm(started["address"], started["dashboard"], variables)

    @cached_property
    def driver(self) -> Warm:
        """The warm cluster, with this process connected to it as executors do; raw Ray calls use it too."""
        warm = self.warm
        for name, value in warm.variables.items():
            self._exits.callback(_set_variable, name, os.environ.get(name))
            os.environ[name] = value
        from synapse_runtime.executors.ray import RayActorExecutor

        with RayActorExecutor(plugin=self.plugin) as executor:
            executor.execute("echo", {})
        import ray

        self._exits.callback(ray.shutdown)
        return warm


def _token(directory: Path) -> str:
    """Return a cluster's token. No command prints it."""
    from synapse_runtime.executors.ray.cluster.control_socket import ControlClient

    with ControlClient(directory) as client:
        token: str = client.request("cluster")["token"]
    return token


def _stop_cluster(directory: Path) -> None:
    with contextlib.suppress(BenchmarkFailed):
        run([*SYNAPSE, "cluster", "down"], child_environment(), directory)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@dataclass(frozen=True)
class Benchmark:
    """Measures one or more lines of the table.

    Attributes:
        names: Names of the goals, one per line.
        measure: Returns the pairs of each line, by name, or those of the only line.
    """

    names: tuple[str, ...]
    measure: Callable[[Bench], Mapping[str, Pairs] | Pairs]

    def lines(self, bench: Bench) -> dict[str, Pairs]:
        """Measure, and return the pairs by name."""
        measured: Any = self.measure(bench)
        return {self.names[0]: measured} if isinstance(measured, Pairs) else dict(measured)

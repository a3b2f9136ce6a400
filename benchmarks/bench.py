"""Where it is measured: directories, processes and a cluster that are there for one run, and gone after it."""

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
    """The warm cluster, as others than this project reach it.

    Attributes:
        address: Its own address.
        dashboard: The URL of the Jobs API.
        variables: What Ray must find in the environment of whoever connects.
    """

    address: str
    dashboard: str
    variables: Mapping[str, str]


class Bench:
    """One run of benchmarks. A context manager: what it has made and started is gone after it.

    Args:
        quick: Whether it is to take as little time as makes sense.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self._exits.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._exits.callback(_set_variable, "XDG_STATE_HOME", os.environ.get("XDG_STATE_HOME"))
        # Where this process looks for a warm cluster: not at that of whoever runs it.
        _set_variable("XDG_STATE_HOME", str(self.directory / "state"))
        self.plugin = write_plugin(self.directory / "benchmark")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exits.close()

    def rounds(self, full: int, quick: int) -> int:
        """Return how many rounds to measure."""
        return quick if self.quick else full

    @property
    def env(self) -> dict[str, str]:
        """The environment of processes; they find the warm cluster, where there is one."""
        return child_environment()

    def python(self, code: str, **env: str) -> Measurement:
        """Return what measures the seconds of a process that runs this code."""
        return process_seconds((sys.executable, "-c", code), self.env | env, self.plugin)

    def command(self, *arguments: str) -> Measurement:
        """Return what measures the seconds of a `synapse` command."""
        return process_seconds((*SYNAPSE, *arguments), self.env, self.plugin)

    def pytest(self, *arguments: str | Path, ours: bool, **env: str) -> Measurement:
        """Return what measures the seconds of a pytest session, with our plugin or without."""
        return process_seconds(self.session(*arguments, ours=ours), self.env | env, self.plugin)

    @staticmethod
    def session(*arguments: str | Path, ours: bool) -> tuple[str, ...]:
        """Return the command of a pytest session. Without `-p` it has no plugin at all: see `child_environment`."""
        return (*_PYTEST, *(("-p", "synapse") if ours else ()), *map(str, arguments))

    @cached_property
    def warm(self) -> Warm:
        """A warm cluster with two CPUs, started on first need, ended with the run."""
        # It ends by itself where this process is killed.
        up = [*SYNAPSE, "cluster", "up", "--cpus", "2", "--idle-timeout", "5m", "--json"]
        self._exits.callback(_end_cluster, self.directory)
        told = json.loads(run(up, self.env, self.directory))
        token = _token(Path(told["directory"]))
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray takes the loopback address
        }
        return Warm(told["address"], told["dashboard"], variables)

    @cached_property
    def driver(self) -> Warm:
        """The warm cluster, this process being connected to it as executors do; Ray alone can use that too."""
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
    """Return a cluster's token. There is no command for it, so that no screen shows it."""
    from synapse_runtime.executors.ray.cluster.control_socket import ControlClient

    with ControlClient(directory) as door:
        token: str = door.request("cluster")["token"]
    return token


def _end_cluster(directory: Path) -> None:
    with contextlib.suppress(BenchmarkFailed):
        run([*SYNAPSE, "cluster", "down"], child_environment(), directory)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@dataclass(frozen=True)
class Benchmark:
    """Measures some lines of the table.

    Attributes:
        names: The lines: names of goals.
        measure: Measures them: pairs by name.
    """

    names: tuple[str, ...]
    measure: Callable[[Bench], Mapping[str, Pairs] | Pairs]

    def lines(self, bench: Bench) -> dict[str, Pairs]:
        """Measure, and return pairs by name."""
        measured: Any = self.measure(bench)
        return {self.names[0]: measured} if isinstance(measured, Pairs) else dict(measured)

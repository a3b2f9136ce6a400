"""One side of the comparison with synapse-sdk, in a process that does not import the other. Prints seconds as JSON.

Run as `python -m benchmarks.sides PACKAGE WHAT PLUGIN [ADDRESS]`. Both packages have the same modules and classes, so
the same code measures both; options that differ are in `_OPTIONS`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS, SDK = "synapse_runtime", "synapse_sdk.plugins"
PARAMS = {"number": 2}
# The option of a Ray executor that names the plugin, and the action's name for it.
_OPTIONS = {OURS: ("plugin", "echo"), SDK: ("working_dir", "measured.actions.Echo")}
_CALLS = 200
_ACTION = """\
from pydantic import BaseModel

from {package}.action import BaseAction


class Params(BaseModel):
    number: int = 1


class Echo(BaseAction[Params]):
    action_name = "echo"

    def execute(self):
        return {{"number": self.params.number}}
"""
_CONFIG = """\
code: measured
name: Measured
version: 0.1.0
category: custom
actions:
  echo:
    entrypoint: measured.actions.Echo
    method: task
"""


def write(package: str, directory: Path) -> Path:
    """Write a plugin whose action uses this package, and return its directory."""
    (directory / "measured").mkdir(parents=True)
    (directory / "measured" / "__init__.py").touch()
    (directory / "measured" / "actions.py").write_text(_ACTION.format(package=package), encoding="utf-8")
    (directory / "config.yaml").write_text(_CONFIG, encoding="utf-8")
    return directory


def local(package: str, plugin: Path) -> dict[str, float]:
    """Measure calls in this process."""
    executor_class = _executor_class(package, "executors.local", "LocalExecutor")
    run_plugin = importlib.import_module(f"{package}.runner").run_plugin
    sys.path.insert(0, str(plugin))
    action = importlib.import_module("measured.actions").Echo
    sys.path.remove(str(plugin))
    executor = executor_class()
    path = str(plugin)
    return {
        "new": _median(lambda: executor_class().execute(action, PARAMS)),
        "reused": _median(lambda: executor.execute(action, PARAMS)),
        "run_plugin": _median(lambda: run_plugin(path, "echo", PARAMS)),
    }


def task(package: str, plugin: Path, address: str) -> dict[str, float]:
    """Measure calls of workers, on a cluster that this process is already connected to."""
    executor_class = _executor_class(package, "executors.ray.task", "RayActorExecutor")
    option, action = _OPTIONS[package]

    def new() -> Any:
        return executor_class(env={}, ray_address=address, **{option: plugin})

    _close(_called(new(), action))
    time.sleep(1)  # the first worker is shut down in the background
    executor = new()
    first = _seconds(lambda: _called(executor, action))
    warm = _median(lambda: executor.execute(action, PARAMS))
    _close(executor)
    return {"first": first, "warm": warm}


def job(package: str, plugin: Path, address: str) -> dict[str, float]:
    """Measure a job from its submission to its result."""
    module = "executors.ray.job" if package == OURS else "executors.ray.jobs_api"
    option, action = _OPTIONS[package]
    executor = _executor_class(package, module, "RayJobsApiExecutor")(
        env={}, dashboard_address=address, **{option: plugin}
    )

    def whole() -> None:
        result = executor.get_result(executor.submit(action, PARAMS))
        assert result == PARAMS, result

    return {"job": _seconds(whole)}


def _executor_class(package: str, module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def _called(executor: Any, action: str) -> Any:
    assert executor.execute(action, PARAMS) == PARAMS
    return executor


def _close(executor: Any) -> None:
    getattr(executor, "close", None) and executor.close()
    getattr(executor, "shutdown", None) and executor.shutdown()


def _median(call: Callable[[], object]) -> float:
    call()
    return statistics.median(_seconds(call) for _ in range(_CALLS))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    # The SDK prints each result; writing that to a terminal would slow it down.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        measure = {"local": local, "task": task, "job": job}[sys.argv[2]]
        measured = measure(sys.argv[1], Path(sys.argv[3]), *sys.argv[4:])  # type: ignore[operator]
    print(json.dumps(measured))

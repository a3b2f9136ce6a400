"""Run actions with the SDK's own `LocalExecutor`, in a process that imports nothing of this project.

Reads calls from standard input, each with plugin, action, params and env; writes their outcomes to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from plainly import outcome

warnings.simplefilter("ignore")

from synapse_sdk.loggers import BaseLogger  # noqa: E402
from synapse_sdk.plugins.context import PluginEnvironment  # noqa: E402
from synapse_sdk.plugins.discovery import PluginDiscovery  # noqa: E402
from synapse_sdk.plugins.executors import local  # noqa: E402


class Recorder(BaseLogger):
    """Records log calls in the form of our events."""

    events: list[list[Any]]  # of the current call

    def _log_impl(self, event: str, data: dict[str, Any], file: Any, step: Any, level: Any = None) -> None:
        if event in ("message", "debug"):
            facts = {key: value for key, value in data.items() if key != "content"}
            self.events.append(["message", data["content"], facts, level.value, step, file])
        else:
            self.events.append(["log", event, data, level.value, step, file])

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        super().set_progress(current, total, step)
        self.events.append(
            ["progress", "", {"current": current, "total": total}, "info", step or self.get_step(), None]
        )

    def set_metrics(self, value: Any, step: str | None = None) -> None:
        super().set_metrics(value, step)
        self.events.append(["metrics", "", dict(value), "info", step or self.get_step(), None])


def run(plugin: str, action: str, params: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Run one call and return its outcome; for a failure, the exception that the action raised."""
    Recorder.events = []
    result, error = None, None
    os.chdir(plugin)
    sys.path.insert(0, plugin)
    try:
        discovery = PluginDiscovery.from_path(Path(plugin))
        environment = PluginEnvironment.merge(
            PluginEnvironment.from_environ(), PluginEnvironment({**discovery.config.env, **env})
        )
        action_class = discovery.get_action_class(action)
        result = local.LocalExecutor(env=environment).execute(action_class, params)
    except local.ExecutionError as failure:
        error = failure.__cause__
    except ImportError as failure:
        error = failure
    finally:
        sys.path.remove(plugin)
        for name in [name for name in sys.modules if name.partition(".")[0] == "plugin"]:
            del sys.modules[name]
    return outcome(result, error, Recorder.events)


if __name__ == "__main__":
    local.ConsoleLogger = Recorder
    with contextlib.redirect_stdout(sys.stderr):  # the executor prints results
        outcomes = [run(**call) for call in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)

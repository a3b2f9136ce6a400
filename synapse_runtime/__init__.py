"""Run Synapse plugin actions in this process, on a Ray actor, or as a Ray job, with the same behaviour in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from synapse_runtime.sdk_compat import import_hook

if TYPE_CHECKING:
    from synapse_runtime.action import BaseAction
    from synapse_runtime.context import RuntimeContext
    from synapse_runtime.core.execution import ActionRun
    from synapse_runtime.environment import PluginEnvironment
    from synapse_runtime.executors.local import LocalExecutor
    from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
    from synapse_runtime.plugins.plugin import Plugin
    from synapse_runtime.runner import run_plugin

__all__ = [
    "ActionRun",
    "BaseAction",
    "LocalExecutor",
    "Plugin",
    "PluginEnvironment",
    "RayActorExecutor",
    "RayJobsApiExecutor",
    "RuntimeContext",
    "run_plugin",
]
__version__ = "0.1.0"

import_hook.install()

# Public names and the modules that define them.
_LAZY_IMPORTS = {
    "ActionRun": "core.execution",
    "BaseAction": "action",
    "LocalExecutor": "executors.local",
    "Plugin": "plugins.plugin",
    "PluginEnvironment": "environment",
    "RayActorExecutor": "executors.ray",
    "RayJobsApiExecutor": "executors.ray",
    "RuntimeContext": "context",
    "run_plugin": "runner",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that finding a config file does not import pydantic."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_IMPORTS])

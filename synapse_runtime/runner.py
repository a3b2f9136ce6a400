"""`run_plugin`: find a plugin and its action, choose the executor, run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_runtime.executors.base import Executor
from synapse_runtime.loggers import ConsoleLogger
from synapse_runtime.modes import ModeName, find_mode
from synapse_runtime.plugins.plugin import Plugin

__all__ = ["run_plugin"]


def executor_class(mode: str) -> type[Executor]:
    """Return the executor class of a mode.

    Raises:
        ValueError: There is no such mode.
    """
    return find_mode(mode).executor_class()


def run_plugin(
    plugin_code: str,
    action: str,
    params: Mapping[str, Any] | None = None,
    *,
    mode: ModeName = "local",
    **executor_kwargs: Any,
) -> Any:
    """Find a plugin's action and run it.

    Args:
        plugin_code: A directory with a config file, a config file, or an importable module's dotted name. In remote
            mode also the code of a plugin that only the backend has.
        action: The name of the action.
        params: The params, as a dict.
        mode: `local`: in this process. `task`: on a Ray actor. `job`: as a Ray job; does not wait for it. `remote`:
            through a Synapse backend; does not wait for it either.
        **executor_kwargs: Options of the mode's executor, such as `env`, `job_id`, `timeout`, `ray_address`; and
            `action_cls`, an action class or function to run instead of looking for the plugin.

    Returns:
        The action's result; in job and remote mode the job's id, for `get_result` of its executor.

    Raises:
        ValueError: There is no such mode.
        ConfigError: The plugin cannot be found or read; names file and line.
        ActionNotFoundError: The plugin has no such action; lists those it has.
        ValidationError: The params do not fit.
        ExecutionError: The action failed; the cause is what it raised.
        ClusterError: There is no cluster to run on.
        RemoteError: The backend cannot be reached, or refuses the call.

    Example:
        >>> run_plugin("example_plugin", "train", {"epochs": 1})  # doctest: +SKIP
    """
    chosen = find_mode(mode)
    executor_type: Any = chosen.executor_class()
    action_cls = executor_kwargs.pop("action_cls", None)
    if action_cls is None:
        is_remote = "backend" in chosen.requires
        executor_kwargs["plugin"] = plugin_code if is_remote else Plugin.load_cached(plugin_code)
    target = action if action_cls is None else action_cls
    if chosen.detached:
        # Not closed: the job is the caller's from here on.
        return executor_type(**executor_kwargs).submit(target, params)
    with executor_type(**executor_kwargs) as executor:
        return executor.execute(target, params, **live_console(mode))


def live_console(mode: str, console: ConsoleLogger | None = None) -> dict[str, Any]:
    """Return the arguments of `Executor.run` that show events and output of a worker while the action runs.

    Args:
        mode: In local mode nothing is needed: the executor's logger receives all events at once.
        console: Where to show them; standard output by default.
    """
    if find_mode(mode).in_process:
        return {}
    console = console or ConsoleLogger()
    return {"on_event": console.event, "on_output": console.output}

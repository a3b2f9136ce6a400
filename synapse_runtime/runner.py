"""`run_plugin`: find a plugin and its action, choose the executor, run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from synapse_runtime.executors.base import Executor
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import ConsoleLogger
from synapse_runtime.plugins.plugin import Plugin

Mode = Literal["local", "task", "job"]
MODES: tuple[Mode, ...] = ("local", "task", "job")


def executor_class(mode: str) -> type[Executor]:
    """Return the executor of a mode.

    Raises:
        ValueError: There is no such mode; lists those there are.
    """
    if mode == "local":
        return LocalExecutor
    if mode == "task":
        from synapse_runtime.executors.ray.task import RayActorExecutor

        return RayActorExecutor
    if mode == "job":
        from synapse_runtime.executors.ray.job import RayJobsApiExecutor

        return RayJobsApiExecutor
    raise ValueError(f"there is no mode {mode!r}: choose one of {', '.join(MODES)}")


def run_plugin(
    plugin_code: str,
    action: str,
    params: Mapping[str, Any] | None = None,
    *,
    mode: Mode = "local",
    **executor_kwargs: Any,
) -> Any:
    """Find a plugin's action and run it.

    Args:
        plugin_code: A directory with a config file, a config file, or an importable module's dotted name.
        action: The name of the action.
        params: The params, as a dict.
        mode: `local`: in this process. `task`: on a Ray actor. `job`: as a Ray job, which is not waited for.
        **executor_kwargs: Options of the mode's executor, such as `env`, `job_id`, `timeout`, `ray_address`; and
            `action_cls`, an action class or function to run instead of looking for the plugin.

    Returns:
        The action's result; in job mode the job's id, for `RayJobsApiExecutor.get_result`.

    Raises:
        ConfigError: The plugin cannot be found or read; names file and line.
        ActionNotFoundError: The plugin has no such action; lists those there are.
        ValidationError: The params do not fit.
        ExecutionError: The action failed; the cause is what it raised.
        ClusterError: There is no cluster to run on.

    Example:
        >>> run_plugin("example_plugin", "train", {"epochs": 1})  # doctest: +SKIP
    """
    executor_type = executor_class(mode)
    action_cls = executor_kwargs.pop("action_cls", None)
    if action_cls is None:
        executor_kwargs["plugin"] = Plugin.load_cached(plugin_code)
    target = action if action_cls is None else action_cls
    if mode == "job":
        from synapse_runtime.executors.ray.job import RayJobsApiExecutor

        # Not closed: the job is the caller's from here on.
        return cast(RayJobsApiExecutor, executor_type(**executor_kwargs)).submit(target, params)
    with executor_type(**executor_kwargs) as executor:
        return executor.execute(target, params, **live_console(mode))


def live_console(mode: str, console: ConsoleLogger | None = None) -> dict[str, Any]:
    """Return the arguments of `Executor.run` that show what a worker says and prints while it runs.

    Args:
        mode: In local mode nothing is needed: the executor's logger hears everything at once.
        console: Where to show it; standard output by default.
    """
    if mode == "local":
        return {}
    console = console or ConsoleLogger()
    return {"on_event": console.event, "on_output": console.output}

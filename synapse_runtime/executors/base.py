"""What all executors share: from an action and params to an `ActionCall`, from a run to its result."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from synapse_runtime import action as actions
from synapse_runtime.core.async_bridge import EventLoop
from synapse_runtime.core.execution import ActionCall, ActionRun, new_job_id
from synapse_runtime.environment import PluginEnvironment, as_environment
from synapse_runtime.errors import ActionNotFoundError
from synapse_runtime.events import Event
from synapse_runtime.loggers import ConsoleLogger, Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.manifest import Manifest
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

OnEvent = Callable[[Event], object]
OnOutput = Callable[[str, str], object]


class Backend(NamedTuple):
    """What calls are sent to.

    Attributes:
        kind: What it is, such as `cluster`.
        address: Its address.
        origin: Why this one: `ephemeral`, `warm`, `RAY_ADDRESS`, `given`.
    """

    kind: str
    address: str
    origin: str


class Observer(Protocol):
    """Is told of an executor's calls and runs, in the thread that makes them. What it raises, the caller gets."""

    def started(self, call: ActionCall) -> object:
        """Take a call that is about to be made."""

    def finished(self, run: ActionRun) -> object:
        """Take a run before the caller has it. Of a job that is asked for again, it comes again."""


class Executor(ABC):
    """Runs actions somewhere. A context manager: leaving the block frees what it holds.

    Args:
        env: Variables of the action's environment, over those of the config file and of the process.
        job_id: Id of the runs; each run gets a fresh one by default.
        plugin: The plugin whose actions can be named: a `Plugin`, its directory, config file or module name.
        timeout: Seconds that a call may take, unless the call says otherwise.
        logger: Sink for events; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.

    Raises:
        ConfigError: The plugin cannot be read.
        ValueError: The timeout is not positive.

    Attributes:
        observer: Told of each call and run.
    """

    mode: ClassVar[str]
    observer: Observer | None = None

    def __init__(
        self,
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        *,
        plugin: Plugin | Path | str | None = None,
        timeout: float | None = None,
        logger: Logger | None = None,
        language: str | None = None,
    ) -> None:
        self._env = as_environment(env)
        self._env.as_strings()  # a variable that no process can hold is found here, not in each run
        self._job_id = job_id
        self._plugin = _load(plugin)
        self._timeout = checked_timeout(timeout)
        self._logger: Logger = ConsoleLogger() if logger is None else logger
        self._language = language

    def run(
        self,
        action: Any,
        params: Mapping[str, Any] | Any = None,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_output: OnOutput | None = None,
    ) -> ActionRun:
        """Run an action and return what happened, failure included.

        Args:
            action: A class, an `@action` function, an entrypoint `module:Name`, or an action's name in the plugin.
            params: A dict, or an instance of the action's params model.
            timeout: Seconds that the action may take.
            on_event: Called with each event as it happens.
            on_output: Called with (`"stdout"` or `"stderr"`, text) as a worker prints. Never in local mode, where
                the action prints straight to this process's own output.

        Raises:
            ActionNotFoundError: The plugin has no such action.
            ConfigError: What was given is not an action.
            ClusterError: There is no cluster to run on.
        """
        return self._run(self.call(action, params, timeout=timeout), on_event, on_output)

    def execute(self, action_cls: Any, params: Mapping[str, Any] | Any = None, **kwargs: Any) -> Any:
        """Run an action and return its result: `run(...).unwrap()`.

        Args:
            action_cls: As `action` of `run`.
            params: As for `run`.
            **kwargs: As for `run`.

        Raises:
            ValidationError: The params do not fit; the action has not started.
            ExecutionError: The action failed; the cause is what it raised.
        """
        return self.run(action_cls, params, **kwargs).unwrap()

    async def arun(
        self,
        action: Any,
        params: Mapping[str, Any] | Any = None,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_output: OnOutput | None = None,
    ) -> ActionRun:
        """Run an action as `run` does, while the event loop goes on: asyncio's, or trio's.

        Where the wait is cancelled, the action is stopped as by Ctrl-C: a worker is replaced, a job is stopped. In
        local mode the action runs in a thread, with this task's context variables; there a call that blocks in C
        cannot be stopped, so its thread is left after a second. Environment and working directory are the whole
        process's while it runs.

        Args:
            action: As for `run`.
            params: As for `run`.
            timeout: As for `run`.
            on_event: As for `run`, but called in the event loop's thread. What it raises stops the action, and comes
                out here.
            on_output: As for `run`; called as `on_event` is.

        Raises:
            RuntimeError: No event loop runs here.
            ActionNotFoundError: The plugin has no such action.
            ConfigError: What was given is not an action.
            ClusterError: There is no cluster to run on.
        """
        loop = EventLoop.running()
        call = self.call(action, params, timeout=timeout)
        run: ActionRun = await loop.run(
            partial(self._run, call, loop.in_loop_thread(on_event), loop.in_loop_thread(on_output))
        )
        return run

    async def aexecute(self, action_cls: Any, params: Mapping[str, Any] | Any = None, **kwargs: Any) -> Any:
        """Run an action and return its result, as `execute` does: `(await arun(...)).unwrap()`.

        Args:
            action_cls: As `action` of `run`.
            params: As for `run`.
            **kwargs: As for `arun`.

        Raises:
            ValidationError: The params do not fit; the action has not started.
            ExecutionError: The action failed; the cause is what it raised.

        Example:
            >>> import asyncio
            >>> from synapse_runtime.decorators import action
            >>> from synapse_runtime.executors.local import LocalExecutor
            >>> @action
            ... def double(params, context):
            ...     return 2 * params["number"]
            >>> async def main():
            ...     executor = LocalExecutor()
            ...     return await asyncio.gather(*(executor.aexecute(double, {"number": n}) for n in (1, 2, 3)))
            >>> asyncio.run(main())
            [2, 4, 6]
        """
        return (await self.arun(action_cls, params, **kwargs)).unwrap()

    def call(
        self,
        action: Any,
        params: Any = None,
        *,
        timeout: float | None = None,
        job_id: str | None = None,
    ) -> ActionCall:
        """Return the call that `run` would make, without making it."""
        plugin = self._plugin
        manifest = None if plugin is None else plugin.manifest
        target, name = self._resolve(action, manifest)
        env = self._env if manifest is None else PluginEnvironment.merge(manifest.env, self._env)
        return ActionCall(
            action=target,
            name=name,
            params=dict(params or {}) if params is None or isinstance(params, Mapping) else params,
            env=env.to_dict(),
            job_id=job_id or self._job_id or new_job_id(),
            timeout=self._timeout if timeout is None else checked_timeout(timeout),
            import_root=self._import_root,
            cwd=os.getcwd() if plugin is None else str(plugin.root),
            config_path=None if plugin is None or plugin.config_path is None else str(plugin.config_path),
            category=None if manifest is None else manifest.category,
            language=self._language,
        )

    def close(self) -> None:  # noqa: B027 - local mode holds nothing
        """Free what the executor holds; it can be used again, which takes it anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def backend(self) -> Backend | None:
        """What calls were sent to, such as a cluster; None before the first, and if they run in this process."""
        return None

    @property
    def _import_root(self) -> str | None:
        """The directory that the plugin's modules are imported from, if there is a plugin with a directory."""
        plugin = self._plugin
        return None if plugin is None or plugin.config_path is None else str(plugin.root)

    def _run(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        observer = self.observer
        if observer is not None:
            observer.started(call)
        try:
            run = self._carry(call, on_event, on_output)
        finally:
            self._logger.finish()
        run.add_location_note()
        if observer is not None:
            observer.finished(run)
        return run

    @abstractmethod
    def _carry(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        """Take the call to where it runs, and bring back the run."""

    def _replay(self, run: ActionRun, *, events: bool, output: bool) -> None:
        """Let what a worker said and printed be seen here too, unless it was while it came."""
        if events:
            for event in run.events:
                self._logger.event(event)
        if run.captured is not None:
            run.captured.replay(output=output)

    def _resolve(self, action: Any, manifest: Manifest | None) -> tuple[Any, str]:
        if not isinstance(action, str):
            actions.require_action(action)
            return action, actions.name_of(action)
        if self._plugin is not None and manifest is not None:
            return self._plugin.entrypoint_by(manifest, action), action
        from synapse_runtime.plugins.plugin import is_entrypoint, standard_entrypoint

        if not is_entrypoint(action):
            raise ActionNotFoundError(
                f"there is no action {action!r}: without a plugin, give a class, an @action function or an "
                "entrypoint 'module:Name'"
            )
        return standard_entrypoint(action), action


def checked_timeout(timeout: float | None) -> float | None:
    """Return the timeout, or raise `ValueError` where it is not a positive number of seconds."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    return timeout


def _load(plugin: Plugin | Path | str | None) -> Plugin | None:
    if isinstance(plugin, str | Path):
        from synapse_runtime.plugins.plugin import Plugin as PluginClass

        return PluginClass.load(plugin)
    return plugin

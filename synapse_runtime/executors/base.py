"""The base class of all executors: makes an `ActionCall` from action and params, and returns the run or its result."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from synapse_runtime import action as actions
from synapse_runtime.core.around import Around, Seed
from synapse_runtime.core.async_bridge import EventLoop
from synapse_runtime.core.execution import ActionCall, ActionRun, failure, new_job_id
from synapse_runtime.core.timeouts import expected_seconds
from synapse_runtime.environment import PluginEnvironment, as_environment, warn_about_late_variables
from synapse_runtime.errors import ActionNotFoundError, NotSupportedRemotely
from synapse_runtime.events import Event
from synapse_runtime.loggers import ConsoleLogger, Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.manifest import Manifest
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

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
    """Observes the calls and runs of an executor, in the calling thread. Its exceptions are raised to the caller."""

    def started(self, call: ActionCall) -> object:
        """Called before a call is made."""

    def finished(self, run: ActionRun) -> object:
        """Called with a run before it is returned; again each time that the result of a job is fetched again."""

    def refused(self, error: NotSupportedRemotely) -> object:
        """Called with the error about a call that remote mode cannot make, or a result that it cannot return."""


class Executor(ABC):
    """Base class of executors. A context manager: leaving the block releases its resources.

    Args:
        env: Environment variables for the action; they override those of the config file and of the process.
        job_id: Id of the runs; a new one for each run by default.
        plugin: The plugin whose actions can be run by name: a `Plugin`, its directory, config file or module name.
        timeout: Default timeout of calls in seconds.
        logger: Sink for events; the console by default.
        language: Two-letter language code of messages; the variable `SYNAPSE_LANGUAGE` by default, else English.

    Raises:
        ConfigError: The plugin cannot be read.
        ValueError: The timeout is not positive.

    Attributes:
        mode: The mode that it runs actions in.
        starts_process: Whether an action runs in a process that is started with the variables that need it.
        observer: Called before each call and after each run; see `Observer`.
        sends_test_setup: Whether what a test has set up in this process goes along with each call: changed environment
            variables, patches, a stopped clock. It does for the executor of the fixture `synapse_executor`.
        seed: Seed of `random`, numpy and torch at the beginning of each call; None to leave their generators alone.
    """

    mode: ClassVar[str]
    starts_process: ClassVar[bool] = False
    observer: Observer | None = None
    sends_test_setup: bool = False
    seed: int | None = None

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
        self._env.as_strings()  # raises for an invalid variable here, not in each run
        self._job_id = job_id
        self._plugin = _load(plugin)
        self._timeout = checked_timeout(timeout)
        self._logger: Logger = ConsoleLogger() if logger is None else logger
        self._language = language
        self._around: list[Around] = []

    def run(
        self,
        action: Any,
        params: Mapping[str, Any] | Any = None,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_output: OnOutput | None = None,
    ) -> ActionRun:
        """Run an action and return the run, even if the action failed.

        Args:
            action: A class, an `@action` function, an entrypoint `module:Name`, or an action's name in the plugin.
            params: A dict, or an instance of the action's params model.
            timeout: Timeout of the action in seconds.
            on_event: Called with each event as it happens. What it raises stops the action and is raised by this
                method; a warm worker can be used again.
            on_output: Called with (`"stdout"` or `"stderr"`, text) as a worker prints. Never in local mode, in which
                the action prints directly to this process's own output.

        Raises:
            ActionNotFoundError: The plugin has no such action.
            ConfigError: `action` is not an action.
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
            ValidationError: The params are invalid; the action has not started.
            ExecutionError: The action failed; the cause is the exception that it raised.
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
        """Run an action as `run` does, while the event loop (asyncio or trio) keeps running.

        Cancelling the await stops the action as Ctrl-C does: a worker is replaced, a job is stopped. In local mode the
        action runs in a thread, with this task's context variables; a call that blocks in C cannot be interrupted
        there, so its thread is abandoned after a second. Environment and working directory of the action apply to the
        whole process while it runs.

        Args:
            action: As for `run`.
            params: As for `run`.
            timeout: As for `run`.
            on_event: As for `run`, but called in the event loop's thread.
            on_output: As for `run`; called like `on_event`.

        Raises:
            RuntimeError: No event loop is running in this thread.
            ActionNotFoundError: The plugin has no such action.
            ConfigError: `action` is not an action.
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
            ValidationError: The params are invalid; the action has not started.
            ExecutionError: The action failed; the cause is the exception that it raised.

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

    def around(self, factory: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[object]:
        """Run a context manager around each action from now on, in the process that runs the action.

        Several nest: the first is the outermost. What it raises on entering becomes the error of the run.

        Args:
            factory: A function or class that returns a context manager, such as `freezegun.freeze_time`; or a context
                manager.
            *args: The arguments of the function or class.
            **kwargs: Its keyword arguments.

        Returns:
            A context manager. It need not be entered; leaving it ends this.

        Raises:
            TypeError: It is neither callable nor a context manager.

        Example:
            >>> import contextlib
            >>> from synapse_runtime.decorators import action
            >>> from synapse_runtime.executors.local import LocalExecutor
            >>> @action
            ... def shout(params, context):
            ...     print("HELLO")
            >>> executor = LocalExecutor()
            >>> with executor.around(contextlib.redirect_stdout, None):
            ...     executor.execute(shout)
            >>> executor.execute(shout)
            HELLO
        """
        added = Around(factory, args, kwargs)
        self._around.append(added)
        until_left = ExitStack()
        until_left.callback(self._around.remove, added)
        return until_left

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
        warn_about_late_variables(env, starts_process=self.starts_process)
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
            around=tuple(self._around),
            seed=Seed.of_this_process(self.seed),
            sends_test_setup=self.sends_test_setup,
        )

    def close(self) -> None:  # noqa: B027 - local mode holds nothing
        """Release the executor's resources. The executor can be used again, which acquires them again."""

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
        """The directory that the plugin's modules are imported from; None without a plugin that has a directory."""
        plugin = self._plugin
        return None if plugin is None or plugin.config_path is None else str(plugin.root)

    def _run(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        observer = self.observer
        if observer is not None:
            observer.started(call)
        try:
            run = self._run_call(call, on_event, on_output)
        finally:
            self._logger.finish()
        run.add_location_note()
        if observer is not None:
            observer.finished(run)
        return run

    @abstractmethod
    def _run_call(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        """Run the call where this executor runs actions, and return the run."""

    def _replay(self, run: ActionRun, *, events: bool, output: bool) -> None:
        """Replay a worker's events and output in this process, unless they were already streamed."""
        if events:
            for event in run.events:
                self._logger.event(event)
        if run.captured is not None:
            problem = run.captured.replay(output=output)
            if problem is not None and run.error is None:
                run.result, run.error = None, failure(run.name, problem)

    def _resolve(self, action: Any, manifest: Manifest | None) -> tuple[Any, str]:
        if not isinstance(action, str):
            actions.require_action(action)
            return action, actions.name_of(action)
        if self._plugin is not None and manifest is not None:
            return self._plugin.entrypoint_by(manifest, action), action
        from synapse_runtime.plugins.plugin import is_entrypoint, standard_entrypoint

        if not is_entrypoint(action):
            raise ActionNotFoundError(
                f"there is no action {action!r}: without a plugin, pass a class, an @action function or an "
                "entrypoint 'module:Name'"
            )
        return standard_entrypoint(action), action


def checked_timeout(timeout: float | None, name: str = "timeout", *, or_zero: bool = False) -> float | None:
    """Return the timeout, or raise `ValueError` if it is not a positive number of seconds, at most a year.

    Args:
        timeout: The timeout; None for none.
        name: The name of the argument, for the error.
        or_zero: Whether it may be 0.
    """
    expected = None if timeout is None else expected_seconds(timeout, or_zero=or_zero)
    if expected is not None:
        raise ValueError(f"{name} must be {expected}, not {timeout!r}")
    return timeout


def _load(plugin: Plugin | Path | str | None) -> Plugin | None:
    if isinstance(plugin, str | Path):
        from synapse_runtime.plugins.plugin import Plugin as PluginClass

        return PluginClass.load(plugin)
    return plugin

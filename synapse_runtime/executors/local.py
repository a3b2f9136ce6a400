"""Local mode: run actions in this process and thread. Debuggers work, and output is not captured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.execution import ActionCall, ActionRun, run_call
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import ActionInterrupted
from synapse_runtime.events import Event
from synapse_runtime.executors.base import Executor, OnEvent, OnOutput
from synapse_runtime.loggers import Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

__all__ = ["LocalExecutor"]

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class LocalExecutor(Executor):
    """Runs actions in this process. Needs no cluster and starts immediately; `breakpoint()` works in actions.

    Args:
        env: Environment variables for the action; they override those of this process.
        job_id: Id of the runs; a new one for each run by default.
        plugin: The plugin whose actions can be run by name; see `Executor`.
        timeout: Default timeout of calls in seconds.
        logger: Sink for events; the console by default.
        language: Two-letter language code of messages; the variable `SYNAPSE_LANGUAGE` by default, else English.
        fresh: Import the plugin's modules again for each call, so that an action does not see state that an earlier one
            left in modules or classes; includes `strict`.
        strict: Pickle and unpickle params and result as a worker would, so that values that cannot be pickled fail
            in this process too.

    Example:
        >>> from synapse_runtime.action import BaseAction
        >>> class Answer(BaseAction):
        ...     def execute(self):
        ...         return self.ctx.env.get_int("ANSWER")
        >>> LocalExecutor(env={"ANSWER": "42"}).execute(Answer, {})
        42
    """

    mode = "local"

    def __init__(
        self,
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        *,
        plugin: Plugin | Path | str | None = None,
        timeout: float | None = None,
        logger: Logger | None = None,
        language: str | None = None,
        strict: bool = False,
        fresh: bool = False,
    ) -> None:
        super().__init__(env, job_id, plugin=plugin, timeout=timeout, logger=logger, language=language)
        self._strict = strict
        self._fresh = fresh

    def _run_call(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        if on_event is None:
            return self._run_here(call, self._logger.event)
        guarded = _GuardedCallback(on_event)

        def both(event: Event) -> None:
            self._logger.event(event)
            guarded(event)

        try:
            return self._run_here(call, both)
        finally:
            guarded.raise_error()

    def _run_here(self, call: ActionCall, on_event: Callable[[Event], object]) -> ActionRun:
        if self._fresh:
            from synapse_runtime.executors.worker import run_in_fresh_modules

            return run_in_fresh_modules(call, on_event=on_event)
        return run_call(call, on_event=on_event, strict=self._strict)


class _GuardedCallback:
    """A callback whose exception stops the action, which cannot catch it, and is raised to the caller.

    Args:
        callback: The callback.
    """

    def __init__(self, callback: OnEvent) -> None:
        self._callback = callback
        self._error: BaseException | None = None
        self._caller = shielded()
        self._lock = threading.Lock()
        self._is_over = False

    def __call__(self, event: Event) -> None:
        if self._error is None:
            try:
                self._callback(event)
            except ActionInterrupted:  # for this thread, which happens to be here
                raise
            except BaseException as error:  # noqa: BLE001 - raised by `raise_error`
                self._error = error
        if self._error is not None:
            if shielded() is self._caller:
                raise ActionInterrupted
            with self._lock:  # in a thread of the action
                if not self._is_over:
                    self._caller.raise_interrupt()

    def raise_error(self) -> None:
        """Raise what the callback has raised, now that the action has ended."""
        with shielded() as interrupts:
            with self._lock:
                self._is_over = True
            if self._error is not None:
                interrupts.drop_deferred()
        error, self._error = self._error, None
        if error is not None:
            raise error

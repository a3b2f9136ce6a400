"""Local mode: this process, this thread. Debuggers work, output goes where the process's output goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_runtime.core.execution import ActionCall, ActionRun, run_call
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.events import Event
from synapse_runtime.executors.base import Executor, OnEvent, OnOutput
from synapse_runtime.loggers import Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


class LocalExecutor(Executor):
    """Runs actions in this process. Needs nothing, starts at once; `breakpoint()` works inside.

    Args:
        env: Variables of the action's environment, over those of this process.
        job_id: Id of the runs; each run gets a fresh one by default.
        plugin: The plugin whose actions can be named; see `Executor`.
        timeout: Seconds that a call may take.
        logger: Sink for events; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.
        fresh: Import the plugin's modules anew for each call, so that no state which an action leaves in a module or
            class is seen by the next; includes `strict`.
        strict: Let params and result cross a border as they would on the way to a worker and back, so that what
            cannot travel fails here already.

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

    def _carry(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        listen: Callable[[Event], object] = self._logger.event
        if on_event is not None:

            def both(event: Event) -> None:
                self._logger.event(event)
                on_event(event)

            listen = both
        if self._fresh:
            from synapse_runtime.executors.worker import run_in_fresh_modules

            return run_in_fresh_modules(call, on_event=listen)
        return run_call(call, on_event=listen, strict=self._strict)

"""What an action sees of the world while it runs: `RuntimeContext`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.events import Event
from synapse_runtime.transport import snapshot

__all__ = ["PluginEnvironment", "RuntimeContext"]

# As libraries do: without a handler of the user's, logging stays quiet instead of writing to stderr by itself.
logging.getLogger("synapse").addHandler(logging.NullHandler())


class RuntimeContext:
    """An action's way to speak: log, progress, metrics, messages; and what it may ask: environment, job id.

    Args:
        emit: Called with each event, in order.
        env: The environment of the action; see `PluginEnvironment`.
        job_id: The id of this run.
        name: The action's name, for its logger.

    Attributes:
        env: The `PluginEnvironment`: this process's variables, under the config file's, under those given.
        job_id: The id of this run: the one that was given, else a fresh one.
        logger: A `logging.Logger`. Its records are events of this run too, and reach `logging` as usual.

    Example:
        >>> events = []
        >>> ctx = RuntimeContext(events.append)
        >>> ctx.set_progress(1, 10)
        >>> ctx.set_metrics({"loss": 0.5}, "training")
        >>> [event.kind for event in events]
        ['progress', 'metrics']
    """

    def __init__(
        self,
        emit: Callable[[Event], object],
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        name: str = "action",
    ) -> None:
        self._emit = emit
        self._name = name
        self._logger: logging.Logger | None = None
        self.env = env if isinstance(env, PluginEnvironment) else PluginEnvironment(env)
        self.job_id = job_id

    @property
    def logger(self) -> logging.Logger:
        """The action's logger, `synapse.<action name>` in `logging`'s tree; down to debug by default."""
        if self._logger is None:
            self._logger = _ActionLogger(self._name, self._emit)
        return self._logger

    def log(
        self,
        event: str,
        data: Mapping[str, Any] | None = None,
        file: str | None = None,
        *,
        level: str = "info",
        step: str | None = None,
    ) -> None:
        """Record that something happened.

        Args:
            event: What, in one word, such as `epoch_complete`.
            data: Facts about it.
            file: A file that belongs to it.
            level: `debug`, `info`, `warning`, `error` or `critical`.
            step: The step that it belongs to.
        """
        self._emit(Event("log", str(event), _copied(data or {}), _level(level), step, file and str(file)))

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        """Tell how far the action has come.

        Args:
            current: Done so far, in any unit, from 0 to `total`.
            total: All there is to do, in the same unit; more than 0.
            step: Which of several steps this is about.

        Raises:
            ValueError: `total` is not positive, or `current` not between 0 and `total`.
        """
        if not total > 0 or not 0 <= current <= total:
            raise ValueError(
                f"set_progress({current!r}, {total!r}): current must be between 0 and total, total above 0"
            )
        self._emit(Event("progress", "", {"current": current, "total": total}, step=step))

    def set_metrics(self, value: Mapping[str, Any], step: str) -> None:
        """Report metrics of a step.

        Args:
            value: Names and values.
            step: What they are of, such as `training`. Not empty.

        Raises:
            ValueError: The step is empty.
            TypeError: The value is not a mapping.
        """
        if not isinstance(value, Mapping):
            raise TypeError(f"set_metrics needs a dict of names and values, not {type(value).__name__}")
        if not step or not isinstance(step, str):
            raise ValueError(f"set_metrics needs the name of a step, such as 'training', not {step!r}")
        self._emit(Event("metrics", "", _copied(value), step=step))

    def log_message(self, message: str, level: str = "info", *, step: str | None = None, **values: Any) -> None:
        """Say something to the person who runs the action.

        Args:
            message: The text. With `values`, a template: `{name}` is replaced by the value of that name.
            level: `debug`, `info`, `warning`, `error` or `critical`.
            step: The step that it belongs to.
            **values: What to fill in.
        """
        text = message.format(**values) if values else message
        self._emit(Event("message", text, level=_level(level), step=step))


class _ActionLogger(logging.Logger):
    """A logger whose records are events as well. It is not in `logging`'s registry, so it ends with the run."""

    def __init__(self, name: str, emit: Callable[[Event], object]) -> None:
        super().__init__(f"synapse.{name}", logging.DEBUG)
        self.parent = logging.getLogger("synapse")
        self._emit = emit

    def handle(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._emit(Event("message", text, level=record.levelname.lower()))
        super().handle(record)

    def __reduce__(self) -> tuple[Any, ...]:
        return logging.getLogger, (self.name,)


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an event's data, so that the event says what was true then, in every mode."""
    return {str(key): snapshot(value) for key, value in data.items()}


def _level(level: object) -> str:
    """Return the level's plain name; enums of levels give their value."""
    return str(getattr(level, "value", level)).lower()

"""`RuntimeContext`: an action's access to environment, logging, progress and metrics while it runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.events import Event, progress_event
from synapse_runtime.loggers import BaseLogger
from synapse_runtime.messages import (
    DEFAULT_LANGUAGE,
    CommonLogMessageCode,
    LocalizedMessage,
    LogMessageCode,
    filled,
    localized,
    resolve_log_message,
)
from synapse_runtime.serialization import IMMUTABLE, snapshot

if TYPE_CHECKING:
    from synapse_runtime.errors import ValidationError
    from synapse_runtime.loggers import Logger

__all__ = ["PluginEnvironment", "RuntimeContext"]

# The convention for libraries: without a handler of the user's, nothing is written to stderr.
logging.getLogger("synapse").addHandler(logging.NullHandler())


# Imported when an action reads `client`: few do.
_CLIENT = "synapse_runtime.executors.remote.backend"


class RuntimeContext:
    """What an action uses to emit events (log, progress, metrics, messages) and to read its environment and job id.

    Args:
        logger: Receives the events in order: a function that is called with each, or one of `synapse_runtime.loggers`.
        env: The environment of the action; see `PluginEnvironment`.
        job_id: The id of this run.
        client: A client of the platform's API.
        v2_client: A client of version 2 of the platform's API.
        agent_client: A client of the platform's agent.
        checkpoint: The model that training starts from: its `category` and `path`.
        language: Two-letter language code of messages; the variable `SYNAPSE_LANGUAGE` by default, else English.
        name: The action's name.
        category: The plugin category that the config file sets.

    Attributes:
        env: The `PluginEnvironment`: this process's variables, overridden by the config file's, overridden by those
            given.
        job_id: The id of this run: the given one, or a new one.
        logger: A `logging.Logger`. Its records become events of this run too, and are handled by `logging` as usual. If
            the context was created with one of `synapse_runtime.loggers`, that logger.
        client: The given client of the platform's API; else, if `env` has `SYNAPSE_HOST` and `SYNAPSE_ACCESS_TOKEN`,
            one that is created when it is first read; else None, as are the other clients, and `checkpoint`.
        name: The action's name.
        category: The plugin category that the config file sets, if any.
        params_error: The error about invalid params, if the action itself validates them and raised it.
        step: The current step, for events that do not name one; None by default.

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
        logger: Logger | Callable[[Event], object],
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        client: Any = None,
        v2_client: Any = None,
        agent_client: Any = None,
        checkpoint: dict[str, Any] | None = None,
        language: str | None = None,
        *,
        name: str = "action",
        category: str | None = None,
    ) -> None:
        self._emit: Callable[[Event], object] = logger if callable(logger) else logger.event
        self._logger: Any = logger if isinstance(logger, BaseLogger) else None
        self.name = name
        self.category = category
        self.params_error: ValidationError | None = None
        self.step: str | None = None
        self.env = env if isinstance(env, PluginEnvironment) else PluginEnvironment(env)
        self.job_id = job_id
        self._client = client
        self.v2_client = v2_client
        self.agent_client = agent_client
        self.checkpoint = checkpoint
        self.language = language

    @property
    def client(self) -> Any:
        """A client of the platform's API; None without credentials."""
        if self._client is None:
            host, token = self.env.get("SYNAPSE_HOST"), self.env.get("SYNAPSE_ACCESS_TOKEN")
            if host and token:
                self._client = import_module(_CLIENT).connect(str(host), str(token))
        return self._client

    @property
    def client_v1(self) -> Any:
        """An alias of `client`."""
        return self.client

    @property
    def client_v2(self) -> Any:
        """An alias of `v2_client`."""
        return self.v2_client

    @property
    def logger(self) -> logging.Logger:
        """The action's logger, named `synapse.<action name>`; its default level is debug."""
        if self._logger is None:
            self._logger = _ActionLogger(self.name, self)
        own: logging.Logger = self._logger
        return own

    def log(
        self,
        event: str,
        data: Mapping[str, Any] | None = None,
        file: str | None = None,
        level: str = "info",
        *,
        step: str | None = None,
    ) -> None:
        """Log an event.

        Args:
            event: The event's name, such as `epoch_complete`.
            data: The event's data.
            file: A file that belongs to it.
            level: `debug`, `info`, `warning`, `error` or `critical`.
            step: The step that it belongs to; the current one by default.
        """
        step = self.step if step is None else step
        self._emit(Event("log", str(event), _copied(data) if data else {}, _level(level), step, file and str(file)))

    def set_progress(self, current: float, total: float, step: str | None = None) -> None:
        """Report the progress of the action.

        Args:
            current: The amount done so far, in any unit, from 0 to `total`.
            total: The total amount, in the same unit; more than 0.
            step: The step that the progress is of, if there are several.

        Raises:
            ValueError: `total` is not positive, or `current` not between 0 and `total`.
        """
        self._emit(progress_event(current, total, step))

    def set_metrics(self, value: Mapping[str, Any], step: str) -> None:
        """Report metrics of a step.

        Args:
            value: Names and values.
            step: The step that they belong to, such as `training`. Not empty.

        Raises:
            ValueError: The step is empty.
            TypeError: The value is not a mapping.
        """
        if not isinstance(value, Mapping):
            raise TypeError(f"set_metrics needs a dict of names and values, not {type(value).__name__}")
        if not step or not isinstance(step, str):
            raise ValueError(f"set_metrics needs the name of a step, such as 'training', not {step!r}")
        self._emit(Event("metrics", "", _copied(value), step=step))

    def log_message(
        self,
        message: str | Mapping[str, str] | LocalizedMessage | LogMessageCode,
        level: str = "info",
        *,
        context: str | None = None,
        language: str | None = None,
        step: str | None = None,
        **values: Any,
    ) -> None:
        """Show a message to the user who runs the action.

        Args:
            message: The text; texts by language, as a dict or `LocalizedMessage`; or a code, which has text and level.
                With `values`, a template: `{name}` is replaced by the value of that name.
            level: `debug`, `info`, `success`, `warning`, `danger`, `error` or `critical`; or a `LogLevel`.
            context: Deprecated name of `level`.
            language: The language of this message; that of the run by default.
            step: The step that it belongs to.
            **values: Values for the template.
        """
        if context is not None:
            warnings.warn("log_message: context is deprecated, use level", DeprecationWarning, stacklevel=2)
            level = context
        key = None
        if isinstance(message, LogMessageCode):
            key = message.value
            text, level = resolve_log_message(message, self._language(language), **values)
        elif isinstance(message, str):
            text = filled(message, values)
        else:
            text = filled(localized(message, self._language(language)), values)
        self.emit_message(text, level=level, step=step, key=key)

    def emit_message(self, text: str, *, level: str = "info", step: str | None = None, key: str | None = None) -> None:
        """Emit a message without filling in values.

        Args:
            text: The text.
            level: The level, as for `log_message`.
            step: The step that it belongs to.
            key: The code of the message, if it has one.
        """
        self._emit(Event("message", text, {} if key is None else {"key": key}, _level(level), step))

    def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
        """Log one data point of a metric, as an event `metric`.

        Args:
            category: The data set that it is of, such as `train` or `validation`.
            key: The name of the metric, or of the axis, such as `epoch`.
            value: Its value.
            **metrics: Further values at this point.
        """
        self.log("metric", {"category": category, "key": key, "value": value, "metrics": metrics})

    def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
        """Log an image, as an event `visualization`.

        Args:
            category: The data set that it is of, such as `validation`.
            group: The group that it belongs to, such as an epoch.
            index: Its index in the group.
            image: The path of the image; the file is not read.
            **meta: Further data about it.
        """
        self.log("visualization", {"category": category, "group": group, "index": index, **meta}, image)

    def log_trials(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        trials: Mapping[str, Any] | None = None,
        base: Sequence[str] | None = None,
        hyperparameters: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        best_trial: str = "",
    ) -> None:
        """Log the state of a hyperparameter search, as an event `trials`.

        Args:
            data: All of the following in one mapping.
            trials: Data of each trial, by its id.
            base: Names of columns that are neither hyperparameters nor metrics.
            hyperparameters: Names of columns that are hyperparameters.
            metrics: Names of columns that are metrics.
            best_trial: The id of the best trial.
        """
        if data is None:
            data = {
                "base": base or [],
                "trials": trials or {},
                "hyperparameters": hyperparameters or [],
                "metrics": metrics or [],
                "best_trial": best_trial,
            }
        self.log("trials", data)

    def log_dev_event(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Log something for the plugin's developers, as an event `dev_event` of level `debug`.

        Args:
            message: The message.
            data: Data about it.
        """
        self.log("dev_event", {"message": message, "data": data}, level="debug")

    def end_log(self) -> None:
        """Show the message that the run is complete."""
        self.log_message(CommonLogMessageCode.PLUGIN_RUN_COMPLETE)

    def _language(self, given: str | None) -> str:
        return given or self.language or self.env.get_str("SYNAPSE_LANGUAGE") or DEFAULT_LANGUAGE


class _ActionLogger(logging.Logger):
    """A logger whose records become events as well. It is not in `logging`'s registry, so it is freed after the run.

    It also has the additional methods of the SDK's loggers.
    """

    def __init__(self, name: str, ctx: RuntimeContext) -> None:
        super().__init__(f"synapse.{name}", logging.DEBUG)
        self.parent = logging.getLogger("synapse")
        self._emit = ctx._emit
        self.set_progress = ctx.set_progress
        self.set_metrics = ctx.set_metrics
        self._log_event = ctx.log

    def _record(self, level: Any, event: str, data: Any = None, file: str | None = None, step: Any = None) -> None:
        self._log_event(event, data, file, level, step=step)

    def log(self, level: Any, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log a record at a level of `logging`; or, at a `LogLevel`, an event with name, data, file and step."""
        if isinstance(level, int):
            super().log(level, msg, *args, stacklevel=kwargs.pop("stacklevel", 1) + 1, **kwargs)
        else:
            self._record(level, msg, *args, **kwargs)

    def handle(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - as in `logging`, it is reported, and the action goes on
            if logging.lastResort is not None:
                logging.lastResort.handleError(record)
            text = f"{record.msg} {record.args}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._emit(Event("message", text, level=record.levelname.lower()))
        super().handle(record)

    def __reduce__(self) -> tuple[Any, ...]:
        return logging.getLogger, (self.name,)


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an event's data, so that later changes do not affect the event, in any mode."""
    return {
        key if type(key) is str else str(key): value if type(value) in IMMUTABLE else snapshot(value)
        for key, value in data.items()
    }


def _level(level: object) -> str:
    """Return the level's name as a plain string; for an enum member its value."""
    return level if level == "info" and type(level) is str else str(getattr(level, "value", level)).lower()

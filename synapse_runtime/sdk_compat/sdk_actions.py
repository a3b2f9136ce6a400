"""Run actions written for the real `synapse-sdk`, if it is installed, with its own context and clients.

What they log through that context becomes the same events as with our own context.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError as PydanticValidationError

if TYPE_CHECKING:
    from synapse_runtime.context import RuntimeContext

__tracebackhide__ = True  # pytest leaves the frames of this module out of failure reports

_ACTION = "synapse_sdk.plugins.action"
_DECORATORS = "synapse_sdk.plugins.decorators"
# Event names that the SDK's loggers use for messages to the user; all other events are for programs.
_MESSAGES = ("message", "debug")
# Standard logging levels for levels that only the SDK has.
_LEVELS = {"success": logging.INFO, "danger": logging.ERROR}


def is_of_sdk(target: Any) -> bool:
    """Return whether an action is a subclass of the SDK's `BaseAction`, or decorated with its `@action`."""
    if not isinstance(target, type):
        return bool(getattr(target, "__globals__", {}).get("__name__") == _DECORATORS)
    base = _base_action()
    return base is not None and issubclass(target, base)


def overrides_dispatch(target: Any) -> bool:
    """Return whether an SDK action overrides `dispatch`, and so validates its params itself."""
    base = _base_action()
    return isinstance(target, type) and getattr(target.dispatch, "__func__", None) is not base.dispatch.__func__  # type: ignore[attr-defined]


def validation_context(target: Any) -> dict[str, Any]:
    """Return `info.context` for validators of a params model: the platform's client, or None without credentials.

    Args:
        target: Any action, whether written for the SDK or not.
    """
    return {"client": _clients().client if is_of_sdk(target) else None}


def invoke(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    """Call an SDK action.

    Args:
        target: The action.
        params: Its validated params; if it overrides `dispatch`, the params as they were given.
        ctx: Our context, which receives the action's events.

    Raises:
        pydantic.ValidationError: The params are invalid, or the action raised it; see `is_params_error`.
    """
    theirs = _context(ctx)
    if not isinstance(target, type):
        return target(params, theirs)
    cls: Any = target
    if overrides_dispatch(cls):
        return cls.dispatch(params, theirs)
    action = cls(params, theirs)
    if getattr(action, "action_name", None) is None:
        action.action_name = ctx.name
    if getattr(action, "category", None) is None:
        action.category = ctx.category
    return action.execute() if cls.run is _base_action().run else action.run()


def is_params_error(error: BaseException) -> bool:
    """Return whether the SDK's `dispatch` raised this error because the params are invalid."""
    base = _base_action()
    if base is None or not isinstance(error, PydanticValidationError):
        return False
    modules = []
    part = error.__traceback__
    while part is not None:
        in_dispatch = part.tb_frame.f_code is base.dispatch.__func__.__code__
        modules.append("dispatch" if in_dispatch else str(part.tb_frame.f_globals.get("__name__", "")))
        part = part.tb_next
    return "dispatch" in modules and all(
        name.partition(".")[0] == "pydantic" for name in modules[modules.index("dispatch") + 1 :]
    )


def _base_action() -> Any:
    """Return the SDK's own `BaseAction`; None if it is not imported or `import_hook.py` stands in for it."""
    module = sys.modules.get(_ACTION)
    if module is None:
        return None
    base = getattr(module, "BaseAction", None)
    return base if getattr(base, "__module__", None) == _ACTION else None


def _clients() -> Any:
    """Return the platform's clients, created as in the SDK's executors; each is None without credentials."""
    with warnings.catch_warnings():
        # It warns of its own use of pydantic, and of plain HTTP, as to a server on this machine: where warnings are
        # errors, every action would fail.
        warnings.simplefilter("ignore")
        from synapse_sdk.utils.auth import build_runtime_clients

        return build_runtime_clients()


def _context(ctx: RuntimeContext) -> Any:
    from synapse_sdk.plugins.context import PluginEnvironment, RuntimeContext

    clients = _clients()
    return RuntimeContext(
        logger=_logger_class()(ctx),
        env=PluginEnvironment(ctx.env.to_dict()),
        job_id=ctx.job_id,
        client=clients.client,
        v2_client=clients.v2_client,
        language=ctx.language,
    )


@functools.cache
def _logger_class() -> Any:
    """Return an SDK logger class that forwards everything to our context."""
    from synapse_sdk.loggers import BaseLogger

    records = logging.getLogger("synapse_sdk.loggers")  # used by the SDK's console logger
    records.addHandler(logging.NullHandler())  # as in any library: prevents output to standard error by default

    class EventLogger(BaseLogger):  # type: ignore[misc]
        """Turns log calls into events. Validation is that of the SDK."""

        def __init__(self, ctx: RuntimeContext) -> None:
            super().__init__()
            self._ctx = ctx

        def set_step(self, step: str | None, order: int | None = None) -> None:
            super().set_step(step, order)
            self._ctx.step = step

        def _log_impl(self, event: str, data: dict[str, Any], file: Any, step: str | None, level: Any = None) -> None:
            word = "info" if level is None else str(level.value)
            if event in _MESSAGES and "content" in data:
                self._ctx.emit_message(str(data["content"]), level=word, step=step, key=data.get("key"))
            else:
                self._ctx.log(event, data, file, level=word, step=step)
            number = _LEVELS.get(word) or logging.getLevelNamesMapping().get(word.upper(), logging.INFO)
            records.log(number, "%s %s", event, data)

        def set_progress(self, current: float, total: float, step: str | None = None) -> None:
            super().set_progress(current, total, step)
            self._ctx.set_progress(current, total, self.get_step() if step is None else step)

        def set_progress_failed(self, step: str | None = None) -> None:
            super().set_progress_failed(step)
            self._ctx.log("progress_failed", level="error", step=step)

        def set_metrics(self, value: Mapping[str, Any], step: str | None = None) -> None:
            super().set_metrics(value, step)
            self._ctx.set_metrics(value, str(self.get_step() if step is None else step))

        def log_event(self, event: str, data: Mapping[str, Any], file: str | None = None) -> None:
            self._ctx.log(event, data, file)

        def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
            self._ctx.log_metric(category, key, value, **metrics)

        def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
            self._ctx.log_visualization(category, group, index, image, **meta)

        def log_trials(self, data: Mapping[str, Any] | None = None, **parts: Any) -> None:
            self._ctx.log_trials(data, **parts)

        def log_message(self, message: str, level: Any = None, *, context: Any = None) -> None:
            self._ctx.log_message(message, level or "info", context=context)

    return EventLogger

"""Actions written against the real `synapse-sdk`, where it is installed: they get its own context and clients.

What they say through it becomes the same events that our own context makes of it.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError as PydanticValidationError

if TYPE_CHECKING:
    from synapse_runtime.context import RuntimeContext

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

_ACTION = "synapse_sdk.plugins.action"
_DECORATORS = "synapse_sdk.plugins.decorators"
# Names under which the SDK's loggers log what a person is told; all other events are for programs.
_MESSAGES = ("message", "debug")
# Python's levels of those that only the SDK has.
_LEVELS = {"success": logging.INFO, "danger": logging.ERROR}


def is_of_sdk(target: Any) -> bool:
    """Tell whether an action is a subclass of the SDK's `BaseAction`, or a function that its `@action` decorated."""
    if not isinstance(target, type):
        return bool(getattr(target, "__globals__", {}).get("__name__") == _DECORATORS)
    base = _base_action()
    return base is not None and issubclass(target, base)


def has_own_dispatch(target: Any) -> bool:
    """Tell whether an action of the SDK overrides its `dispatch`, so that it checks its params itself."""
    base = _base_action()
    return isinstance(target, type) and getattr(target.dispatch, "__func__", None) is not base.dispatch.__func__  # type: ignore[attr-defined]


def validation_context(target: Any) -> dict[str, Any]:
    """Return what validators of a params model find in `info.context`: the platform's client, None without credentials.

    Args:
        target: The action, of the SDK or not.
    """
    return {"client": _clients().client if is_of_sdk(target) else None}


def invoke(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    """Call an action of the SDK.

    Args:
        target: The action.
        params: Its checked params; where it has its own dispatch, the params as they were given.
        ctx: Our context, which hears what the action says.

    Raises:
        pydantic.ValidationError: Of the action; see `is_refusal`.
    """
    theirs = _context(ctx)
    if not isinstance(target, type):
        return target(params, theirs)
    cls: Any = target
    if has_own_dispatch(cls):
        return cls.dispatch(params, theirs)
    action = cls(params, theirs)
    if getattr(action, "action_name", None) is None:
        action.action_name = ctx.name
    if getattr(action, "category", None) is None:
        action.category = ctx.category
    return action.execute() if cls.run is _base_action().run else action.run()


def is_refusal(error: BaseException) -> bool:
    """Tell whether the SDK's `dispatch` raised this error because the params do not fit."""
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
    """Return the SDK's own `BaseAction`; None where it is not imported, or its names mean ours (`compat.py`)."""
    module = sys.modules.get(_ACTION)
    if module is None:
        return None
    base = getattr(module, "BaseAction", None)
    return base if getattr(base, "__module__", None) == _ACTION else None


def _clients() -> Any:
    """Return the platform's clients, as the SDK's executors make them: each None where there are no credentials."""
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
    """Return a logger of the SDK's kind that says everything to a context of ours."""
    from synapse_sdk.loggers import BaseLogger

    records = logging.getLogger("synapse_sdk.loggers")  # where the SDK's console logger speaks to `logging`
    records.addHandler(logging.NullHandler())  # as libraries do, so that nothing goes to standard error by itself

    class EventLogger(BaseLogger):  # type: ignore[misc]
        """Turns what is said into events. Checks are the SDK's own."""

        def __init__(self, ctx: RuntimeContext) -> None:
            super().__init__()
            self._ctx = ctx

        def set_step(self, step: str | None, order: int | None = None) -> None:
            super().set_step(step, order)
            self._ctx.step = step

        def _log_impl(self, event: str, data: dict[str, Any], file: Any, step: str | None, level: Any = None) -> None:
            word = "info" if level is None else str(level.value)
            if event in _MESSAGES and "content" in data:
                self._ctx.say(str(data["content"]), level=word, step=step, key=data.get("key"))
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

"""The outcome of a call as plain data, to compare outcomes of different executors."""

from __future__ import annotations

import json
from typing import Any


def outcome(result: Any, error: BaseException | None, events: list[list[Any]]) -> dict[str, Any]:
    """Return an outcome, converted to JSON and back.

    Args:
        result: What the action returned.
        error: The exception that it raised, if any.
        events: Kind, name, data, level, step and file of each event.
    """
    raised = None if error is None else [type(error).__name__, str(error)]
    text = json.dumps({"result": result, "error": raised, "events": events}, default=_plain)
    plain: dict[str, Any] = json.loads(text)
    return plain


def outcome_of(run: Any) -> dict[str, Any]:
    """Return the outcome of an `ActionRun`; for a failure, the exception that the action raised."""
    error = run.error and (run.error.__cause__ or run.error)
    return outcome(run.result, error, [[e.kind, e.name, dict(e.data), e.level, e.step, e.file] for e in run.events])


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return {type(value).__name__: value.model_dump()}
    return repr(value)

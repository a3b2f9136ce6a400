"""`@action`: make a plain function a plugin action."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from synapse_runtime.annotated_models import models_of

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["action"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def action(name: F) -> F: ...
@overload
def action(
    name: str | None = None,
    description: str = "",
    params: type[BaseModel] | None = None,
    result: type[BaseModel] | None = None,
    category: str | None = None,
) -> Callable[[F], F]: ...
def action(
    name: Any = None,
    description: str = "",
    params: type[BaseModel] | None = None,
    result: type[BaseModel] | None = None,
    category: str | None = None,
) -> Any:
    """Make a function an action. It is called with `(params, context)`; the function itself is returned unchanged.

    Args:
        name: The action's name; the function's name by default.
        description: A one-line description.
        params: Pydantic model that validates the params; by default that with which the function's first parameter is
            annotated. Without one the function receives the dict.
        result: Pydantic model that the result is checked against; by default that which the function is annotated to
            return.
        category: The plugin category that it belongs to.

    Raises:
        ConfigError: The function does not take `(params, context)`. If the annotation of its params cannot be resolved,
            this is raised when the action is used.

    Example:
        >>> from pydantic import BaseModel
        >>> class AddParams(BaseModel):
        ...     a: int
        ...     b: int = 1
        >>> @action
        ... def add(params: AddParams, context):
        ...     return params.a + params.b
        >>> from synapse_runtime.executors.local import LocalExecutor
        >>> LocalExecutor().execute(add, {"a": 2})
        3
    """
    local_names = _local_names()

    def decorate(function: F) -> F:
        annotated = models_of(function, local_names)
        marks = {
            "_is_action": True,
            "_action_name": name if isinstance(name, str) else function.__name__,
            "_action_description": description,
            "_action_params": annotated.params if params is None else params,
            "_action_result": annotated.result if result is None else result,
            "_action_category": category,
        }
        for mark, value in marks.items():
            setattr(function, mark, value)
        return function

    return decorate(name) if callable(name) else decorate


def _local_names() -> Mapping[str, Any]:
    """Return the local variables where the decorator is used, which annotations may refer to."""
    frame = inspect.currentframe()
    caller = None if frame is None or frame.f_back is None else frame.f_back.f_back
    return {} if caller is None or caller.f_locals is caller.f_globals else dict(caller.f_locals)

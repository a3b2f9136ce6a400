"""`@action`: make a plain function a plugin action."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

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
        params: Pydantic model that validates the params. Without one the function receives the dict.
        result: Pydantic model that the result is checked against.
        category: The plugin category that it belongs to.

    Example:
        >>> from pydantic import BaseModel
        >>> class AddParams(BaseModel):
        ...     a: int
        ...     b: int = 1
        >>> @action(params=AddParams)
        ... def add(params, context):
        ...     return params.a + params.b
        >>> from synapse_runtime.executors.local import LocalExecutor
        >>> LocalExecutor().execute(add, {"a": 2})
        3
    """

    def decorate(function: F) -> F:
        marks = {
            "_is_action": True,
            "_action_name": name if isinstance(name, str) else function.__name__,
            "_action_description": description,
            "_action_params": params,
            "_action_result": result,
            "_action_category": category,
        }
        for mark, value in marks.items():
            setattr(function, mark, value)
        return function

    return decorate(name) if callable(name) else decorate

"""The models with which an `@action` function is annotated."""

from __future__ import annotations

import collections.abc
import re
import sys
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from synapse_runtime.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][\w.]*")


class UnresolvedModel:
    """An annotation that could not be resolved when the function was decorated, such as a class that is defined later.

    Args:
        annotation: The annotation.
        function: The function.
    """

    def __init__(self, annotation: str, function: Any) -> None:
        self._annotation = annotation
        self._function = function

    def resolve(self) -> Any:
        """Return the model; None if the annotation is not one.

        Raises:
            ConfigError: It is unknown in the function's module.
        """
        function = self._function
        try:
            found = eval(self._annotation, function.__globals__)
        except Exception as error:
            raise ConfigError(
                f"{_name_of(function)}: the annotation {self._annotation!r} cannot be resolved: "
                f"{type(error).__name__}: {error}. Import it at run time, not only for type checking, or pass the "
                "model: @action(params=...)"
            ) from error
        return found if _is_model(found) else None


class Annotated(NamedTuple):
    """The models of a function's params and result: a model, an annotation that is to be resolved later, or None."""

    params: Any = None
    result: Any = None


def models_of(function: Any, local_names: Mapping[str, Any]) -> Annotated:
    """Return the models with which a function is annotated.

    Args:
        function: A function that takes params and context.
        local_names: The local variables where it is defined.

    Raises:
        ConfigError: Its first parameter is the context.
    """
    found: Mapping[str, Any] = getattr(function, "__annotations__", {})
    code = getattr(function, "__code__", None)
    if not found or code is None:
        return Annotated()
    names = code.co_varnames[: code.co_argcount]
    if len(names) > 1 and _is_context(found.get(names[0])):
        raise ConfigError(
            f"{_name_of(function)}: its first parameter {names[0]!r} is the context; an action takes (params, "
            "context), in this order"
        )
    params = found.get(names[0]) if names else None
    return Annotated(_model(params, function, local_names), _model(found.get("return"), function, local_names))


def _name_of(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _is_context(annotation: Any) -> bool:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] == "RuntimeContext"


def _model(annotation: Any, function: Any, local_names: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation if _is_model(annotation) else None
    try:
        found = eval(annotation, function.__globals__, dict(local_names))
    except Exception:  # noqa: BLE001 - evaluating it may run users' code
        return UnresolvedModel(annotation, function) if _may_be_model(annotation) else None
    return found if _is_model(found) else None


def _may_be_model(annotation: str) -> bool:
    """Return whether an annotation is a name, and not one of a type that is imported for type checking only."""
    name = annotation.rpartition(".")[2]
    return bool(_NAME.fullmatch(annotation)) and not (hasattr(typing, name) or hasattr(collections.abc, name))


def _is_model(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")  # imported, if this is a model
    return pydantic is not None and isinstance(value, type) and issubclass(value, pydantic.BaseModel)

"""Describe the fields of a params model for display: name, type, default, help."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from synapse_runtime.cli.params import accepted_names, models_in

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


@dataclass(frozen=True)
class Param:
    """One param.

    Attributes:
        name: Its name. A field of a nested model has a dotted name: `optimizer.lr`.
        type: Its type and constraints, such as `int >= 1`.
        required: Whether it is required.
        default: Its default; None if it is required.
        help: Its description.
        shown_default: The default as text for display.
    """

    name: str
    type: str
    required: bool
    default: Any
    help: str
    shown_default: str


def params_of(model: type[BaseModel]) -> list[Param]:
    """Return the params of a model, in the order of its fields.

    Example:
        >>> from pydantic import Field
        >>> class TrainParams(BaseModel):
        ...     epochs: int = Field(20, ge=1, description="How often.")
        >>> params_of(TrainParams)[0].type
        'int >= 1'
    """
    return list(_params(model, "", ()))


def _params(model: type[BaseModel], prefix: str, within: tuple[type[BaseModel], ...]) -> Iterator[Param]:
    documented = _documented(model)
    for name, field in model.model_fields.items():
        shown = prefix + accepted_names(model, name)[0]
        about = field.description or documented.get(name, "")
        default = None if field.is_required() or field.default is PydanticUndefined else field.default
        yield Param(
            shown, _type_of(field), field.is_required(), default, " ".join(about.split()), _shown_default(field)
        )
        inner = models_in(field.annotation)
        if len(inner) == 1 and inner[0] not in (model, *within):  # a model may be recursive
            yield from _params(inner[0], f"{shown}.", (*within, model))


def _shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return f"{getattr(field.default_factory, '__name__', 'made')}()"
    return _shown(field.default)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}()"
    # An empty or blank string would be invisible without quotes.
    return str(value) if hasattr(value, "__fspath__") or (isinstance(value, str) and value.strip()) else repr(value)


def _type_of(field: FieldInfo) -> str:
    limits = []
    for item in field.metadata:
        for name, sign in _SIGNS.items():
            if getattr(item, name, None) is not None:
                limits.append(f"{sign} {getattr(item, name)}")
        for name, words in _LENGTHS.items():
            if getattr(item, name, None) is not None:
                limits.append(f"{words} {getattr(item, name)} long")
        if getattr(item, "pattern", None) is not None:
            limits.append(f"like {getattr(item.pattern, 'pattern', item.pattern)}")
    return " ".join([type_name(field.annotation), ", ".join(limits)]).rstrip()


def type_name(kind: Any) -> str:
    """Return a type as written in an annotation, without module names.

    Example:
        >>> from pathlib import Path
        >>> type_name(dict[str, list[Path]] | None)
        'dict[str, list[Path]] | None'
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return "None"
    if kind is Ellipsis:
        return "..."
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin is not None and arguments:
        inner = arguments if not isinstance(arguments[0], list) else ()
        return f"{type_name(origin)}[{', '.join(map(type_name, inner))}]" if inner else type_name(origin)
    return getattr(kind, "__name__", None) or str(kind)


def _documented(model: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions of fields from the `Attributes:` section of a model's Google-style docstring."""
    found: dict[str, str] = {}
    name = ""
    inside = False
    for line in inspect.cleandoc(model.__doc__ or "").splitlines():
        if not line.startswith(" ") and line:
            inside = line in ("Attributes:", "Args:")
            continue
        start = re.fullmatch(r"    (\w+)(?: \(.*?\))?: *(.*)", line)
        if inside and start:
            name, found[start[1]] = start[1], start[2]
        elif inside and name and line.strip():
            found[name] += f" {line.strip()}"
    return found

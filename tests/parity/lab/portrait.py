"""Portraits: descriptions of values as nested tuples that can be compared, even NaN and arrays, across processes."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy
from pydantic import BaseModel


def named(cls: type) -> str:
    """Return the name of a class, which two processes can compare."""
    return f"{cls.__module__}.{cls.__qualname__}"


def itself(cls: type) -> type:
    """Return the class itself, for comparison in one process: a copy of a class is not equal to it."""
    return cls


def portrait(value: Any, kind: Callable[[type], Any] = itself) -> Any:
    """Return a description of a value: its class and everything in it, in order."""

    def of(part: Any) -> Any:
        return portrait(part, kind)

    cls = kind(type(value))
    if isinstance(value, Enum):
        return cls, of(value.value)
    if isinstance(value, float | complex | numpy.generic):
        return cls, repr(value)
    if isinstance(value, str | bytes | bytearray) and len(value) > 1000:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return cls, len(value), hashlib.sha256(data).hexdigest()
    if isinstance(value, numpy.ndarray):
        content = of(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
        return cls, str(value.dtype.descr), value.shape, value.flags.f_contiguous, content
    if isinstance(value, BaseModel):
        parts = (value.__dict__, sorted(value.model_fields_set), value.__pydantic_extra__, value.__pydantic_private__)
        return cls, tuple(map(of, parts))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return cls, tuple((field.name, of(getattr(value, field.name))) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return cls, tuple((of(key), of(item)) for key, item in value.items()), _attributes(value, of)
    if isinstance(value, set | frozenset):
        return cls, tuple(sorted((of(item) for item in value), key=repr))
    if isinstance(value, list | tuple | deque):
        return cls, tuple(map(of, value)), _attributes(value, of)
    if type(value).__repr__ is object.__repr__:
        return cls, _attributes(value, of)
    return cls, repr(value)


def portrait_of_error(error: BaseException | None, kind: Callable[[type], Any] = itself, depth: int = 6) -> Any:
    """Return a description of an exception: class, arguments, attributes, notes, slots, members and chain."""
    if error is None or not depth:
        return None

    def of(other: BaseException | None) -> Any:
        return portrait_of_error(other, kind, depth - 1)

    try:
        text = str(error)
    except Exception as problem:  # noqa: BLE001 - whatever an author's __str__ raises
        text = f"no text: {type(problem).__name__}"
    return (
        kind(type(error)),
        portrait(text),
        portrait(error.args, kind),
        portrait(vars(error), kind),
        tuple((name, portrait(getattr(error, name), kind)) for name in _slots(type(error)) if hasattr(error, name)),
        tuple(map(of, error.exceptions)) if isinstance(error, BaseExceptionGroup) else (),
        of(error.__cause__),
        of(error.__context__),
        error.__suppress_context__,
    )


# Attributes of Python's own exceptions besides `args`.
_BUILTIN_SLOTS = (
    *("errno", "strerror", "filename", "filename2", "code", "value", "encoding", "object", "start", "end", "reason"),
    *("msg", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line", "name", "path"),
)


def _slots(cls: type) -> list[str]:
    own = [name for base in cls.__mro__ for name in vars(base).get("__slots__", ())]
    return sorted({name for name in (*own, *_BUILTIN_SLOTS) if inspect.isdatadescriptor(getattr(cls, name, None))})


def _attributes(value: Any, of: Callable[[Any], Any]) -> Any:
    return tuple((name, of(item)) for name, item in getattr(value, "__dict__", {}).items())

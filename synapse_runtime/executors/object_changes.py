"""What code has changed in mutable objects: lists, dicts, attributes, variables of functions.

A worker compares the copies that it has received before and after an action; the caller makes the same changes to the
objects that they were made from. So calls that run at the same time add to a list or counter, and none is lost.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from synapse_runtime import serialization
from synapse_runtime.core.patches import MISSING, is_at
from synapse_runtime.executors.mock_pickling import MOCK_MODULES, is_mock, special_methods

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# The largest number of objects whose changes come back.
_MAX_OBJECTS: Final = 10_000


class NotSent:
    """Stands here for a value in a worker that could not be sent back; only its `repr` is known.

    Args:
        text: The value's `repr`.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


@dataclass(frozen=True)
class Change:
    """What has changed in an object.

    Attributes:
        changed: The new values by name, key or index; for a list its new items, None if only `added` is new.
        removed: Names or keys that are gone; for a set its items.
        added: New items at the end of a list; increments of counters by name; for a set its new items.
    """

    changed: Any = None
    removed: Any = None
    added: Any = None


class Tracked(ABC):
    """An object whose changes come back: what it contains, and how to compare and change that.

    Args:
        value: The object.
    """

    def __init__(self, value: Any) -> None:
        self.object = value

    @staticmethod
    def of(value: Any) -> Tracked:
        """Return the class for an object that `find` has found."""
        found = Tracked.find(value)
        assert found is not None
        return found

    @staticmethod
    def find(value: Any) -> Tracked | None:
        """Return the tracked object; None if its changes do not come back, as it is immutable or unknown."""
        cls = type(value)
        if cls is list or cls is deque or (isinstance(value, list) and cls.__module__ in MOCK_MODULES):
            return _Items(value)
        if isinstance(value, dict) and not is_mock(value):
            return _Entries(value)
        if cls is set:
            return _Members(value)
        if cls in (io.StringIO, io.BytesIO):
            return _Stream(value)
        if cls is types.FunctionType:
            return _Function(value)
        if isinstance(value, type) and not is_mock(value):
            return _Class(value)
        if is_mock(value) or (_has_default_state(cls) and isinstance(getattr(value, "__dict__", None), dict)):
            return _Attributes(value)
        return None

    @abstractmethod
    def parts(self) -> list[Any]:
        """Return the objects that it refers to."""

    @abstractmethod
    def snapshot(self) -> Any:
        """Return its content, for `change_since`."""

    @abstractmethod
    def change_since(self, before: Any) -> Change | None:
        """Return what has changed since a snapshot; None if nothing has."""

    @abstractmethod
    def apply(self, change: Change) -> None:
        """Make the change of another copy to this object."""


class _Items(Tracked):
    """A list or deque."""

    def parts(self) -> list[Any]:
        return [*self.object]

    snapshot = parts

    def change_since(self, before: list[Any]) -> Change | None:
        now = [*self.object]
        if len(now) < len(before) or any(new is not old for new, old in zip(now, before, strict=False)):
            return Change(changed=now)
        return Change(added=now[len(before) :]) if len(now) > len(before) else None

    def apply(self, change: Change) -> None:
        if change.changed is not None:
            self.object.clear()
        self.object.extend(change.added if change.changed is None else change.changed)


class _Named(Tracked, ABC):
    """An object with named values."""

    @abstractmethod
    def names(self) -> dict[Any, Any]:
        """Return a copy of them."""

    @abstractmethod
    def put(self, name: Any, value: Any) -> None:
        """Set one."""

    @abstractmethod
    def remove(self, name: Any) -> None:
        """Delete one."""

    def parts(self) -> list[Any]:
        return [*self.names().values()]

    def snapshot(self) -> dict[Any, Any]:
        return self.names()

    def change_since(self, before: dict[Any, Any]) -> Change | None:
        now = self.names()
        changed, added = {}, {}
        for name, value in now.items():
            old = before.get(name, MISSING)
            if value is old and not hasattr(type(value), "__next__"):  # an iterator may have advanced
                continue
            if isinstance(name, str) and name.endswith("_count") and type(value) is type(old) is int:
                added[name] = value - old  # so that calls which run at the same time are all counted
            else:
                changed[name] = value
        removed = [name for name in before if name not in now]
        return Change(changed, removed, added) if changed or removed or added else None

    def apply(self, change: Change) -> None:
        for name in change.removed:
            self.remove(name)
        names = self.names()
        for name, more in change.added.items():
            self.put(name, names.get(name, 0) + more)
        for name, value in change.changed.items():
            self.put(name, value)


class _Entries(_Named):
    """A dict."""

    def names(self) -> dict[Any, Any]:
        return dict(self.object)

    def put(self, name: Any, value: Any) -> None:
        self.object[name] = value

    def remove(self, name: Any) -> None:
        self.object.pop(name, None)


class _Attributes(_Named):
    """An instance with attributes, such as a mock."""

    def names(self) -> dict[Any, Any]:
        return dict(self.object.__dict__)

    def parts(self) -> list[Any]:
        values = [*self.object.__dict__.values()]
        if not is_mock(self.object):
            return [*values, type(self.object)]
        return [*values, *special_methods(self.object).values()]

    def put(self, name: Any, value: Any) -> None:
        self.object.__dict__[name] = value

    def remove(self, name: Any) -> None:
        self.object.__dict__.pop(name, None)


class _Class(_Named):
    """A class that is sent by value."""

    def names(self) -> dict[Any, Any]:
        return {name: value for name, value in vars(self.object).items() if not is_dunder(name)}

    def parts(self) -> list[Any]:
        return [*vars(self.object).values(), *self.object.__bases__]

    def put(self, name: Any, value: Any) -> None:
        setattr(self.object, name, value)

    def remove(self, name: Any) -> None:
        if name in vars(self.object):
            delattr(self.object, name)


class _Function(_Named):
    """A function that is sent by value: its attributes, variables of enclosing functions and global variables."""

    def names(self) -> dict[Any, Any]:
        function = self.object
        found: dict[Any, Any] = {("attribute", name): value for name, value in vars(function).items()}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # it is empty
                found["enclosing", name] = cell.cell_contents
        if _has_own_globals(function):
            names = _global_names(function.__code__)
            found |= {("global", name): value for name, value in function.__globals__.items() if name in names}
        return found

    def parts(self) -> list[Any]:
        function = self.object
        return [*self.names().values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]

    def put(self, name: Any, value: Any) -> None:
        kind, name = name
        if kind == "attribute":
            setattr(self.object, name, value)
        elif kind == "global":
            self.object.__globals__[name] = value
        else:
            self.object.__closure__[self.object.__code__.co_freevars.index(name)].cell_contents = value

    def remove(self, name: Any) -> None:
        kind, name = name
        if kind == "attribute":
            vars(self.object).pop(name, None)
        elif kind == "global":
            self.object.__globals__.pop(name, None)


class _Members(Tracked):
    """A set."""

    def parts(self) -> list[Any]:
        return []

    def snapshot(self) -> set[Any]:
        return set(self.object)

    def change_since(self, before: set[Any]) -> Change | None:
        return None if before == self.object else Change(removed=[*before - self.object], added=[*self.object - before])

    def apply(self, change: Change) -> None:
        self.object.difference_update(change.removed)
        self.object.update(change.added)


class _Stream(Tracked):
    """An `io.StringIO` or `io.BytesIO`."""

    def parts(self) -> list[Any]:
        return []

    def snapshot(self) -> tuple[Any, int] | None:
        return None if self.object.closed else (self.object.getvalue(), self.object.tell())

    def change_since(self, before: tuple[Any, int] | None) -> Change | None:
        now = self.snapshot()
        return None if now == before else Change(changed=now)

    def apply(self, change: Change) -> None:
        if change.changed is None:
            self.object.close()
            return
        text, position = change.changed
        self.object.seek(0)
        self.object.truncate()
        self.object.write(text)
        self.object.seek(position)


def _has_default_state(cls: Any) -> bool:
    """Return whether instances of a class are pickled as their attributes are."""
    return cls is types.SimpleNamespace or all(
        getattr(cls, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__")
    )


def _has_own_globals(function: types.FunctionType) -> bool:
    """Return whether the global variables of a function are sent with it, or came with it."""
    module = sys.modules.get(function.__module__ or "")
    if module is None or vars(module) is not function.__globals__:
        return True
    return serialization.is_pickled_by_value(function.__module__)


def is_dunder(name: str) -> bool:
    """Return whether this is the name of a special method or attribute."""
    return name.startswith("__") and name.endswith("__")


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names that a function's code, and the code in it, may use as global variables."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def mutable_parts(values: Sequence[Any], by_reference: Collection[int], by_value: Collection[int]) -> list[Any]:
    """Return the objects in these values, at any depth, whose changes come back.

    Args:
        values: The values.
        by_reference: Ids of functions and classes that are not part of them.
        by_value: Ids of functions that are, although they seem to be importable.
    """
    found: list[Any] = []
    seen = set(by_reference)
    waiting = [*reversed(values)]
    while waiting and len(found) < _MAX_OBJECTS:
        value = waiting.pop()
        if id(value) in seen or type(value) in serialization.IMMUTABLE or isinstance(value, types.ModuleType):
            continue
        seen.add(id(value))
        is_definition = isinstance(value, type | types.FunctionType) and not is_mock(value)
        if is_definition and id(value) not in by_value and not _goes_by_value(value):
            continue
        tracked = Tracked.find(value)
        if tracked is not None:
            found.append(value)
            waiting.extend(reversed(tracked.parts()))
        elif isinstance(value, tuple | frozenset):
            waiting.extend(value)
        else:
            waiting.extend(_parts_of_wrapper(value))
    return found


def _parts_of_wrapper(value: Any) -> tuple[Any, ...]:
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.BuiltinMethodType):  # such as `calls.append`
        return (value.__self__,)
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    return ()


def _goes_by_value(definition: Any) -> bool:
    """Return whether a class or function is pickled by value."""
    module = definition.__module__
    if isinstance(module, str) and serialization.is_pickled_by_value(module):
        return True
    return not is_at(f"{module}:{definition.__qualname__}", definition)

"""The patches of a test: what `monkeypatch` and `unittest.mock` have replaced in this process, for its workers.

Whoever knows of patches, such as the pytest plugin, adds a source of them. Each call to a worker asks the sources, and
the worker applies the same patches while it runs the action.
"""

from __future__ import annotations

import contextlib
import pkgutil
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from synapse_runtime import serialization

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class _Sentinel:
    """An object that is the same in every process.

    Args:
        name: The variable of this module that it is.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


# The value of an attribute or item that does not exist.
MISSING: Final = _Sentinel("MISSING")
# The key of a patch that removes all items of a mapping. In a worker these may be others than here.
EVERY_KEY: Final = _Sentinel("EVERY_KEY")


@dataclass(frozen=True, eq=False)
class Patch:
    """An attribute or item that has been replaced.

    Attributes:
        container: The module, class or other object whose attribute it is, or the mapping.
        key: The name of the attribute, or the key of the item; or `EVERY_KEY`.
        is_item: Whether it is an item of a mapping.
        original: What it was before; `MISSING` if it did not exist.
    """

    container: Any
    key: Any
    is_item: bool
    original: Any

    def value(self) -> Any:
        """Return what it is now; `MISSING` if it does not exist."""
        return _current(self.container, self.key, is_item=self.is_item)


# Functions that return the patches which are active in this process, the oldest first.
sources: Final[list[Callable[[], Iterable[Patch]]]] = []


def may_have_patches() -> bool:
    """Return whether anybody knows of patches in this process."""
    return bool(sources)


def active_patches() -> list[Patch]:
    """Return the patches that are active in this process, one for each attribute or item.

    Those of `EVERY_KEY` come first, then the oldest. One that changes nothing here may change something in a worker.
    """
    found: dict[tuple[int, Any, bool], Patch] = {}
    for source in sources:
        for patch in source():
            found.setdefault((id(patch.container), patch.key, patch.is_item), patch)
    return sorted(found.values(), key=lambda patch: patch.key is not EVERY_KEY)


@dataclass(frozen=True, eq=False)
class Replacement:
    """What a worker replaces: the attributes of `Patch`, with the new value instead of the original."""

    container: Any
    key: Any
    is_item: bool
    value: Any


class PatchesOfCall(ABC):
    """The patches of a call, in the worker."""

    @abstractmethod
    def applied(self) -> AbstractContextManager[None]:
        """Return a context manager that applies the patches.

        Raises:
            Exception: On entering: what they refer to cannot be imported here.
        """


@contextlib.contextmanager
def applied(replacements: Iterable[Replacement]) -> Iterator[None]:
    """Replace attributes and items in this process during the block."""
    undo: list[Replacement] = []
    try:
        for each in replacements:
            # In this order the items are put back in the order that they had.
            keys = [*reversed([*each.container])] if each.key is EVERY_KEY else [each.key]
            for key in keys:
                before = _current(each.container, key, is_item=each.is_item)
                undo.append(Replacement(each.container, key, each.is_item, before))
                _put(Replacement(each.container, key, each.is_item, each.value))
        yield
    finally:
        for each in reversed(undo):
            with contextlib.suppress(AttributeError, KeyError):  # the action has deleted it
                _put(each)


def _current(container: Any, key: Any, *, is_item: bool) -> Any:
    if is_item:
        try:
            return container[key]
        except KeyError:
            return MISSING
    # As it is stored: `getattr` would bind methods, and find what is inherited.
    namespace: Mapping[str, Any] | None = getattr(container, "__dict__", None)
    return getattr(container, key, MISSING) if namespace is None else namespace.get(key, MISSING)


def _put(each: Replacement) -> None:
    if each.value is MISSING:
        if each.is_item:
            each.container.pop(each.key, None)
        elif each.key in getattr(each.container, "__dict__", {}):
            delattr(each.container, each.key)
    elif each.is_item:
        each.container[each.key] = each.value
    else:
        setattr(each.container, each.key, each.value)


def path_of(container: Any) -> str | None:
    """Return the path of a module, class, or object that is reached from a module; None if there is none."""
    if isinstance(container, types.ModuleType):
        name = container.__name__
        return f"{name}:" if sys.modules.get(name) is container else None
    if isinstance(container, type | types.FunctionType):
        path = f"{container.__module__}:{container.__qualname__}"
        return path if is_at(path, container) else None
    return _path_of_object(container)


def is_at(path: str, value: Any) -> bool:
    """Return whether a path leads to this object."""
    try:
        return pkgutil.resolve_name(path) is value
    except (AttributeError, ImportError, ValueError):
        return False


_known_paths: dict[int, str] = {}


def _path_of_object(value: Any) -> str | None:
    """Return the path of an object that is a global variable of a module, an attribute of a class, or of one of those.

    All modules are searched, which takes milliseconds, so the path is kept.
    """
    known = _known_paths.get(id(value))
    if known is not None and is_at(known, value):
        return known
    nearest: list[tuple[str, Any]] = []
    for name, module in [*sys.modules.items()]:
        if not isinstance(module, types.ModuleType) or serialization.is_pickled_by_value(name):
            continue
        if value is vars(module):
            return f"{name}:__dict__"
        for key, found in [*vars(module).items()]:
            path = f"{name}:{key}"
            if found is value:
                _known_paths[id(value)] = path
                return path
            if name not in sys.stdlib_module_names and _may_contain(found, name):
                nearest.append((path, found))
    for path, owner in nearest:
        for key, found in [*owner.__dict__.items()]:
            if found is value and isinstance(key, str):
                _known_paths[id(value)] = f"{path}.{key}"
                return f"{path}.{key}"
    return None


def _may_contain(found: Any, module: str) -> bool:
    if isinstance(found, type):
        return found.__module__ == module
    return (
        not isinstance(found, types.ModuleType | types.FunctionType)
        and hasattr(type(found), "__dict__")
        and (isinstance(getattr(found, "__dict__", None), dict))
    )

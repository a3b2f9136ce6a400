"""Pickle mocks of `unittest.mock` for another process: each is created anew there, with a class of its own.

What a mock is, and what it has recorded, is in its attributes, which are sent as they are.
"""

from __future__ import annotations

import contextlib
import functools
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, Final

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

MOCK_MODULES: Final = ("unittest.mock", "mock.mock")


def is_mock(value: Any) -> bool:
    """Return whether this is a mock, of any kind."""
    return any(
        (module := sys.modules.get(name)) is not None and issubclass(type(value), module.NonCallableMock)
        for name in MOCK_MODULES
    )


@functools.cache
def _own_sentinels() -> dict[int, str]:
    """Return objects that mocks refer to and that are compared by identity, with their paths, by id."""
    found = {}
    for path in ("asyncio.coroutines:_is_coroutine", "inspect:_is_coroutine_mark"):
        with contextlib.suppress(AttributeError, ImportError):
            found[id(pkgutil.resolve_name(path))] = path
    return found


class MockPickler:
    """Extends a pickler by mocks. Each mock has a class of its own, which is created anew too."""

    def persistent_id(self, value: Any) -> Any:
        """Return the path of an object that is compared by identity, else None."""
        if type(value) is object:
            path = _own_sentinels().get(id(value))
            return None if path is None else ("path", path)
        return None

    def reducer_override(self, value: Any) -> Any:
        """Return how to create a mock, or the record of a call, anew."""
        cls = type(value)
        if not is_mock(value):
            if cls.__name__ == "_Call" and cls.__module__ in MOCK_MODULES:
                return _new_call, (cls, tuple(value), value.__dict__)
            return super().reducer_override(value)  # type: ignore[misc]
        state = (dict(value.__dict__), special_methods(value))
        return _new_mock, (cls.__bases__, cls.__name__), state, None, None, _set_mock_state


def special_methods(mock: Any) -> dict[str, Any]:
    """Return the special methods of a mock that have been set or used."""
    return {
        name: each
        for name, each in vars(type(mock)).items()
        if name not in ("__doc__", "__module__", "__dict__", "__weakref__") and type(each).__name__ != "MagicProxy"
    }


def _new_mock(bases: tuple[type, ...], name: str) -> Any:
    return object.__new__(type(name, bases, {}))


def _new_call(cls: Any, parts: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Create a `mock.call`, any attribute of which is another one, and so its `__setstate__`."""
    call = tuple.__new__(cls, parts)
    call.__dict__.update(attributes)
    return call


def _set_mock_state(mock: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, special = state
    mock.__dict__.update(attributes)
    cls = type(mock)
    for name, value in special.items():
        setattr(cls, name, value)
    set_magics: Callable[[], None] | None = getattr(cls, "_mock_set_magics", None)
    if set_magics is not None:
        cls._mock_set_magics(mock)

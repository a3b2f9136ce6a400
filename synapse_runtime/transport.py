"""Pickling: how calls and runs cross the border between processes, and which part cannot.

Classes and functions go by reference where the other side can import them, by value otherwise. What a module
of a test or a conftest defines goes by value: no worker can import those the way pytest did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import pickle
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

from synapse_runtime.errors import ResultNotSerializable, safe_str

# The one registry of this package: names of modules whose classes and functions travel by value.
_by_value: set[str] = set()
_lock = threading.Lock()

_MAX_DEPTH = 12


def ship_by_value(module_name: str) -> None:
    """Let everything that this module defines travel by value from now on.

    Args:
        module_name: A key of `sys.modules`. Nothing happens for a name that is not there when pickling.
    """
    _by_value.add(module_name)


def dumps(value: Any) -> bytes:
    """Pickle `value` for another process.

    Raises:
        Exception: Whatever pickling raises; see `dumps_named` for the part at fault.

    Example:
        >>> loads(dumps({"epochs": 3}))
        {'epochs': 3}
    """
    if _is_plain(value):  # the common case by far, which the C pickler does in microseconds
        return pickle.dumps(value, protocol=5)
    import cloudpickle

    with _lock, _registered(cloudpickle):
        data: bytes = cloudpickle.dumps(value, protocol=5)
        return data


def loads(data: bytes) -> Any:
    """Read what another process wrote with `dumps`."""
    return pickle.loads(data)


def loads_at_home(data: bytes) -> Any:
    """Read what came back from a worker, in the process that its classes came from.

    Classes that went there by value come back as the ones they were, and stay as they are here.
    """
    return _HomeUnpickler(io.BytesIO(data)).load()


def round_trip(value: Any) -> Any:
    """Return the copy of a value that a trip to another process and back would make, with the same classes.

    Example:
        >>> params = {"sizes": [1, 2]}
        >>> copy = round_trip(params)
        >>> copy == params, copy is params
        (True, False)
    """
    if type(value) in _PLAIN:
        return value
    if _is_plain(value):
        return pickle.loads(pickle.dumps(value, protocol=5))
    code: list[Any] = []
    buffer = io.BytesIO()
    _pickler_class()(buffer, code).dump(value)
    buffer.seek(0)
    return _CopyUnpickler(buffer, code).load()


def snapshot(value: Any) -> Any:
    """Return the value as it is now: a copy, or its `repr` where it cannot be copied by pickling."""
    try:
        return round_trip(value)
    except Exception:  # noqa: BLE001 - pickling runs any code of a user
        return repr(value)


def dumps_named(value: Any, name: str, *, verify_below: float = math.inf) -> bytes:
    """Pickle `value`, or say which part of it cannot be pickled.

    Args:
        value: Anything.
        name: What the error calls the whole, such as `result`.
        verify_below: Up to this size, in bytes, what was pickled is read back here, which finds what pickles but
            cannot be read, such as an object whose constructor wants more.

    Raises:
        ResultNotSerializable: Names the part, for instance `result["model"].lock`, and why.

    Example:
        >>> import threading
        >>> dumps_named({"model": threading.Lock()}, "result")
        Traceback (most recent call last):
        ...
        synapse_runtime.errors.ResultNotSerializable: result["model"] cannot travel ...
    """
    try:
        data = dumps(value)
        if len(data) < verify_below:
            round_trip(value)
    except Exception as error:
        raise not_serializable(value, name, error) from error
    return data


def not_serializable(value: Any, name: str, error: Exception) -> ResultNotSerializable:
    """Build the error that names the part of `value` that does not survive pickling."""
    path, part = explain(value, name)
    what = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    return ResultNotSerializable(
        f"{path} cannot travel between processes: {what}: {safe_str(error)}. "
        "Return plain data, or a path to a file that holds it."
    )


def explain(value: Any, name: str) -> tuple[str, Any]:
    """Return the innermost part of `value` that does not survive pickling, as (path, part)."""
    for _ in range(_MAX_DEPTH):
        for child_name, child in _children(value):
            if not _survives(child):
                name, value = name + child_name, child
                break
        else:
            break
    return name, value


_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Tell whether `value` is builtin data only; large collections are not searched through."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if depth > 4:
        return False
    if kind is dict:
        return len(value) <= 64 and all(
            type(key) in _PLAIN and _is_plain(item, depth + 1) for key, item in value.items()
        )
    if kind is list or kind is tuple:
        return len(value) <= 64 and all(_is_plain(item, depth + 1) for item in value)
    return False


class _CopyUnpickler(pickle.Unpickler):
    """Reads a copy in the process that wrote it: classes and functions are the same ones."""

    def __init__(self, buffer: io.BytesIO, code: list[Any]) -> None:
        super().__init__(buffer)
        self._code = code

    def persistent_load(self, pid: Any) -> Any:
        return self._code[pid]


@functools.cache
def _pickler_class() -> type[Any]:
    import cloudpickle

    class CopyPickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Writes a copy to be read in this process: classes and functions stay outside, as they are."""

        def __init__(self, buffer: io.BytesIO, code: list[Any]) -> None:
            super().__init__(buffer, protocol=5)
            self._code = code

        def persistent_id(self, value: Any) -> int | None:
            if not isinstance(value, type | types.FunctionType | types.ModuleType):
                return None
            self._code.append(value)
            return len(self._code) - 1

    return CopyPickler


class _HomeUnpickler(pickle.Unpickler):
    """Leaves classes alone that this process has already.

    cloudpickle finds the class that a by-value copy was made from, but then writes the copy's attributes into it:
    every method would become a stranger's, with globals of its own. No public way around; a test watches the names.
    """

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self._known: set[int] = set()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        if not module_name.startswith("cloudpickle."):
            return found
        if global_name in ("_make_skeleton_class", "_make_skeleton_enum"):
            return functools.partial(self._make, found)
        if global_name == "_class_setstate":
            return functools.partial(self._set_state, found)
        return found

    def _make(self, make: Any, *arguments: Any) -> Any:
        from cloudpickle import cloudpickle

        known = set(map(id, cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.values()))
        cls = make(*arguments)
        if id(cls) in known:
            self._known.add(id(cls))
        return cls

    def _set_state(self, set_state: Any, cls: Any, state: Any) -> Any:
        return cls if id(cls) in self._known else set_state(cls, state)


@contextlib.contextmanager
def _registered(cloudpickle: Any) -> Iterator[None]:
    modules = [sys.modules[name] for name in _by_value if name in sys.modules]
    known = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in known]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _survives(value: Any) -> bool:
    try:
        dumps(value)
        round_trip(value)
    except Exception:  # noqa: BLE001 - the question is only whether it works
        return False
    return True


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"[{_quoted(key)}]", item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
    elif not isinstance(value, type) and not callable(value):
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item


def _quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else safe_str(key)

"""Pickling: how calls and runs cross the border between processes, and which part cannot.

Classes and functions go by reference where the other side can import them, by value otherwise. What a module
of a test or a conftest defines goes by value: no worker can import those the way pytest did.

Large buffers, those of arrays above all, may go beside the pickle, without being copied into it. Whoever gets a result
has them as they have come, so in results they are read-only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import marshal
import operator
import pickle
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args

from synapse_runtime.errors import ResultNotSerializable, safe_str

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

# The one registry of this package: names of modules whose classes and functions travel by value.
_by_value: set[str] = set()
# A user's pickling hook may say something to its action's log, which pickles what it says: in the same thread.
_lock = threading.RLock()

# Classes of which it is known that they can travel: to pickle one of a test takes a millisecond.
_known_picklable: weakref.WeakSet[type] = weakref.WeakSet()

# What a user's hook may raise to end the process, which must not end with it. All else that is no `Exception` comes
# from outside and passes: Ctrl-C, the end of a time limit, ours or that of pytest-timeout.
EXITS: Final = (SystemExit, GeneratorExit)

# So many bytes are worth to go beside the pickle; Ray too keeps what is smaller in its answer, not in shared memory.
OUT_OF_BAND_BYTES: Final = 100_000
Buffers = list[pickle.PickleBuffer]
# A pickle so short is looked through for by-value classes before it is read.
_SHORT = 65_536
_BY_VALUE_MARK: Final = b"cloudpickle"

# How far the search for a part at fault goes: levels, parts in all, parts at fault beside one another, seconds.
_MAX_DEPTH = 100
_MAX_PARTS = 10_000
_MAX_BESIDE = 100
_MAX_SECONDS = 3.0


def register_pickle_by_value(module_name: str) -> None:
    """Let everything that this module defines travel by value from now on.

    Args:
        module_name: A key of `sys.modules`. Nothing happens for a name that is not there when pickling.
    """
    _by_value.add(module_name)


def modules_pickled_by_value() -> frozenset[str]:
    """Return the names of the modules whose definitions travel by value."""
    return frozenset(_by_value)


def dumps(value: Any, apart: Buffers | None = None) -> bytes:
    """Pickle `value` for another process.

    Args:
        value: Anything.
        apart: Takes large buffers, which are not in the pickle then: `loads` wants them, in the same order.

    Raises:
        Exception: Whatever pickling raises; see `dumps_named` for the part at fault. An exit that a user's hook asks
            for is a `PickleError`.

    Example:
        >>> loads(dumps({"epochs": 3}))
        {'epochs': 3}
    """
    if is_plain(value):  # the common case by far, which the C pickler does in microseconds
        return pickle.dumps(value, protocol=5)
    buffer = io.BytesIO()
    with _lock:
        pickler = _pickler_class()(buffer, apart)
        try:
            _guarded(pickler.dump, value)
        finally:
            pickler.leave_nothing()
    return buffer.getvalue()


def loads(data: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Read what another process wrote with `dumps`.

    Args:
        data: The pickle.
        buffers: What was put apart.
    """
    return _guarded(functools.partial(pickle.loads, buffers=buffers), data)


def loads_in_caller(data: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Read what came back from a worker, in the process that its classes came from.

    Classes that went there by value come back as the ones they were, and stay as they are here.

    Args:
        data: The pickle.
        buffers: What was put apart.
    """
    if isinstance(data, bytes) and len(data) < _SHORT and _BY_VALUE_MARK not in data:
        return loads(data, buffers)
    return _guarded(_CallerUnpickler(io.BytesIO(data), buffers).load)


def read_only(buffers: Iterable[Any]) -> list[memoryview]:
    """Return views of buffers that nobody can write to."""
    return [memoryview(buffer).toreadonly() for buffer in buffers]


def round_trip(value: Any, *, code_too: bool = False) -> Any:
    """Return the copy of a value that a trip to another process and back would make, with the same classes.

    Args:
        value: Anything.
        code_too: Make sure that the classes and functions in the value could make the trip too. They stay here, as
            they are, but a function may hold what cannot travel.

    Example:
        >>> params = {"sizes": [1, 2]}
        >>> copy = round_trip(params)
        >>> copy == params, copy is params
        (True, False)
    """
    if type(value) in IMMUTABLE:
        return value
    if is_plain(value):
        return pickle.loads(pickle.dumps(value, protocol=5))
    code: list[Any] = []
    copy = _load_copy(_dump_copy(value, code, None), code)
    if code_too:
        _require_picklable_code(code)
    return copy


def copy_params(value: Any, name: str) -> Any:
    """Return the copy of params that a trip to another process would make.

    Args:
        value: Anything.
        name: What the error calls the whole, such as `params`.

    Raises:
        ResultNotSerializable: It cannot travel; names the part, and why.
    """
    try:
        return round_trip(value, code_too=True)
    except Exception as error:  # noqa: BLE001 - pickling runs any code of a user
        problem = error
    raise _serialization_error(value, name, problem)


def copy_result(value: Any, name: str) -> Any:
    """Return the copy of a result that its caller gets from another process: large buffers are read-only.

    Args:
        value: Anything.
        name: What the error calls the whole, such as `result`.

    Raises:
        ResultNotSerializable: It cannot travel; names the part, and why.
    """
    if is_plain(value):
        return round_trip(value)
    code: list[Any] = []
    buffers: Buffers = []
    try:
        stream = _dump_copy(value, code, buffers)
        copy = _load_copy(stream, code, [bytes(buffer.raw()) for buffer in buffers])
        _require_picklable_code(code)
        return copy
    except Exception as error:  # noqa: BLE001 - pickling runs any code of a user
        problem = error
    raise _serialization_error(value, name, problem)


def _serialization_error(value: Any, name: str, problem: Exception) -> ResultNotSerializable:
    """Return the error of what could not be copied: the one that it meets on its way to another process."""
    try:
        dumps_named(value, name)
    except ResultNotSerializable as refusal:
        return refusal
    error = not_serializable(value, name, problem)
    error.__cause__ = problem
    return error


def require_picklable_action(name: str, target: Any) -> None:
    """Raise `ResultNotSerializable` where an action cannot travel.

    Args:
        name: What people call it.
        target: A class or function, or an entrypoint.
    """
    if isinstance(target, str):
        return
    try:
        _require_picklable_code([target])
    except Exception as error:
        raise ResultNotSerializable(
            f"{name}: the action itself cannot travel: {safe_str(error)}. "
            "Define it in a module, or let it refer to less."
        ) from error


def _require_picklable_code(code: list[Any]) -> None:
    """Raise what pickling raises where classes or functions cannot travel: of classes those that never have."""
    unknown = [item for item in code if not (isinstance(item, type) and item in _known_picklable)]
    if unknown:
        dumps(unknown)
        _known_picklable.update(item for item in unknown if isinstance(item, type))


def require_unpicklable(value: Any) -> None:
    """Find out that a result which can be pickled can be read too, without copying its arrays.

    Raises:
        Exception: Whatever reading raises.
    """
    if not is_plain(value):
        code: list[Any] = []
        buffers: Buffers = []
        stream = _dump_copy(value, code, buffers)
        _load_copy(stream, code, read_only(buffers))


def _dump_copy(value: Any, code: list[Any], apart: Buffers | None) -> io.BytesIO:
    """Pickle a value, all but its classes and functions, for this process: by Python's own means where those do."""
    stream = io.BytesIO()
    try:
        _guarded(_CopyPickler(stream, code, apart).dump, value)
    except Exception:  # noqa: BLE001 - cloudpickle can do more, or tells why not
        stream = io.BytesIO()
        code.clear()
        if apart is not None:
            apart.clear()
        _guarded(_cloud_copy_pickler_class()(stream, code, apart).dump, value)
    stream.seek(0)
    return stream


def _load_copy(stream: io.BytesIO, code: list[Any], buffers: Iterable[Any] = ()) -> Any:
    return _guarded(_CopyUnpickler(stream, code, buffers).load)


def _out_of_band_callback(apart: Buffers | None) -> Callable[[pickle.PickleBuffer], bool] | None:
    """Return what a pickler asks of each buffer: whether it is to stay in the pickle. Large ones go into the list."""
    if apart is None:
        return None

    def stays(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # it is in pieces
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        apart.append(pickle.PickleBuffer(raw))
        return False

    return stays


def snapshot(value: Any) -> Any:
    """Return the value as it is now: a copy, or its `repr` where it cannot travel, in this process too."""
    try:
        return round_trip(value, code_too=True)
    except Exception:  # noqa: BLE001 - pickling runs any code of a user
        return safe_repr(value)


def safe_repr(value: object) -> str:
    """Return `repr(value)`, or the name of its type where a user's `__repr__` fails.

    Example:
        >>> safe_repr([1])
        '[1]'
    """
    try:
        return repr(value)
    except (Exception, *EXITS):  # noqa: BLE001 - a user's __repr__ may do anything
        return f"<{type(value).__qualname__}>"


def dumps_named(value: Any, name: str, apart: Buffers | None = None) -> bytes:
    """Pickle `value`, or say which part of it cannot be pickled, or be read again.

    Args:
        value: Anything.
        name: What the error calls the whole, such as `result`.
        apart: As for `dumps`.

    Raises:
        ResultNotSerializable: Names the part, for instance `result["model"].lock`, and why.

    Example:
        >>> import threading
        >>> dumps_named({"model": threading.Lock()}, "result")
        Traceback (most recent call last):
        ...
        synapse_runtime.errors.ResultNotSerializable: result["model"] cannot travel ...
    """
    if is_plain(value):
        return pickle.dumps(value, protocol=5)
    try:
        data = dumps(value, apart)
        require_unpicklable(value)
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
    """Return the innermost part of `value` that does not survive pickling, as (path, part).

    Of several, the one with the shortest path. A search that takes too long ends with the part that it has come to.
    """
    until = time.monotonic() + _MAX_SECONDS
    left = _MAX_PARTS
    # Level by level. The queue also keeps alive what `seen` knows by id.
    queue = [(name, value, 0)]
    seen = {id(value)}
    for path, part, depth in queue:
        at_fault = 0
        for step, child in _children(part):
            left -= 1
            if left < 0 or time.monotonic() > until:
                return path, part
            if _survives(child):
                continue
            at_fault += 1
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((path + step, child, depth + 1))
            if at_fault == _MAX_BESIDE:
                break
        if not at_fault or depth == _MAX_DEPTH:
            return path, part
    return name, value  # its parts hold one another, and none is the one


# What is its own copy.
IMMUTABLE: Final = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_plain(value: Any, depth: int = 0) -> bool:
    """Tell whether `value` is builtin data only; large collections are not searched through."""
    kind = type(value)
    if kind in IMMUTABLE:
        return True
    if depth > 4:
        return False
    if kind is dict:
        return len(value) <= 64 and all(
            type(key) in IMMUTABLE and is_plain(item, depth + 1) for key, item in value.items()
        )
    if kind is list or kind is tuple:
        return len(value) <= 64 and all(is_plain(item, depth + 1) for item in value)
    return False


_CODE = (type, types.FunctionType, types.ModuleType)
# What cloudpickle asks of which module it is.
_OF_A_MODULE = (*_CODE, TypeVar)


class _CopyUnpickler(pickle.Unpickler):
    """Reads a copy in the process that wrote it: classes and functions are the same ones."""

    def __init__(self, stream: io.BytesIO, code: list[Any], buffers: Iterable[Any]) -> None:
        super().__init__(stream, buffers=buffers)
        self._code = code

    def persistent_load(self, pid: Any) -> Any:
        return self._code[pid]


def _guarded(step: Callable[..., Any], *arguments: Any) -> Any:
    """Write or read a pickle. An exit that a user's hook asks for there is a failure like any other."""
    try:
        return step(*arguments)
    except EXITS as error:
        raise pickle.PickleError(f"a pickling hook raised {error!r}") from error


class _CodeStaysOutside:
    """Of a pickler: classes and functions stay outside of a copy that is read in this process, as they are."""

    _code: list[Any]

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, _CODE):
            return None
        self._code.append(value)
        return len(self._code) - 1


class _CopyPickler(_CodeStaysOutside, pickle.Pickler):
    """Writes a copy to be read in this process."""

    def __init__(self, stream: io.BytesIO, code: list[Any], apart: Buffers | None) -> None:
        super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(apart))
        self._code = code


@functools.cache
def _cloud_copy_pickler_class() -> type[Any]:
    import cloudpickle

    class CloudCopyPickler(_CodeStaysOutside, cloudpickle.Pickler):  # type: ignore[misc]
        """The same, of more kinds of things."""

        def __init__(self, stream: io.BytesIO, code: list[Any], apart: Buffers | None) -> None:
            super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(apart))
            self._code = code

    return CloudCopyPickler


@dataclasses.dataclass(frozen=True, slots=True)
class _EndOf:
    """Stands at the end of the attributes of a class that goes by value, to tell when all are written."""

    cls: type


@functools.cache
def _pickler_class() -> type[Any]:
    import cloudpickle

    class TravelPickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Writes for another process, with better manners towards classes.

        Private things, which a test watches: what cloudpickle makes of a class that goes by value, and two attributes
        of pydantic's models.
        """

        def __init__(self, stream: io.BytesIO, apart: Buffers | None) -> None:
            super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(apart))
            self._unfinished: set[type] = set()
            self._registered: list[types.ModuleType] = []

        def leave_nothing(self) -> None:
            """Let cloudpickle, which others use too, be as it was."""
            for module in self._registered:
                cloudpickle.unregister_pickle_by_value(module)

        def reducer_override(self, value: Any) -> Any:
            if _by_value and isinstance(value, _OF_A_MODULE):
                self._register(value)
            if isinstance(value, type):
                return self._reduce_class(value)
            if type(value) is types.CodeType:
                # cloudpickle from 3.1.3 on leaves out the file's name, without which no traceback shows the source.
                return marshal.loads, (marshal.dumps(value),)
            if type(value) is _EndOf:
                self._unfinished.discard(value.cls)
                return types.NoneType, ()
            return super().reducer_override(value)

        def _register(self, value: Any) -> None:
            """Let cloudpickle know, where the module of this value, or a package that it is in, travels by value."""
            name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if isinstance(name, str):
                parts = name.split(".")
                names = {".".join(parts[: count + 1]) for count in range(len(parts))} & _by_value
            else:  # cloudpickle looks for it in all modules
                names = _by_value
            for module in [sys.modules[name] for name in names if name in sys.modules]:
                if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.register_pickle_by_value(module)
                    self._registered.append(module)

        def _reduce_class(self, cls: type) -> Any:
            # `Box[int]` is made anew wherever it is asked for, and is the same class for all who ask there. Not so
            # while what it is made of is itself still being read: there is no model to build upon yet.
            generic = vars(cls).get("__pydantic_generic_metadata__") or {}
            origin, args = generic.get("origin"), generic.get("args", ())
            if origin is not None and not _mentions((origin, *args), self._unfinished):
                return operator.getitem, (origin, args[0] if len(args) == 1 else args)
            reduced = super().reducer_override(cls)
            if not (isinstance(reduced, tuple) and len(reduced) == 6):
                return reduced  # by reference
            make, arguments, (attributes, slots), *rest = reduced
            if "__pydantic_parent_namespace__" in attributes:
                # All that the function around the class had in its variables, for names that were not known yet.
                attributes["__pydantic_parent_namespace__"] = None
            attributes["__qualname__"] = cls.__qualname__  # cloudpickle knows the last part only
            self._unfinished.add(cls)
            return make, arguments, (attributes, {**slots, "": _EndOf(cls)}), *rest

    return TravelPickler


def _mentions(args: tuple[Any, ...], classes: set[type]) -> bool:
    """Tell whether the arguments of a type are or have in them one of these classes."""
    return any((isinstance(arg, type) and arg in classes) or _mentions(get_args(arg), classes) for arg in args)


class _CallerUnpickler(pickle.Unpickler):
    """Leaves classes alone that this process has already.

    cloudpickle finds the class that a by-value copy was made from, but then writes the copy's attributes into it:
    every method would become a stranger's, with globals of its own. No public way around; a test watches the names.
    """

    def __init__(self, stream: io.BytesIO, buffers: Iterable[Any]) -> None:
        super().__init__(stream, buffers=buffers)
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


def _survives(value: Any) -> bool:
    try:
        round_trip(value, code_too=True)
    except Exception:  # noqa: BLE001 - the question is only whether it works
        return False
    return True


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    # Walking through an object runs its author's code. What cannot be reached cannot be named.
    with contextlib.suppress(Exception, *EXITS):
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield f"[{_quoted(key)}]", item
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield f"[{index}]", item
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                yield f".{field.name}", getattr(value, field.name, None)
        elif not isinstance(value, type | types.ModuleType):
            yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that pickling takes along, those in slots too."""
    state = value.__getstate__()
    for names in state if isinstance(state, tuple) else (state,):
        for name, item in names.items() if isinstance(names, dict) else ():
            if name.startswith("__") and isinstance(item, dict):  # pydantic's models keep theirs in several dicts
                yield from ((f".{inner}", innermost) for inner, innermost in item.items())
            else:
                yield f".{name}", item


def _quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else safe_str(key)

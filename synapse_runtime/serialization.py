"""Pickle params, actions and results, and find the part of a value that cannot be pickled.

Classes and functions are pickled by reference if the other process can import them, otherwise by value. Definitions of
test modules and conftests are pickled by value: a worker cannot import those modules the way pytest does.

Large buffers, mainly those of arrays, can be sent out of band, without being copied into the pickle. The receiver of a
result gets them without a copy, so buffers in results are read-only.
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

from synapse_runtime import class_copies
from synapse_runtime.errors import ResultNotSerializable, is_from_code, safe_str

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# The names of the modules whose classes and functions are pickled by value: this package's only registry.
_by_value: set[str] = set()
# Reentrant: a user's pickling hook may log to its action's context, which pickles the data in the same thread.
_lock = threading.RLock()

# Classes that are known to be picklable: pickling a class of a test takes a millisecond.
_known_picklable: weakref.WeakSet[type] = weakref.WeakSet()

# Exceptions that end a process or a generator, but not this process if a user's hook raises them. Any other
# `BaseException` comes from outside and is not handled: Ctrl-C, a timeout of ours or of pytest-timeout.
EXIT_EXCEPTIONS: Final = (SystemExit, GeneratorExit)

# The minimum size of a buffer to be sent out of band; Ray also puts smaller objects in its reply, not in shared memory.
OUT_OF_BAND_BYTES: Final = 100_000
Buffers = list[pickle.PickleBuffer]
# The maximum size of a pickle that is searched for by-value classes before it is loaded.
_SHORT = 65_536
_BY_VALUE_MARKER: Final = class_copies.__name__.encode()

# Limits of the search for the part at fault: depth, parts in total, parts at fault in one container, seconds.
_MAX_DEPTH = 100
_MAX_PARTS = 10_000
_MAX_BESIDE = 100
_MAX_SECONDS = 3.0


def register_pickle_by_value(module_name: str) -> None:
    """Pickle everything that this module defines by value from now on.

    Args:
        module_name: A key of `sys.modules`. A name that is not in `sys.modules` when pickling is ignored.
    """
    _by_value.add(module_name)


def modules_pickled_by_value() -> frozenset[str]:
    """Return the names of the modules whose definitions are pickled by value."""
    return frozenset(_by_value)


def is_pickled_by_value(module_name: str) -> bool:
    """Return whether the definitions of a module, or of a package that it is in, are pickled by value."""
    while module_name:
        if module_name in _by_value:
            return True
        module_name = module_name.rpartition(".")[0]
    return False


def dumps(value: Any, out_of_band: Buffers | None = None) -> bytes:
    """Pickle `value` for another process.

    Args:
        value: Any value.
        out_of_band: If given, large buffers are added to it instead of to the pickle. Pass them to `loads`, in the
            same order.

    Raises:
        Exception: Whatever pickling raises; see `dumps_named` for the part at fault. A `SystemExit` or
            `GeneratorExit` of a user's hook becomes a `PickleError`.

    Example:
        >>> loads(dumps({"epochs": 3}))
        {'epochs': 3}
    """
    if is_plain(value):  # by far the most common case; the C pickler takes microseconds
        return pickle.dumps(value, protocol=5)
    buffer = io.BytesIO()
    with _lock:
        pickler = _pickler_class()(buffer, out_of_band)
        try:
            _guarded(pickler.dump, value)
        finally:
            pickler.unregister_modules()
    return buffer.getvalue()


def loads(data: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Load a pickle that another process made with `dumps`.

    Args:
        data: The pickle.
        buffers: Its out-of-band buffers.
    """
    return _guarded(functools.partial(pickle.loads, buffers=buffers), data)


def loads_in_caller(data: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Load a worker's pickle in the caller's process, which has the original classes.

    Classes that were pickled by value are resolved to the original classes, which are not modified.

    Args:
        data: The pickle.
        buffers: Its out-of-band buffers.
    """
    if isinstance(data, bytes) and len(data) < _SHORT and _BY_VALUE_MARKER not in data:
        return loads(data, buffers)
    return _guarded(_CallerUnpickler(io.BytesIO(data), buffers).load)


def dumps_extended(values: Iterable[Any], extension: type[Any], **attributes: Any) -> bytes:
    """Pickle values one after the other for another process, with a pickler of one's own; they may share objects.

    Args:
        values: Any values.
        extension: A mixin of the pickler's class: it may override `persistent_id` and `reducer_override`.
        attributes: Attributes to set on the pickler.

    Raises:
        Exception: As for `dumps`.
    """
    buffer = io.BytesIO()
    with _lock:
        pickler = _extended(extension, _pickler_class())(buffer, None)
        vars(pickler).update(attributes)
        try:
            for value in values:
                _guarded(pickler.dump, value)
        finally:
            pickler.unregister_modules()
    return buffer.getvalue()


def loads_extended(
    data: bytes, count: int, extension: type[Any], *, in_caller: bool = False, **attributes: Any
) -> list[Any]:
    """Load the values of `dumps_extended`.

    Args:
        data: The pickles.
        count: How many values they are.
        extension: A mixin of the unpickler's class: it may override `persistent_load`.
        in_caller: Whether this is the caller's process; see `loads_in_caller`.
        attributes: Attributes to set on the unpickler.
    """
    unpickler = _extended(extension, _CallerUnpickler if in_caller else pickle.Unpickler)(io.BytesIO(data), buffers=())
    vars(unpickler).update(attributes)
    return [_guarded(unpickler.load) for _ in range(count)]


def _extended(extension: type[Any], base: type[Any]) -> type[Any]:
    return type(extension.__name__, (extension, base), {})


def read_only(buffers: Iterable[Any]) -> list[memoryview]:
    """Return read-only views of buffers."""
    return [memoryview(buffer).toreadonly() for buffer in buffers]


def round_trip(value: Any, *, code_too: bool = False) -> Any:
    """Return a copy of a value made by pickling and unpickling it, with the same classes and functions.

    Args:
        value: Any value.
        code_too: Also check that the classes and functions in the value can be pickled. They are not copied, but a
            function may refer to objects that cannot be pickled.

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
    """Return a copy of params as another process would receive them.

    Args:
        value: Any value.
        name: The name of the value in errors, such as `params`.

    Raises:
        ResultNotSerializable: It cannot be pickled; the message names the part at fault and the reason.
    """
    try:
        return round_trip(value, code_too=True)
    except Exception as error:  # noqa: BLE001 - pickling runs users' code
        problem = error
    raise _serialization_error(value, name, problem)


def copy_result(value: Any, name: str) -> Any:
    """Return a copy of a result as its caller would receive it from another process: large buffers are read-only.

    Args:
        value: Any value.
        name: The name of the value in errors, such as `result`.

    Raises:
        ResultNotSerializable: It cannot be pickled; the message names the part at fault and the reason.
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
    except Exception as error:  # noqa: BLE001 - pickling runs users' code
        problem = error
    raise _serialization_error(value, name, problem)


def _serialization_error(value: Any, name: str, problem: Exception) -> ResultNotSerializable:
    """Return the error about a value that cannot be copied: the one that sending it to a process would raise."""
    try:
        dumps_named(value, name)
    except ResultNotSerializable as named:
        return named
    error = not_serializable(value, name, problem)
    error.__cause__ = problem
    return error


def require_picklable_action(name: str, target: Any) -> None:
    """Raise `ResultNotSerializable` if an action cannot be pickled.

    Args:
        name: The action's name, for the message.
        target: A class or function, or an entrypoint.
    """
    if isinstance(target, str):
        return
    try:
        _require_picklable_code([target])
    except Exception as error:
        raise ResultNotSerializable(
            f"{name}: the action itself cannot be pickled: {safe_str(error)}. "
            "Define it in an importable module, or remove its references to such objects."
        ) from error


def _require_picklable_code(code: list[Any]) -> None:
    """Raise pickling's exception if one of these functions and not yet known classes cannot be pickled."""
    unknown = [item for item in code if not (isinstance(item, type) and item in _known_picklable)]
    if unknown:
        data = dumps(unknown)
        if _BY_VALUE_MARKER in data:
            _guarded(_CheckUnpickler(io.BytesIO(data)).load)
        _known_picklable.update(item for item in unknown if isinstance(item, type))


def require_unpicklable(value: Any) -> None:
    """Check that a result that can be pickled can also be unpickled, without copying its arrays.

    Raises:
        Exception: Whatever unpickling raises.
    """
    if not is_plain(value):
        code: list[Any] = []
        buffers: Buffers = []
        stream = _dump_copy(value, code, buffers)
        _load_copy(stream, code, read_only(buffers))


def _dump_copy(value: Any, code: list[Any], out_of_band: Buffers | None) -> io.BytesIO:
    """Pickle a value without its classes and functions for this process: with `pickle`, else with cloudpickle."""
    stream = io.BytesIO()
    try:
        _guarded(_CopyPickler(stream, code, out_of_band).dump, value)
    except Exception:  # noqa: BLE001 - cloudpickle supports more types, or raises the same error
        stream = io.BytesIO()
        code.clear()
        if out_of_band is not None:
            out_of_band.clear()
        _guarded(_cloud_copy_pickler_class()(stream, code, out_of_band).dump, value)
    stream.seek(0)
    return stream


def _load_copy(stream: io.BytesIO, code: list[Any], buffers: Iterable[Any] = ()) -> Any:
    return _guarded(_CopyUnpickler(stream, code, buffers).load)


def _out_of_band_callback(out_of_band: Buffers | None) -> Callable[[pickle.PickleBuffer], bool] | None:
    """Return a pickler's `buffer_callback`: it adds large buffers to the list, and returns True for the others."""
    if out_of_band is None:
        return None

    def is_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        out_of_band.append(pickle.PickleBuffer(raw))
        return False

    return is_in_band


def snapshot(value: Any) -> Any:
    """Return a copy of the value as it is now, or its `repr` if it cannot be pickled; the same in every mode."""
    try:
        return round_trip(value, code_too=True)
    except Exception:  # noqa: BLE001 - pickling runs users' code
        return safe_repr(value)


def safe_repr(value: object) -> str:
    """Return `repr(value)`, or the name of its type if a user's `__repr__` fails.

    Example:
        >>> safe_repr([1])
        '[1]'
    """
    try:
        return repr(value)
    except (Exception, *EXIT_EXCEPTIONS):  # noqa: BLE001 - a user's `__repr__` may raise anything
        return f"<{type(value).__qualname__}>"


def dumps_named(value: Any, name: str, out_of_band: Buffers | None = None) -> bytes:
    """Pickle `value`, or raise an error that names the part that cannot be pickled and unpickled.

    Args:
        value: Any value.
        name: The name of the value in errors, such as `result`.
        out_of_band: As for `dumps`.

    Raises:
        ResultNotSerializable: The message names the part at fault, such as `result["model"].lock`, and the reason.

    Example:
        >>> import threading
        >>> dumps_named({"model": threading.Lock()}, "result")
        Traceback (most recent call last):
        ...
        synapse_runtime.errors.ResultNotSerializable: result["model"] cannot be sent between processes: ...
    """
    if is_plain(value):
        return pickle.dumps(value, protocol=5)
    try:
        data = dumps(value, out_of_band)
        require_unpicklable(value)
    except Exception as error:
        raise not_serializable(value, name, error) from error
    return data


def not_serializable(value: Any, name: str, error: Exception) -> ResultNotSerializable:
    """Return the error that names the part of `value` that cannot be pickled and unpickled."""
    path, part = explain(value, name)
    what = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    return ResultNotSerializable(
        f"{path} cannot be sent between processes: {what}: {safe_str(error)}. "
        "Use plain data instead, or the path of a file that contains it."
    )


def explain(value: Any, name: str) -> tuple[str, Any]:
    """Return the innermost part of `value` that cannot be pickled and unpickled, as (path, part).

    Of several, the one with the shortest path. A search that takes too long returns the part that it has reached.
    """
    until = time.monotonic() + _MAX_SECONDS
    left = _MAX_PARTS
    # Breadth first. The queue also keeps the objects alive whose ids are in `seen`.
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
    return name, value  # the parts at fault refer to each other, and none is the innermost


# Builtin types whose instances need no copy.
IMMUTABLE: Final = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether `value` is known to consist of builtin data only; False for large collections."""
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
# Objects that cloudpickle pickles by value if their module is registered.
_OF_A_MODULE = (*_CODE, TypeVar)


class _CopyUnpickler(pickle.Unpickler):
    """Loads a copy in the process that pickled it: classes and functions are the same objects."""

    def __init__(self, stream: io.BytesIO, code: list[Any], buffers: Iterable[Any]) -> None:
        super().__init__(stream, buffers=buffers)
        self._code = code

    def persistent_load(self, pid: Any) -> Any:
        return self._code[pid]


def _guarded(step: Callable[..., Any], *arguments: Any) -> Any:
    """Call a step of pickling or unpickling; convert what a hook raises other than `Exception` to a `PickleError`."""
    try:
        return step(*arguments)
    except Exception:
        raise
    except BaseException as error:
        if not is_from_code(error):
            raise
        raise pickle.PickleError(f"a pickling hook raised {error!r}") from error


class _SharesCode:
    """Mixin of picklers: classes and functions are not pickled but shared with the copy, in this process."""

    _code: list[Any]

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, _CODE):
            return None
        self._code.append(value)
        return len(self._code) - 1


class _CopyPickler(_SharesCode, pickle.Pickler):
    """Pickles a copy to be loaded in this process."""

    def __init__(self, stream: io.BytesIO, code: list[Any], out_of_band: Buffers | None) -> None:
        super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(out_of_band))
        self._code = code


@functools.cache
def _cloud_copy_pickler_class() -> type[Any]:
    import cloudpickle

    class CloudCopyPickler(_SharesCode, cloudpickle.Pickler):  # type: ignore[misc]
        """Pickles a copy to be loaded in this process; supports more types."""

        def __init__(self, stream: io.BytesIO, code: list[Any], out_of_band: Buffers | None) -> None:
            super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(out_of_band))
            self._code = code

    return CloudCopyPickler


@dataclasses.dataclass(frozen=True, slots=True)
class _EndOfClass:
    """A sentinel, the last attribute of a class that is pickled by value: the class is finished when it is pickled."""

    cls: type


@functools.cache
def _pickler_class() -> type[Any]:
    import cloudpickle

    class ProcessPickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Pickles for another process; handles generic pydantic models, and registers modules only temporarily.

        It depends on private details, which a test checks: the form in which cloudpickle pickles a class by value, and
        two attributes of pydantic models.
        """

        def __init__(self, stream: io.BytesIO, out_of_band: Buffers | None) -> None:
            super().__init__(stream, protocol=5, buffer_callback=_out_of_band_callback(out_of_band))
            self._unfinished: set[type] = set()
            self._registered: list[types.ModuleType] = []

        def unregister_modules(self) -> None:
            """Undo the registrations in cloudpickle's registry, which other code uses too."""
            for module in self._registered:
                cloudpickle.unregister_pickle_by_value(module)

        def reducer_override(self, value: Any) -> Any:
            if _by_value and isinstance(value, _OF_A_MODULE):
                self._register(value)
            if isinstance(value, type):
                return self._reduce_class(value)
            if type(value) is types.CodeType:
                # cloudpickle since 3.1.3 omits the file name, without which a traceback cannot show the source.
                return marshal.loads, (marshal.dumps(value),)
            if type(value) is functools.cached_property:
                return class_copies.make_cached_property, (value.func, value.attrname)
            if type(value) is _EndOfClass:
                self._unfinished.discard(value.cls)
                return types.NoneType, ()
            reduced = super().reducer_override(value)
            if isinstance(value, types.FunctionType) and isinstance(reduced, tuple):
                return *reduced[:-1], class_copies.set_function_state
            return reduced

        def _register(self, value: Any) -> None:
            """Register the value's module in cloudpickle, if it or a parent package is pickled by value."""
            name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if isinstance(name, str):
                parts = name.split(".")
                names = {".".join(parts[: count + 1]) for count in range(len(parts))} & _by_value
            else:  # cloudpickle searches all modules for it
                names = _by_value
            for module in [sys.modules[name] for name in names if name in sys.modules]:
                if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.register_pickle_by_value(module)
                    self._registered.append(module)

        def _reduce_class(self, cls: type) -> Any:
            if cls.__module__ == "builtins" and (function := _pytest_function_of(cls)) is not None:
                return getattr, (function, "Exception")
            # A parametrized generic model such as `Box[int]` is pickled as the subscription: pydantic caches the class,
            # so it is the same one in each process. Not while its origin or arguments are still being pickled: then
            # there is no model to subscribe yet when unpickling.
            generic = vars(cls).get("__pydantic_generic_metadata__") or {}
            origin, args = generic.get("origin"), generic.get("args", ())
            if origin is not None and not _contains_any((origin, *args), self._unfinished):
                return operator.getitem, (origin, args[0] if len(args) == 1 else args)
            reduced = super().reducer_override(cls)
            if not (isinstance(reduced, tuple) and len(reduced) == 6):
                return reduced  # by reference
            attributes, slots = reduced[2]
            if "__pydantic_parent_namespace__" in attributes:
                # The local variables of the enclosing function, which pydantic keeps to resolve forward references.
                attributes["__pydantic_parent_namespace__"] = None
            self._unfinished.add(cls)
            slots[""] = _EndOfClass(cls)
            return class_copies.reduce_class(cls, reduced)

    return ProcessPickler


def _pytest_function_of(cls: type) -> Any:
    """Return the function of pytest that raises this class, such as `pytest.skip`, whose class is in no module."""
    pytest = sys.modules.get("pytest")
    for name in ("skip", "fail"):
        function = getattr(pytest, name, None)
        if getattr(function, "Exception", None) is cls:
            return function
    return None


def _contains_any(args: tuple[Any, ...], classes: set[type]) -> bool:
    """Return whether the arguments of a type contain one of these classes, at any depth."""
    return any((isinstance(arg, type) and arg in classes) or _contains_any(get_args(arg), classes) for arg in args)


class _CallerUnpickler(pickle.Unpickler):
    """Does not modify classes that already exist in this process.

    The class that a by-value copy was made from is found, but then the copy's attributes would be set on it: every
    method would be replaced by a copy with its own globals. There is no public API to avoid that; a test checks the
    private name.
    """

    def __init__(self, stream: io.BytesIO, buffers: Iterable[Any]) -> None:
        super().__init__(stream, buffers=buffers)
        self._known: set[int] = set()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        if found in (class_copies.make_class, class_copies.make_enum):
            return functools.partial(self._make, found)
        if found in (class_copies.set_class_state, class_copies.set_enum_state):
            return functools.partial(self._set_state, found)
        return found

    def _make(self, make: Any, *arguments: Any) -> Any:
        known = class_copies.find_class(arguments[-1])
        if known is not None:
            self._known.add(id(known))
            return known
        return make(*arguments)

    def _set_state(self, set_state: Any, cls: Any, state: Any) -> Any:
        return cls if id(cls) in self._known else set_state(cls, state)


class _CheckUnpickler(pickle.Unpickler):
    """Creates classes that were pickled by value anew, as another process would."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        if found in (class_copies.make_class, class_copies.make_enum):
            return lambda *arguments: found(*arguments[:-1], None)
        return found


def _survives(value: Any) -> bool:
    try:
        round_trip(value, code_too=True)
    except Exception:  # noqa: BLE001 - only success matters
        return False
    return True


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    # Iterating over an object runs its author's code; parts that cannot be reached are skipped.
    with contextlib.suppress(Exception, *EXIT_EXCEPTIONS):
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
    """Yield the attributes that are pickled, including slots."""
    state = value.__getstate__()
    for names in state if isinstance(state, tuple) else (state,):
        for name, item in names.items() if isinstance(names, dict) else ():
            if name.startswith("__") and isinstance(item, dict):  # a pydantic model has several dicts of attributes
                yield from ((f".{inner}", innermost) for inner, innermost in item.items())
            else:
                yield f".{name}", item


def _quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else safe_str(key)

"""Send exceptions between processes: class, arguments, attributes, notes, chain and the frames of the traceback.

A pickled exception loses its traceback, and many exceptions cannot be pickled at all: their constructors require
other arguments, their attributes hold locks. So the parts of each exception are pickled separately, and only parts
that cannot be pickled are replaced by their text. Frames are rebuilt as real traceback objects with file, function,
lines and columns, so that every renderer shows the source and Python marks the failing part of the line. (tblib does
not keep a function's first line, without which pytest shows a single line instead of the function.)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from opcode import opmap
from typing import Any

from synapse_runtime import serialization
from synapse_runtime.errors import RemoteException, safe_str
from synapse_runtime.redaction import HiddenValues

# A chain is pickled as nested objects, so its length is limited; the rest is left out.
_MAX_CHAIN = 100
# Function arguments are kept for this many frames at each end of a traceback, and only as long as this takes.
_MAX_SHOWN = 20
_SHOW_SECONDS = 1.0
_MAX_TEXT = 4000
# What users' code, such as `__reduce__` or `__init__`, may raise.
_FAILURES = (Exception, *serialization.EXIT_EXCEPTIONS)


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """One frame of a traceback: its position, its arguments, and whether pytest should hide it.

    `span` is the part of the source that failed: last line, first and last column in bytes; None if unknown.
    """

    filename: str
    name: str
    qualname: str
    first_line: int
    line: int
    module: str
    hidden: bool
    span: tuple[int, int, int] | None = None
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ReprText:
    """Stands for a function argument of which only the `repr` is kept."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Members:
    """An argument of an exception group that is a list or tuple of its members, as their indexes."""

    kind: type[list[Any]] | type[tuple[Any, ...]]
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedException:
    """An exception as parts that can be pickled. An exception shared by two others is shared here too."""

    type_name: str
    module: str
    text: str
    whole: bytes | None
    cls: bytes | None
    args: tuple[bytes | str | Members | EncodedException, ...]
    state: dict[str, bytes | str]
    members: dict[str, bytes | str]
    frames: tuple[FrameSummary, ...]
    cause: EncodedException | None
    context: EncodedException | None
    suppress_context: bool
    message: str
    group: tuple[EncodedException, ...] | None


def encode_exception(
    error: BaseException, to_caller: Callable[[str], str] = str, *, with_arguments: bool = True
) -> EncodedException:
    """Encode an exception and its chain.

    Args:
        error: The exception.
        to_caller: Converts a file name to the file's name in the process that decodes the exception.
        with_arguments: Whether to include the arguments of the functions in its traceback.
    """
    return _pack(error, {}, 0, functools.partial(frames_of, to_caller=to_caller, with_arguments=with_arguments))


def decode_exception(packed: EncodedException) -> BaseException:
    """Rebuild an exception: of its original class if that can be imported in this process."""
    return _unpack(packed, {})


def frames_of(
    tb: types.TracebackType | None, to_caller: Callable[[str], str] = str, *, with_arguments: bool = True
) -> tuple[FrameSummary, ...]:
    """Return the frames of a traceback, outermost first; the other arguments are those of `encode_exception`."""
    frames = []
    entries = list(_entries(tb))
    until = time.monotonic() + _SHOW_SECONDS
    for index, tb in enumerate(entries):
        frame = tb.tb_frame
        code = frame.f_code
        near = index < _MAX_SHOWN or index >= len(entries) - _MAX_SHOWN
        hidden = bool(frame.f_locals.get("__tracebackhide__") or frame.f_globals.get("__tracebackhide__"))
        frames.append(
            FrameSummary(
                to_caller(code.co_filename),
                code.co_name,
                code.co_qualname,
                code.co_firstlineno,
                tb.tb_lineno,
                frame.f_globals.get("__name__", "?"),
                hidden,
                _span(tb),
                _arguments(frame) if with_arguments and near and not hidden and time.monotonic() < until else (),
            )
        )
    return tuple(frames)


def _entries(tb: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


# Values to redact in function arguments, each with the name to show instead; the longest first.
_hidden: ContextVar[HiddenValues] = ContextVar("_hidden", default=HiddenValues({}))  # noqa: B039 - it never changes


@contextlib.contextmanager
def redact_values(values: HiddenValues) -> Iterator[None]:
    """Redact values in the function arguments of exceptions that are encoded in the block.

    A run is written to the job's log, which other users can read.
    """
    token = _hidden.set(values)
    try:
        yield
    finally:
        _hidden.reset(token)


def _arguments(frame: types.FrameType) -> tuple[tuple[str, Any], ...]:
    """Return a function's arguments for display, with the names that pytest shows."""
    code = frame.f_code
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    count = code.co_argcount + code.co_kwonlyargcount + starred
    values = frame.f_locals
    return tuple((name, _shown(values[name])) for name in code.co_varnames[:count] if name in values)


def _shown(value: Any, depth: int = 0) -> Any:
    """Return an object that has the same `repr` as the value and can be pickled."""
    kind = type(value)
    if value is None or kind in (bool, int, float, complex):
        return value
    if kind is str:
        value = _hidden.get().out_of(value)
        return value if len(value) <= _MAX_TEXT else f"{value[: _MAX_TEXT // 2]}...{value[-_MAX_TEXT // 2 :]}"
    if depth < 4 and kind in (list, tuple, dict) and len(value) <= 100:
        if kind is dict:
            return {_key(key): _shown(item, depth + 1) for key, item in value.items()}
        return kind(_shown(item, depth + 1) for item in value)
    text = _hidden.get().out_of(serialization.safe_repr(value))
    return ReprText(text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]}...{text[-_MAX_TEXT // 2 :]}")


def _key(key: Any) -> Any:
    if type(key) is str:
        return _hidden.get().out_of(key)
    return key if type(key) in (int, float, bool) else ReprText(_hidden.get().out_of(serialization.safe_repr(key)))


def _span(tb: types.TracebackType) -> tuple[int, int, int] | None:
    if tb.tb_lasti < 0:
        return None
    # An instruction takes two bytes. With `-X no_debug_ranges` there are no positions.
    positions = itertools.islice(tb.tb_frame.f_code.co_positions(), tb.tb_lasti // 2, None)
    line, end_line, column, end_column = next(positions, (None, None, None, None))
    if line != tb.tb_lineno or end_line is None or column is None or end_column is None or end_line < line:
        return None
    return end_line, column, end_column


def _pack(
    error: BaseException,
    seen: dict[int, EncodedException | None],
    depth: int,
    frames: Callable[[types.TracebackType | None], tuple[FrameSummary, ...]],
) -> EncodedException:
    """Encode an exception. `seen` maps ids to the encoded ones; to None for ancestors, which are not finished yet."""
    seen[id(error)] = None
    cls = type(error)
    group = error.exceptions if isinstance(error, BaseExceptionGroup) and depth < _MAX_CHAIN else None

    def linked(other: BaseException | None) -> EncodedException | None:
        if other is None:
            return None
        if id(other) in seen:
            return seen[id(other)]
        return _pack(other, seen, depth + 1, frames) if depth < _MAX_CHAIN else None

    packed = EncodedException(
        type_name=cls.__qualname__,
        module=cls.__module__,
        text=safe_str(error),
        whole=None if group is not None else _pack_whole(error),
        cls=_try_dumps(cls),
        args=tuple(_pack_argument(value, group or (), linked) for value in error.args),
        state={name: _pack_part(value) for name, value in getattr(error, "__dict__", {}).items()},
        members={name: _pack_part(value) for name, value in member_values(error).items()},
        frames=frames(error.__traceback__),
        cause=linked(error.__cause__),
        context=linked(error.__context__),
        suppress_context=error.__suppress_context__,
        message=error.message if isinstance(error, BaseExceptionGroup) else "",
        # A member that is also an ancestor is encoded again.
        group=None if group is None else tuple(seen.get(id(m)) or _pack(m, seen, depth + 1, frames) for m in group),
    )
    seen[id(error)] = packed
    return packed


def _pack_whole(error: BaseException) -> bytes | None:
    """Return the exception pickled as a whole if unpickling gives an equal one, else None."""
    data = _try_dumps(error)
    if data is None:
        return None
    try:
        copy = serialization.round_trip(error)
        same = type(copy).__qualname__ == type(error).__qualname__ and safe_str(copy) == safe_str(error)
        if type(error).__reduce__ is BaseException.__reduce__:  # a custom `__reduce__` may use other arguments
            same = same and repr(copy.args) == repr(error.args)
    except _FAILURES:  # a custom `__reduce__`, `__init__` or `__repr__` may raise anything
        return None
    return data if same else None


def _try_dumps(value: Any) -> bytes | None:
    try:
        return serialization.dumps(value)
    except Exception:  # noqa: BLE001 - custom pickling hooks may raise anything
        return None


def _pack_part(value: Any) -> bytes | str:
    data = _try_dumps(value)
    if data is not None:
        try:
            serialization.round_trip(value)
        except Exception:  # noqa: BLE001 - as above
            data = None
    return serialization.safe_repr(value) if data is None else data


def _pack_argument(
    value: Any, group: tuple[BaseException, ...], linked: Callable[[BaseException], EncodedException | None]
) -> bytes | str | Members | EncodedException:
    if group and type(value) in (list, tuple):
        indexes = {id(member): index for index, member in enumerate(group)}
        if all(id(item) in indexes for item in value):
            return Members(type(value), tuple(indexes[id(item)] for item in value))
    # Pickling an exception may lose its text, for instance that of a urllib3 exception inside one of requests.
    packed = linked(value) if isinstance(value, BaseException) else None
    return _pack_part(value) if packed is None else packed


def member_values(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception that are not in its `__dict__`: slots, and those of builtin classes."""
    values = {}
    for name, member in _members_of(type(error)).items():
        with contextlib.suppress(AttributeError):  # a slot that was never set
            value = member.__get__(error)
            # Members of builtin exceptions read as None if they are not set; setting them to None is different.
            if value is not None or "__slots__" in vars(member.__objclass__):
                values[name] = value
    return values


def _members_of(cls: type[BaseException]) -> dict[str, types.MemberDescriptorType]:
    """Return the members of an exception class outside `__dict__`: slots, and those of builtin classes (`filename`).

    Except the `obj` of an `AttributeError`, which may be any object of any size; Python does not pickle it either.
    """
    return {
        name: member
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
        if not name.startswith("__") and member is not vars(AttributeError).get("obj")
    }


def _unpack_part(part: bytes | str) -> Any:
    if isinstance(part, str):
        return part
    try:
        return serialization.loads_in_caller(part)
    except Exception as error:  # noqa: BLE001 - such as a class that this process cannot import
        return f"<cannot be unpickled here: {type(error).__name__}: {safe_str(error)}>"


def _set(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute without calling a custom `__setattr__`: a frozen dataclass's would raise."""
    BaseException.__setattr__(error, name, value)


def _unpack(packed: EncodedException, made: dict[int, BaseException]) -> BaseException:
    """Decode an exception, or return it from `made` (by id of the encoded exception) if it is already decoded."""
    if id(packed) in made:
        return made[id(packed)]
    error = made[id(packed)] = _rebuild(packed, made)
    _set(error, "__traceback__", traceback_of(packed.frames))
    if packed.context is not None:
        _set(error, "__context__", _unpack(packed.context, made))
    if packed.cause is not None:
        _set(error, "__cause__", _unpack(packed.cause, made))
    _set(error, "__suppress_context__", packed.suppress_context)
    return error


def _rebuild(packed: EncodedException, made: dict[int, BaseException]) -> BaseException:
    members = [_unpack(member, made) for member in packed.group or ()]
    args = tuple(_unpack_argument(part, members, made) for part in packed.args)
    error = _read_whole(packed)
    if error is not None:
        # A custom `__reduce__` may restore better arguments than a text that replaces one.
        if not any(isinstance(part, str) for part in packed.args):
            with contextlib.suppress(Exception):  # a class may make them read-only
                _set(error, "args", args)
        knows_attributes = type(error).__reduce__ is BaseException.__reduce__
    else:
        constructor_args = args if packed.group is None else (packed.message, members)
        error = new_exception(_class_of(packed), constructor_args)
        if error is None:
            error = placeholder_class(packed.module, packed.type_name)(packed.text)
        if packed.group is not None:
            _set(error, "args", args)
        knows_attributes = False
    _restore_attributes(error, packed, keep=knows_attributes)
    return error


def _unpack_argument(
    part: bytes | str | Members | EncodedException, members: list[BaseException], made: dict[int, BaseException]
) -> Any:
    if isinstance(part, Members):
        return part.kind(members[index] for index in part.indexes)
    return _unpack(part, made) if isinstance(part, EncodedException) else _unpack_part(part)


def _read_whole(packed: EncodedException) -> BaseException | None:
    if packed.whole is None:
        return None
    try:
        error = serialization.loads_in_caller(packed.whole)
    except Exception:  # noqa: BLE001 - the class may be importable only where the action ran
        return None
    return error if isinstance(error, BaseException) else None


def _restore_attributes(error: BaseException, packed: EncodedException, *, keep: bool) -> None:
    """Set exactly the attributes of the original exception; with `keep`, do not replace those that are already set."""
    attributes: dict[str, Any] = getattr(error, "__dict__", {})
    for name in attributes.keys() - packed.state.keys():
        del attributes[name]
    for name, part in packed.state.items():
        # A text only replaces a missing attribute: the constructor may have recreated one that cannot be pickled.
        if name not in attributes or not (keep or isinstance(part, str)):
            attributes[name] = _unpack_part(part)
    for name, part in packed.members.items():
        set_attribute(error, name, _unpack_part(part))


def set_attribute(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute of an exception without calling its class's code, unless it cannot be set."""
    member = _members_of(type(error)).get(name)
    with contextlib.suppress(Exception):  # some are read-only, or accept only numbers
        if member is not None:
            member.__set__(error, value)
        else:
            error.__dict__[name] = value


def new_exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException | None:
    """Create an exception without calling a custom constructor, whose arguments are unknown."""
    bases: tuple[Any, ...] = (BaseException, BaseExceptionGroup, cls)
    for base in bases:
        try:
            error: BaseException = base.__new__(cls, *args)
        except _FAILURES:  # only another base can create this class
            continue
        with contextlib.suppress(*_FAILURES):
            _builtin_init(cls)(error, *args)
        return error
    return None


def _builtin_init(cls: type[BaseException]) -> Callable[..., None]:
    """Return the nearest builtin `__init__` of the class: it sets `args`, `errno`, `code` and the like."""
    found: Callable[..., None] = next(
        vars(base)["__init__"]
        for base in cls.__mro__
        if isinstance(vars(base).get("__init__"), types.WrapperDescriptorType)
    )
    return found


def _class_of(packed: EncodedException) -> type[BaseException]:
    if packed.cls is not None:
        try:
            cls = serialization.loads_in_caller(packed.cls)
        except Exception:  # noqa: BLE001 - as in _rebuild
            cls = None
        if isinstance(cls, type) and issubclass(cls, BaseException):
            return cls
    if packed.group is not None:
        return BaseExceptionGroup  # creates an `ExceptionGroup` if all members are plain exceptions
    return placeholder_class(packed.module, packed.type_name)


def placeholder_class(module: str, qualname: str) -> type[RemoteException]:
    """Create a placeholder of the same name for an exception class that cannot be imported in this process."""
    qualname = qualname.encode("utf-8", "replace").decode()  # from elsewhere, it may have surrogates
    name = qualname.rpartition(".")[2]
    return type(name, (RemoteException,), {"__module__": module, "__qualname__": qualname})


def traceback_of(frames: Sequence[FrameSummary]) -> types.TracebackType | None:
    """Return a traceback with these frames, outermost first."""
    tb: types.TracebackType | None = None
    codes: dict[Any, types.CodeType] = {}  # frames at one position share their code: pytest detects recursion by it
    for summary in reversed(frames):
        position = (replace(summary, arguments=()), tuple(name for name, _ in summary.arguments))
        if position not in codes:
            codes[position] = _code_of(summary)
        code = codes[position]
        frame = _frame_of(code, summary)
        # No instruction (-1) without a span: renderers then use the line of the traceback, not of the stub.
        instruction = -1 if summary.span is None else len(code.co_code) - 2
        tb = types.TracebackType(tb, frame, instruction, summary.line)
    return tb


def _code_of(summary: FrameSummary) -> types.CodeType:
    stub = _stub_code(len(summary.arguments))
    return stub.replace(
        co_code=stub.co_code + bytes([opmap["NOP"], 0]),
        co_varnames=tuple(name for name, _ in summary.arguments),
        co_filename=summary.filename,
        co_name=summary.name,
        co_qualname=summary.qualname,
        co_firstlineno=summary.first_line,
        co_linetable=stub.co_linetable + _location(summary),
    )


def _location(summary: FrameSummary) -> bytes:
    """Return the line table entry of the stub's last instruction; see CPython's `Objects/locations.md`."""
    if summary.span is None:
        return bytes([0x80 | 15 << 3])  # no location
    end_line, column, end_column = summary.span
    lines = summary.line - summary.first_line  # relative to the preceding entries, which end at the first line
    numbers = (-lines << 1 | 1 if lines < 0 else lines << 1, end_line - summary.line, column + 1, end_column + 1)
    return bytes([0x80 | 14 << 3]) + b"".join(map(_varint, numbers))


def _varint(number: int) -> bytes:
    chunks = bytearray()
    while number >= 64:
        chunks.append(0x40 | number & 63)
        number >>= 6
    return bytes(chunks) + bytes([number])


@functools.cache
def _stub_code(arguments: int) -> types.CodeType:
    """Return the code object of rebuilt frames: a function with this many arguments.

    `_code_of` adds an instruction that is never executed, only to have a position: so a tracer in this process does not
    record lines that were executed elsewhere.
    """
    namespace: dict[str, Any] = {}
    exec(f"def stub({', '.join(f'a{number}' for number in range(arguments))}): raise __error__", namespace)
    code: types.CodeType = namespace["stub"].__code__
    return code


def _frame_of(code: types.CodeType, summary: FrameSummary) -> types.FrameType:
    namespace: dict[str, Any] = {"__name__": summary.module, "__file__": summary.filename, "__error__": RuntimeError()}
    if summary.hidden:
        namespace["__tracebackhide__"] = True
    try:
        types.FunctionType(code, namespace)(*(value for _, value in summary.arguments))
    except RuntimeError as raised:
        tb = raised.__traceback__
    assert tb is not None
    assert tb.tb_next is not None
    return tb.tb_next.tb_frame

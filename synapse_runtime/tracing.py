"""Exceptions across the process border: class, arguments, notes, chain and the frames of the traceback.

A pickled exception loses its traceback, and many exceptions do not survive pickling at all: their constructors
want other arguments, their attributes hold locks. So each exception is taken apart, every part is pickled for
itself, and what cannot travel is replaced by its text, the rest stays. Frames come back as real traceback
objects that know file, function and lines, so that every renderer shows the source. (tblib has no first line of
a function, without which pytest shows a single line instead of the function.)
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from synapse_runtime import transport
from synapse_runtime.errors import safe_str

# Longer chains than this cannot be pickled, being nested; the far end of one is left out.
_MAX_CHAIN = 100
_STUB = compile("raise error", "<frame>", "exec")


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """One frame of a traceback: where it was, and whether pytest is asked to hide it."""

    filename: str
    name: str
    qualname: str
    first_line: int
    line: int
    module: str
    hidden: bool


@dataclass(frozen=True, slots=True)
class PackedException:
    """An exception in parts that pickle; see `pack` and `unpack`."""

    type_name: str
    module: str
    text: str
    whole: bytes | None
    cls: bytes | None
    args: tuple[bytes | str, ...]
    state: dict[str, bytes | str]
    frames: tuple[FrameSummary, ...]
    cause: PackedException | None
    context: PackedException | None
    context_is_cause: bool
    suppress_context: bool
    group: tuple[PackedException, ...] | None


def pack(error: BaseException) -> PackedException:
    """Take an exception apart, with its chain."""
    return _pack(error, set(), 0)


def unpack(packed: PackedException) -> BaseException:
    """Put an exception together again: of its own class wherever that can be imported here."""
    error = _rebuild(packed)
    error.__traceback__ = _traceback(packed.frames)
    if packed.context is not None:
        error.__context__ = unpack(packed.context)
    if packed.cause is not None:
        error.__cause__ = unpack(packed.cause)
        if packed.context_is_cause:
            error.__context__ = error.__cause__
    error.__suppress_context__ = packed.suppress_context
    return error


def frames_of(tb: types.TracebackType | None) -> tuple[FrameSummary, ...]:
    """Return the frames of a traceback, outermost first."""
    frames = []
    while tb is not None:
        frame = tb.tb_frame
        code = frame.f_code
        frames.append(
            FrameSummary(
                code.co_filename,
                code.co_name,
                code.co_qualname,
                code.co_firstlineno,
                tb.tb_lineno,
                frame.f_globals.get("__name__", "?"),
                bool(frame.f_locals.get("__tracebackhide__", False)),
            )
        )
        tb = tb.tb_next
    return tuple(frames)


def _pack(error: BaseException, seen: set[int], depth: int) -> PackedException:
    seen.add(id(error))
    args, group, cls = error.args, None, type(error)
    if isinstance(error, BaseExceptionGroup) and depth < _MAX_CHAIN:
        # Its arguments may be anything that its class wants; what makes up every group is a message and members.
        args, group = (error.message,), error.exceptions

    def linked(other: BaseException | None) -> PackedException | None:
        return None if other is None or id(other) in seen or depth >= _MAX_CHAIN else _pack(other, seen, depth + 1)

    state = {name: _pack_part(value) for name, value in getattr(error, "__dict__", {}).items()}
    return PackedException(
        type_name=cls.__qualname__,
        module=cls.__module__,
        text=safe_str(error),
        whole=None if group is not None else _pack_whole(error),
        cls=_try_dumps(cls),
        args=tuple(_pack_part(value) for value in args),
        state=state,
        frames=frames_of(error.__traceback__),
        cause=linked(error.__cause__),
        context=linked(error.__context__),
        context_is_cause=error.__context__ is error.__cause__,
        suppress_context=error.__suppress_context__,
        group=None if group is None else tuple(_pack(member, seen, depth + 1) for member in group),
    )


def _pack_whole(error: BaseException) -> bytes | None:
    """Pickle the exception as its author meant it, if it comes back as itself."""
    data = _try_dumps(error)
    if data is None:
        return None
    try:
        copy = transport.round_trip(error)
        same = type(copy).__qualname__ == type(error).__qualname__ and safe_str(copy) == safe_str(error)
        if type(error).__reduce__ is BaseException.__reduce__:  # another one knows what makes up the exception
            same = same and repr(copy.args) == repr(error.args)
    except Exception:  # noqa: BLE001 - the author's __reduce__ or __init__ runs here and may do anything
        return None
    return data if same else None


def _try_dumps(value: Any) -> bytes | None:
    try:
        return transport.dumps(value)
    except Exception:  # noqa: BLE001 - the author's own pickling hooks run here
        return None


def _pack_part(value: Any) -> bytes | str:
    data = _try_dumps(value)
    if data is not None:
        try:
            transport.round_trip(value)
        except Exception:  # noqa: BLE001 - as above
            data = None
    if data is not None:
        return data
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__qualname__}>"


def _unpack_part(part: bytes | str) -> Any:
    if isinstance(part, str):
        return part
    try:
        return transport.loads_at_home(part)
    except Exception as error:  # noqa: BLE001 - a class that this process cannot import
        return f"<cannot be read here: {type(error).__name__}: {error}>"


def _rebuild(packed: PackedException) -> BaseException:
    if packed.whole is not None:
        try:
            error = transport.loads_at_home(packed.whole)
        except Exception:  # noqa: BLE001 - the class may be importable only where the action ran
            error = None
        if isinstance(error, BaseException):
            # The author's __reduce__ need not know of these.
            if not any(isinstance(part, str) for part in packed.args):
                with contextlib.suppress(Exception):  # a class may make them read-only
                    error.args = tuple(_unpack_part(part) for part in packed.args)
            if "__notes__" in packed.state:
                error.__notes__ = _unpack_part(packed.state["__notes__"])
            return error
    args = tuple(_unpack_part(part) for part in packed.args)
    if packed.group is not None:
        args = (*args, [unpack(member) for member in packed.group])
    error = _bare(_class_of(packed), args) or _stand_in(packed)(packed.text)
    for name, part in packed.state.items():
        if hasattr(error, "__dict__"):
            error.__dict__[name] = _unpack_part(part)
    return error


def _bare(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException | None:
    """Make an exception past its constructors: the author's may want what cannot be known here."""
    makers: tuple[Any, ...] = (BaseException, BaseExceptionGroup, cls)
    for maker in makers:
        try:
            error: BaseException = maker.__new__(cls, *args)
        except Exception:  # noqa: BLE001 - a class that only one of the others can make
            continue
        with contextlib.suppress(Exception):
            _builtin_init(cls)(error, *args)
        return error
    return None


def _builtin_init(cls: type[BaseException]) -> Callable[..., None]:
    """Return the nearest `__init__` that is Python's own: it sets `args`, and `errno`, `code` and their like."""
    found: Callable[..., None] = next(
        vars(base)["__init__"]
        for base in cls.__mro__
        if isinstance(vars(base).get("__init__"), types.WrapperDescriptorType)
    )
    return found


def _class_of(packed: PackedException) -> type[BaseException]:
    if packed.cls is not None:
        try:
            cls = transport.loads_at_home(packed.cls)
        except Exception:  # noqa: BLE001 - as in _rebuild
            cls = None
        if isinstance(cls, type) and issubclass(cls, BaseException):
            return cls
    if packed.group is not None:
        return ExceptionGroup
    return _stand_in(packed)


def _stand_in(packed: PackedException) -> type[BaseException]:
    """Make a class of the same name for an exception whose own class this process cannot have."""
    name = packed.type_name.rpartition(".")[2]
    return type(name, (Exception,), {"__module__": packed.module, "__qualname__": packed.type_name})


def _traceback(frames: tuple[FrameSummary, ...]) -> types.TracebackType | None:
    tb: types.TracebackType | None = None
    for summary in reversed(frames):
        code = _STUB.replace(
            co_filename=summary.filename,
            co_name=summary.name,
            co_qualname=summary.qualname,
            co_firstlineno=summary.first_line,
        )
        frame = _frame_of(code, summary)
        # No instruction offset (-1): renderers then take the line from the traceback, not from the stub's code.
        tb = types.TracebackType(tb, frame, -1, summary.line)
    return tb


def _frame_of(code: types.CodeType, summary: FrameSummary) -> types.FrameType:
    error = RuntimeError()
    local = {"error": error, "__tracebackhide__": summary.hidden}
    try:
        exec(code, {"__name__": summary.module, "__file__": summary.filename}, local)
    except RuntimeError as raised:
        tb = raised.__traceback__
    assert tb is not None
    assert tb.tb_next is not None
    return tb.tb_next.tb_frame

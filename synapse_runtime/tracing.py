"""Exceptions across the process border: class, arguments, notes, chain and the frames of the traceback.

A pickled exception loses its traceback, and many exceptions do not survive pickling at all: their constructors
want other arguments, their attributes hold locks. So each exception is taken apart, every part is pickled for
itself, and what cannot travel is replaced by its text, the rest stays. Frames come back as real traceback
objects that know file, function and lines, so that every renderer shows the source. (tblib has no first line of
a function, without which pytest shows a single line instead of the function.)
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from synapse_runtime import transport
from synapse_runtime.errors import safe_str

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
    suppress_context: bool
    group: tuple[PackedException, ...] | None


def pack(error: BaseException) -> PackedException:
    """Take an exception apart, with its whole chain."""
    return _pack(error, set())


def unpack(packed: PackedException) -> BaseException:
    """Put an exception together again: of its own class wherever that can be imported here."""
    error = _rebuild(packed)
    error.__traceback__ = _traceback(packed.frames)
    if packed.context is not None:
        error.__context__ = unpack(packed.context)
    if packed.cause is not None:
        error.__cause__ = unpack(packed.cause)
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


def _pack(error: BaseException, seen: set[int]) -> PackedException:
    seen.add(id(error))
    cause, context = error.__cause__, error.__context__
    group = error.exceptions if isinstance(error, BaseExceptionGroup) else None
    cls = type(error)
    state = {name: _pack_part(value) for name, value in getattr(error, "__dict__", {}).items()}
    return PackedException(
        type_name=cls.__qualname__,
        module=cls.__module__,
        text=safe_str(error),
        whole=None if group is not None else _pack_whole(error),
        cls=_try_dumps(cls),
        args=tuple(_pack_part(value) for value in error.args),
        state=state,
        frames=frames_of(error.__traceback__),
        cause=None if cause is None or id(cause) in seen else _pack(cause, seen),
        context=None if context is None or id(context) in seen or context is cause else _pack(context, seen),
        suppress_context=error.__suppress_context__,
        group=None if group is None else tuple(_pack(member, seen) for member in group),
    )


def _pack_whole(error: BaseException) -> bytes | None:
    """Pickle the exception as its author meant it, if it comes back as itself."""
    data = _try_dumps(error)
    if data is None:
        return None
    try:
        copy = transport.round_trip(error)
        same = type(copy).__qualname__ == type(error).__qualname__ and repr(copy.args) == repr(error.args)
        same = same and safe_str(copy) == safe_str(error)
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
            return error
    args = tuple(_unpack_part(part) for part in packed.args)
    if packed.group is not None:
        args = (args[0] if args else "", [unpack(member) for member in packed.group])
    cls = _class_of(packed)
    try:
        # Past __init__: the author's constructor may want what cannot be known here.
        error = cls.__new__(cls, *args)
        error.args = args
    except Exception:  # noqa: BLE001 - read-only args, or a __new__ of its own
        error = _stand_in(packed)(packed.text)
    for name, part in packed.state.items():
        if hasattr(error, "__dict__"):
            error.__dict__[name] = _unpack_part(part)
    return error


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

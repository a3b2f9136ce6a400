"""Log records, warnings and unhandled errors of an action in a worker: captured there, and replayed in its caller.

They are captured as they are at that moment, in a form that can be sent: an exception with the frames of its traceback,
and text in place of a value that cannot be pickled.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from synapse_runtime import serialization
from synapse_runtime.core.log_config import LoggingConfig
from synapse_runtime.core.remote_exceptions import EncodedException, ReprText, decode_exception, encode_exception
from synapse_runtime.errors import safe_str

# Actions of warning filters that show a warning once for each place, module or text.
_SHOWN_ONCE: Final = ("default", "module", "once")
# How many frames above a warning are searched for the module that it is about.
_MAX_FRAMES = 100


class CapturedWarning(NamedTuple):
    """A Python warning with its file and line.

    Attributes:
        message: The warning.
        category: Its class.
        filename: The file that it is about.
        line: The line.
        once_in: The name of its module, if a filter of the caller lets it through only once.
    """

    message: Warning
    category: type[Warning]
    filename: str
    line: int
    once_in: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        builtin = next(cls for cls in self.category.__mro__ if cls.__module__ == "builtins")
        category = None if self.category is type(self.message) else _Sent(self.category)
        encoded = encode_exception(self.message, with_arguments=False)
        return _load_warning, (encoded, builtin, category, self.filename, self.line, self.once_in)

    def replay(self) -> None:
        """Show the warning in this process; the worker has already applied the filters."""
        if self.once_in is None:
            warnings.showwarning(self.message, self.category, self.filename, self.line)
        else:
            registry = _registries.setdefault((self.once_in, self.filename), {})
            warnings.warn_explicit(self.message, self.category, self.filename, self.line, self.once_in, registry)


# What `warnings` remembers of those that are shown once, by module and file, as in `__warningregistry__` of a module.
_registries: dict[tuple[str, str], dict[str | tuple[str, type[Warning], int], int]] = {}


class LoggedRecord(NamedTuple):
    """A log record, and whether a handler in the worker has printed it."""

    record: logging.LogRecord
    printed: bool


class UnhandledError(NamedTuple):
    """An exception that ended a thread, or that a finalizer has raised.

    Attributes:
        exception: The exception.
        source: The thread's name, or the `repr` of the object whose finalizer has failed.
        message: What Python says of the latter, if anything.
        in_thread: Whether it ended a thread.
    """

    exception: EncodedException
    source: str
    message: str | None = None
    in_thread: bool = False

    def replay(self) -> None:
        """Report it to the hook of this process."""
        error = decode_exception(self.exception)
        if self.in_thread:
            thread = threading.Thread(name=self.source)
            args = threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
            threading.excepthook(args)
        else:
            source = ReprText(self.source)
            unraisable: Any = _Unraisable(type(error), error, error.__traceback__, self.message, source)
            sys.unraisablehook(unraisable)


class _Unraisable(NamedTuple):
    """Stands for `sys.UnraisableHookArgs`, which only Python itself can create."""

    exc_type: type[BaseException]
    exc_value: BaseException
    exc_traceback: types.TracebackType | None
    err_msg: str | None
    object: Any


LogEntry: TypeAlias = CapturedWarning | LoggedRecord | UnhandledError


class UnhandledHooks(NamedTuple):
    """Which unhandled errors are reported to a hook that is not Python's own: pytest's make a test fail."""

    of_threads: bool = False
    of_finalizers: bool = False

    @classmethod
    def current(cls) -> UnhandledHooks:
        """Return which ones this process has."""
        return cls(
            threading.excepthook is not threading.__excepthook__, sys.unraisablehook is not sys.__unraisablehook__
        )


@contextlib.contextmanager
def capture_logging(
    add: Callable[[LogEntry], object],
    config: LoggingConfig | None = None,
    hooks: UnhandledHooks | None = None,
    *,
    to_caller: Callable[[str], str] = str,
) -> Iterator[None]:
    """Capture log records, warnings and unhandled errors of this process while the block runs.

    Args:
        add: Called with each.
        config: Levels and filters to apply; the current ones of this process by default.
        hooks: Which unhandled errors to capture; Python prints the others. None by default.
        to_caller: Converts a file name to the file's name in the caller's process.
    """
    config = config or LoggingConfig.current()

    def add_warning(message: Any, category: type[Warning], filename: str, line: int, *_: object) -> None:
        if not isinstance(message, Warning):  # `showwarning` was called by hand
            message = category(message)
        module = _once_in(config, message, category, filename, line)
        add(CapturedWarning(message, category, to_caller(filename), line, module))

    handler = _idle_recorders.pop() if _idle_recorders else _Recorder()
    handler.add, handler.to_caller = add, to_caller
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with config.apply(add_warning), _reporter.installed(add, hooks or UnhandledHooks(), to_caller):
            yield
    finally:
        root.removeHandler(handler)
        handler.add = None
        _idle_recorders.append(handler)


class _Reporter:
    """The hooks of this process for unhandled errors while it captures them: the same ones in each call."""

    def __init__(self) -> None:
        self._add: Callable[[LogEntry], object] | None = None
        self._to_caller: Callable[[str], str] = str
        self._hooks = self._of_thread, self._of_finalizer

    @contextlib.contextmanager
    def installed(
        self, add: Callable[[LogEntry], object], hooks: UnhandledHooks, to_caller: Callable[[str], str]
    ) -> Iterator[None]:
        """Install them in the block; arguments as for `capture_logging`."""
        before = threading.excepthook, sys.unraisablehook
        outer = self._add, self._to_caller
        self._add, self._to_caller = add, to_caller
        if hooks.of_threads:
            threading.excepthook = self._hooks[0]
        if hooks.of_finalizers:
            sys.unraisablehook = self._hooks[1]
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook = before
            self._add, self._to_caller = outer

    def _of_thread(self, args: threading.ExceptHookArgs) -> None:
        name = "<unknown>" if args.thread is None else args.thread.name
        self._report(args.exc_value or args.exc_type(), name, None, in_thread=True)

    def _of_finalizer(self, args: sys.UnraisableHookArgs) -> None:
        source = serialization.safe_repr(args.object)
        self._report(args.exc_value or args.exc_type(), source, args.err_msg, in_thread=False)

    def _report(self, error: BaseException, source: str, message: str | None, *, in_thread: bool) -> None:
        if self._add is not None:
            encoded = encode_exception(error, self._to_caller, with_arguments=False)
            self._add(UnhandledError(encoded, source, message, in_thread))


_reporter = _Reporter()


class _Recorder(logging.Handler):
    """Captures records in a form that can be sent."""

    add: Callable[[LogEntry], object] | None = None
    to_caller: Callable[[str], str] = str

    def emit(self, record: logging.LogRecord) -> None:
        if self.add is None:
            return
        printed = any(
            writes_to_terminal(handler) and record.levelno >= handler.level for handler in handlers_of(record)
        )
        self.add(LoggedRecord(_copied(record, self.to_caller), printed))


# Recorders for reuse: creating one takes longer than everything else here.
_idle_recorders: list[_Recorder] = []


def handlers_of(record: logging.LogRecord) -> Iterator[logging.Handler]:
    """Yield the handlers of this process that receive a record."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def writes_to_terminal(handler: logging.Handler) -> bool:
    """Return whether this is a plain `StreamHandler` as `basicConfig` adds it, which writes to the terminal."""
    return type(handler) is logging.StreamHandler and not isinstance(handler.stream, io.StringIO)


class _CapturedRecord(logging.LogRecord):
    """A copy of a record, which is sent as a plain one."""

    _exception: EncodedException | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: _sendable(value) for name, value in vars(self).items() if name not in ("args", "_exception")}
        args: Any = self.args
        if isinstance(args, tuple):
            args = tuple(map(_sendable, args))
        elif isinstance(args, dict):
            args = {key: _sendable(value) for key, value in args.items()}
        return _load_record, ({**fields, "args": args}, self._exception)


def exception_of(record: logging.LogRecord) -> BaseException | None:
    """Return the exception that a record was logged with, if any."""
    if isinstance(record, _CapturedRecord):
        return None if record._exception is None else decode_exception(record._exception)
    return record.exc_info[1] if record.exc_info else None


def _load_record(fields: dict[str, Any], exception: EncodedException | None) -> logging.LogRecord:
    record = logging.makeLogRecord(fields)
    if exception is not None:
        error = decode_exception(exception)
        record.exc_info = type(error), error, error.__traceback__
    return record


def _copied(record: logging.LogRecord, to_caller: Callable[[str], str]) -> _CapturedRecord:
    """Return a copy of a record that does not change afterwards; values that cannot be pickled are texts."""
    fields = {
        name: serialization.snapshot(value)
        for name, value in vars(record).items()
        if name not in ("msg", "args", "exc_info")
    }
    fields["pathname"] = to_caller(record.pathname)
    args: Any = record.args
    if isinstance(args, tuple):
        args = tuple(map(_copied_value, args))
    elif isinstance(args, Mapping):
        args = {key: _copied_value(value) for key, value in args.items()}
    copy = _CapturedRecord("", 0, "", 0, "", None, None)
    vars(copy).update(fields, msg=_copied_value(record.msg), args=args)
    # A message that does not fit its arguments is reported where handlers format it, here and in the caller.
    with contextlib.suppress(Exception):
        message = record.getMessage()
        if not _has_message(copy, message):  # such as `%d` of a number that cannot be pickled
            copy.msg, copy.args = message, None
    if isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], BaseException):
        copy._exception = encode_exception(record.exc_info[1], to_caller, with_arguments=False)
    return copy


def _has_message(record: logging.LogRecord, message: str) -> bool:
    try:
        return record.getMessage() == message
    except Exception:  # noqa: BLE001 - `__str__` or `__format__` of a value
        return False


def _copied_value(value: Any) -> Any:
    """Return a copy of a value, or its text if it cannot be pickled."""
    if type(value) in serialization.IMMUTABLE:
        return value
    try:
        return serialization.round_trip(value, code_too=True)
    except Exception:  # noqa: BLE001 - pickling runs users' code
        return ValueText(safe_str(value), serialization.safe_repr(value))


@dataclass(frozen=True, slots=True)
class ValueText:
    """Stands for a value that cannot be sent: it has the same `str` and `repr`."""

    text: str
    representation: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.representation


class _Sent:
    """A value that is sent as a pickle of its own: if its caller cannot load it, it becomes a `ValueText` there."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        value = self._value
        return _load_value, (serialization.dumps(value), safe_str(value), serialization.safe_repr(value))


def _load_value(data: bytes, text: str, representation: str) -> Any:
    try:
        return serialization.loads_in_caller(data)
    except Exception:  # noqa: BLE001 - such as a class that this process cannot import
        return ValueText(text, representation)


def _sendable(value: Any) -> Any:
    return value if serialization.is_plain(value) else _Sent(value)


def _load_warning(
    encoded: EncodedException,
    builtin: type[Warning],
    category: Any,
    filename: str,
    line: int,
    once_in: str | None,
) -> CapturedWarning:
    message = decode_exception(encoded)
    if not isinstance(message, Warning):  # its class cannot be imported in this process
        names = {"__module__": encoded.module, "__qualname__": encoded.type_name}
        message = type(encoded.type_name.rpartition(".")[2], (builtin,), names)(encoded.text)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = type(message)
    return CapturedWarning(message, category, filename, line, once_in)


def _once_in(config: LoggingConfig, message: Warning, category: type[Warning], filename: str, line: int) -> str | None:
    """Return the module that a warning is about if a filter of the caller, not of the action, shows it only once."""
    module = _module_of(filename, line)
    text = safe_str(message)
    for item in warnings.filters:
        action, text_pattern, filter_category, module_pattern, filter_line = item
        if (
            _matches(text_pattern, text)
            and issubclass(category, filter_category)
            and _matches(module_pattern, module)
            and filter_line in (0, line)
        ):
            is_of_caller = any(item is each for each in config.decoded_filters)
            return module if is_of_caller and action in _SHOWN_ONCE else None
    return module  # without a filter, Python shows it once for each place


def _matches(pattern: Any, text: str) -> bool:
    if pattern is None or isinstance(pattern, str):
        return pattern is None or pattern == text
    return pattern.match(text) is not None


def _module_of(filename: str, line: int) -> str:
    """Return the name of the module that a warning is about, as `warnings.warn` finds it."""
    frame = inspect.currentframe()
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        if frame.f_lineno == line and frame.f_code.co_filename == filename:
            return str(frame.f_globals.get("__name__", "<string>"))
        frame = frame.f_back
    return filename.removesuffix(".py")

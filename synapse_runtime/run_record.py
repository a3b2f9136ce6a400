"""A run as plain JSON: safe to load, to store and to send.

Loading a record unpickles nothing and imports nothing. Values are encoded as in `json_values`. An exception is rebuilt
as its own class if that is one of the plugin or of the standard library whose module is already imported, and its
arguments are builtin values; otherwise as a `RemoteException` with the name of its class.
"""

from __future__ import annotations

import json
import linecache
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from synapse_runtime import __version__, serialization
from synapse_runtime.core import remote_exceptions
from synapse_runtime.core.assertions import Comparison, FailedAssertion
from synapse_runtime.core.coverage_support import CoverageResult, FileData
from synapse_runtime.core.execution import ActionRun
from synapse_runtime.core.log_capture import CapturedWarning, UnhandledError, exception_of
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.core.remote_exceptions import FrameSummary, ReprText
from synapse_runtime.errors import ExecutionError, PluginError, safe_str
from synapse_runtime.events import Event
from synapse_runtime.json_values import Decoder, encode_value, not_decoded
from synapse_runtime.redaction import HiddenValues

__all__ = ["FORMAT", "InvalidRecord", "RunRecord"]

FORMAT: Final = 1
_MAX_CHAIN = 100


class InvalidRecord(ValueError):
    """A text is not a record of a run; the message says where."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


_R = TypeVar("_R", bound=BaseModel)


class FrameRecord(_Record):
    """One frame of a traceback.

    Attributes:
        file: The file.
        line: The line that was executed, counted from 1.
        function: The function's qualified name.
        source: The text of that line, if the source was available.
        module: The module's name.
        first_line: The function's first line.
        span: The part of the source that failed: last line, first and last column in bytes; None if unknown.
        hidden: Whether reports leave the frame out.
        arguments: The function's arguments as names and texts; values of secrets are redacted.
    """

    file: str
    line: int = Field(ge=0, lt=2**31)
    function: str
    source: str = ""
    module: str = "?"
    first_line: int = Field(default=1, ge=0, lt=2**31)
    span: tuple[int, int, int] | None = None
    hidden: bool = False
    arguments: tuple[tuple[str, str], ...] = ()


class ExceptionRecord(_Record):
    """One exception of a run's error. Others are referred to by their index in the record's `error`, a larger one.

    Attributes:
        type: The qualified name of its class.
        module: The module of its class.
        text: `str()` of the exception.
        args: Its arguments, as encoded values; `{"$members": []}` stands for the members of an exception group.
        attributes: Its other attributes, as encoded values.
        notes: Its notes.
        frames: Its traceback, outermost frame first.
        cause: The index of its `__cause__`.
        context: The index of its `__context__`.
        suppress_context: Its `__suppress_context__`.
        exceptions: The indexes of the members of an exception group; None for other exceptions.
    """

    type: str
    module: str = "builtins"
    text: str = ""
    args: list[Any] | None = None
    attributes: dict[str, Any] = {}
    notes: list[str] = []
    frames: list[FrameRecord] = []
    cause: int | None = None
    context: int | None = None
    suppress_context: bool = False
    exceptions: list[int] | None = None


class EventRecord(_Record):
    """An event: the fields of `synapse_runtime.events.Event`, with encoded `data`."""

    kind: Literal["log", "progress", "metrics", "message"]
    name: str = ""
    data: Any = Field(default_factory=dict)
    level: str = "info"
    step: str | None = None
    file: str | None = None
    time: float = 0.0


class LogRecord(_Record):
    """A record of `logging`.

    Attributes:
        name: The logger's name.
        level: The numeric level.
        message: The message with its arguments.
        format: The message without them; null if there are none, or one is of a type that JSON does not have.
        args: The arguments, as an encoded value.
        file: The file that logged it.
        line: The line.
        function: The function.
        time: Seconds since the epoch.
        exception: The text of the traceback that it was logged with.
        error: The exception itself, first, and those that it refers to.
        stack: The text of the stack that it was logged with.
        extra: Its other attributes, as encoded values.
        printed: Whether a handler in the worker has printed it.
    """

    name: str
    level: int
    message: str
    format: str | None = None
    args: Any = None
    file: str = ""
    line: int = 0
    function: str | None = None
    time: float = 0.0
    exception: str | None = None
    error: list[ExceptionRecord] | None = Field(default=None, min_length=1)
    stack: str | None = None
    extra: dict[str, Any] = {}
    printed: bool = False


class WarningRecord(_Record):
    """A Python warning.

    Attributes:
        type: The qualified name of its class.
        module: The module of its class.
        text: Its text.
        file: The file that it is about.
        line: The line.
        error: The warning itself with its arguments and attributes.
        once_in: The name of its module, if a filter shows it only once.
    """

    type: str
    module: str = "builtins"
    text: str
    file: str
    line: int
    error: list[ExceptionRecord] | None = Field(default=None, min_length=1)
    once_in: str | None = None


class UnhandledRecord(_Record):
    """An exception that ended a thread, or that a finalizer has raised.

    Attributes:
        error: The exception, first, and those that it refers to.
        source: The thread's name, or the `repr` of the object whose finalizer has failed.
        message: What Python says of the latter, if anything.
        in_thread: Whether it ended a thread.
    """

    error: list[ExceptionRecord] = Field(min_length=1)
    source: str = ""
    message: str | None = None
    in_thread: bool = False


class ComparisonRecord(_Record):
    """A failed comparison of an assertion: see `core.assertions.Comparison`. The operands are encoded values."""

    number: int
    operator: str
    left: Any
    right: Any


class AssertionRecord(_Record):
    """A failed assertion: see `core.assertions.FailedAssertion`."""

    message: str
    template: str
    comparisons: list[ComparisonRecord]


class FileCoverage(_Record):
    """The executed lines, or pairs of lines for branches, of a file: see `core.coverage_support.FileData`."""

    module: str | None = None
    tracer: str = ""
    executed: dict[str, list[int] | list[tuple[int, int]]]


class CallerRecord(_Record):
    """What the process that made the call needs, if it has sent its settings.

    Attributes:
        assertions: The failed assertions in the run's error, which pytest explains there.
        coverage: What was executed, by file; null if nothing was measured.
        branches: Whether branches were measured, not only lines.
        coverage_problem: Why the measurement is incomplete; empty if it is complete.
        mock_calls: The calls of each mock that the test has put in place: name, arguments and keyword arguments.
    """

    assertions: list[AssertionRecord] = []
    coverage: dict[str, FileCoverage] | None = None
    branches: bool = False
    coverage_problem: str = ""
    mock_calls: list[list[tuple[str, Any, Any]]] | None = None

    @classmethod
    def of(
        cls,
        failed: Iterable[FailedAssertion],
        coverage: CoverageResult | None,
        mock_calls: list[list[tuple[str, Any, Any]]] | None = None,
    ) -> CallerRecord | None:
        """Return the record; None if there is nothing in it."""
        assertions = [*map(_encode_assertion, failed)]
        if not assertions and coverage is None and mock_calls is None:
            return None
        if coverage is None:
            return cls(assertions=assertions, mock_calls=mock_calls)
        files = {
            _text(name): FileCoverage.model_construct(module=file.module, tracer=file.tracer, executed=file.executed)
            for name, file in coverage.files.items()
        }
        return cls.model_construct(
            assertions=assertions,
            coverage=files,
            branches=coverage.branches,
            coverage_problem=coverage.problem,
            mock_calls=mock_calls,
        )

    @property
    def measured(self) -> CoverageResult | None:
        """What was executed, as `coverage_support.merge` takes it."""
        if self.coverage is None:
            return None
        files = {
            name: FileData(file.module, file.tracer, {context: [*lines] for context, lines in file.executed.items()})
            for name, file in self.coverage.items()
        }
        return CoverageResult(self.branches, files, self.coverage_problem)

    def failed_assertions(self, import_root: str | None = None) -> list[FailedAssertion]:
        """Return the failed assertions; `import_root` as for `RunRecord.to_run`."""
        decoder = Decoder(import_root)
        return [_decode_assertion(record, decoder) for record in self.assertions]


class RunRecord(_Record):
    """A run as plain JSON.

    Attributes:
        format: The version of this format.
        version: The version of this package that has written the record.
        action: The action's name.
        status: `succeeded` or `failed`.
        result: The result as an encoded value; null if the action failed.
        error: The error, first, and the exceptions that it refers to.
        mode: The mode that it ran in.
        job_id: The id of the run.
        is_started: Whether the action was started: its params are valid.
        duration: Seconds that the action took.
        pid: The process that it ran in.
        host: The machine.
        node: Ray's id of that machine.
        events: The events, in order.
        stdout: What the action printed; null if its output was not captured.
        stderr: The same for standard error.
        records: Log records.
        warnings: Python warnings.
        unhandled: Exceptions of threads and finalizers.
        caller: What the process that made the call needs besides.

    Example:
        >>> record = RunRecord.from_run(ActionRun("train", result={"loss": float("nan"), "shape": (2, 3)}))
        >>> record.result
        {'loss': {'$float': 'nan'}, 'shape': {'$tuple': [2, 3]}}
        >>> RunRecord.loads(record.dumps()).to_run().result
        {'loss': nan, 'shape': (2, 3)}
    """

    format: Literal[1] = FORMAT
    version: str = __version__
    action: str
    status: Literal["succeeded", "failed"]
    result: Any = None
    error: list[ExceptionRecord] | None = Field(default=None, min_length=1)
    mode: str = "local"
    job_id: str = ""
    is_started: bool = False
    duration: float = 0.0
    pid: int = 0
    host: str = ""
    node: str = ""
    events: list[EventRecord] = []
    stdout: str | None = None
    stderr: str | None = None
    records: list[LogRecord] = []
    warnings: list[WarningRecord] = []
    unhandled: list[UnhandledRecord] = []
    caller: CallerRecord | None = None

    @classmethod
    def from_run(
        cls, run: ActionRun, *, to_caller: Callable[[str], str] = str, caller: CallerRecord | None = None
    ) -> RunRecord:
        """Return the record of a run.

        Args:
            run: The run.
            to_caller: Converts a file name of a traceback to the file's name in the process that reads the record.
            caller: What the process that made the call needs besides.
        """
        captured = run.captured
        return cls(
            action=_text(run.name),
            status="succeeded" if run.error is None else "failed",
            result=encode_value(run.result)[0] if run.error is None else None,
            error=None if run.error is None else _encode_error(run.error, to_caller),
            mode=run.mode,
            job_id=_text(run.job_id),
            is_started=run.is_started,
            duration=run.duration,
            pid=run.pid,
            host=_text(run.host),
            node=run.node,
            events=[encode_event(event)[0] for event in run.events],
            stdout=None if captured is None else _text(captured.stdout),
            stderr=None if captured is None else _text(captured.stderr),
            records=[] if captured is None else [*_encode_records(captured)],
            warnings=[] if captured is None else [*map(_encode_warning, captured.warnings)],
            unhandled=[] if captured is None else [*map(_encode_unhandled, captured.unhandled)],
            caller=caller,
        )

    def to_run(self, import_root: str | None = None) -> ActionRun:
        """Return the run.

        Args:
            import_root: The directory of the plugin's modules, whose classes may be used if they are imported.
        """
        decoder = Decoder(import_root)
        run = ActionRun(
            self.action,
            events=[_decode_event(event, decoder) for event in self.events],
            is_started=self.is_started,
            duration=self.duration,
            mode=self.mode,
            job_id=self.job_id,
            pid=self.pid,
            host=self.host,
            node=self.node,
        )
        if self.stdout is not None or self.stderr is not None:
            run.captured = Captured(self.stdout or "", self.stderr or "")
            for record in self.records:
                if record.printed:
                    run.captured.already_printed.add(len(run.captured.records))
                run.captured.records.append(_decode_record(record, decoder))
            run.captured.warnings.extend(_decode_warning(warning, decoder) for warning in self.warnings)
            run.captured.unhandled.extend(_decode_unhandled(each, decoder) for each in self.unhandled)
        if self.error is not None:
            run.error = _decode_error(self.error, decoder, self.action)
        elif self.status == "failed":
            run.error = ExecutionError(f"{self.action} failed; the record does not say why")
        else:
            run.result = decoder.decode(self.result)
        return run

    def redacted(self, hidden: HiddenValues) -> RunRecord:
        """Return the record without these values, except in its result, which is data.

        Example:
            >>> record = RunRecord(action="login", status="succeeded", stdout="as abc123xyz")
            >>> record.redacted(HiddenValues({}, secrets=[("API_TOKEN", "abc123xyz")])).stdout
            'as <API_TOKEN>'
        """
        fields = vars(self) | {name: _redacted(vars(self)[name], hidden) for name in _WITH_TEXTS}
        return RunRecord.model_construct(**fields)

    def dumps(self) -> str:
        """Return the record as JSON, on one line."""
        return to_json(self)

    @classmethod
    def loads(cls, text: str) -> RunRecord:
        """Read a record.

        Raises:
            InvalidRecord: The text is not a record, or has another format.
        """
        return read_record(cls, parse_json(text))


# The fields of a record in which an action's texts are.
_WITH_TEXTS: Final = ("error", "events", "stdout", "stderr", "records", "warnings", "unhandled", "caller")


def _redacted(value: Any, hidden: HiddenValues) -> Any:
    if isinstance(value, str):
        return hidden.out_of(value)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _redacted(item, hidden) for name, item in vars(value).items()})
    if isinstance(value, list | tuple):
        return type(value)(_redacted(item, hidden) for item in value)
    if isinstance(value, dict):
        return {_redacted(key, hidden): _redacted(item, hidden) for key, item in value.items()}
    return value


def to_json(record: BaseModel | Mapping[str, Any]) -> str:
    """Return a record, or a dict of values that JSON has, as JSON in ASCII on one line."""
    return json.dumps(record, default=vars, allow_nan=False, separators=(",", ":"))


def parse_json(text: str) -> Any:
    """Parse JSON, without the extensions of Python.

    Raises:
        InvalidRecord: The text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"not JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not in JSON")


def read_record(cls: type[_R], data: Any) -> _R:
    """Validate data as an instance of this model.

    Raises:
        InvalidRecord: It is not one.
    """
    if cls is RunRecord and isinstance(data, dict) and data.get("format") not in (None, FORMAT):
        raise InvalidRecord(f"it has format {data['format']!r}, but this version reads format {FORMAT} only")
    try:
        return cls.model_validate(data)
    except ValueError as error:
        problem = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, problem["loc"]))
        raise InvalidRecord(f"{where}: {problem['msg']}" if where else str(problem["msg"])) from error


def _text(value: Any) -> str:
    """Return a text that pydantic accepts: one without surrogates."""
    text = safe_str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def encode_event(event: Event) -> tuple[EventRecord, bool]:
    """Return the record of an event, and whether reading it gives exactly this event."""
    data, is_exact = encode_value(dict(event.data))
    given: dict[str, Any] = {
        "kind": event.kind,
        "name": event.name,
        "level": event.level,
        "step": event.step,
        "file": event.file,
    }
    texts: dict[str, Any] = {name: None if text is None else _text(text) for name, text in given.items()}
    is_exact = is_exact and all(type(text) in (str, type(None)) for text in given.values()) and texts == given
    time = event.time if math.isfinite(event.time) else 0.0
    return EventRecord.model_construct(**texts, data=data, time=time), is_exact and time == event.time


def decode_event(data: Any, import_root: str | None = None) -> Event:
    """Return the event of a record as JSON data; `import_root` as for `RunRecord.to_run`.

    Raises:
        InvalidRecord: It is not the record of an event.
    """
    return _decode_event(read_record(EventRecord, data), Decoder(import_root))


def _decode_event(record: EventRecord, decoder: Decoder) -> Event:
    data = decoder.decode(record.data)
    fields = {**vars(record), "data": data if isinstance(data, dict) else {"data": data}}
    return Event(**fields)


_MEMBERS: Final[dict[str, list[Any]]] = {"$members": []}
_LOG_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "_exception"}


def _encode_records(captured: Captured) -> Iterator[LogRecord]:
    for index, record in enumerate(captured.records):
        extra = {
            _text(name): encode_value(value)[0] for name, value in vars(record).items() if name not in _LOG_ATTRIBUTES
        }
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a message that does not fit its arguments, or a user's `__str__`
            message = record.msg
        yield LogRecord.model_construct(
            name=_text(record.name),
            level=record.levelno,
            message=_text(message),
            **_arguments_of(record),
            file=_text(record.pathname),
            line=record.lineno,
            function=_text(record.funcName),
            time=record.created,
            exception=_exception_text(record),
            error=_encode_error(error, str) if (error := exception_of(record)) is not None else None,
            stack=None if record.stack_info is None else _text(record.stack_info),
            extra=extra,
            printed=index in captured.already_printed,
        )


def _arguments_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record's arguments, if reading them gives exactly these."""
    if not record.args or type(record.msg) is not str:
        return {}
    args, is_exact = encode_value(record.args)
    return {"format": _text(record.msg), "args": args} if is_exact else {}


def _exception_text(record: logging.LogRecord) -> str | None:
    if record.exc_text is None and record.exc_info and record.exc_info[1] is not None:
        return _text(logging.Formatter().formatException(record.exc_info))
    return None if record.exc_text is None else _text(record.exc_text)


def _decode_record(record: LogRecord, decoder: Decoder) -> logging.LogRecord:
    error = None if record.error is None else _decode_chain(record.error, decoder)
    found = logging.LogRecord(
        record.name,
        record.level,
        record.file,
        record.line,
        record.message if record.format is None else record.format,
        None,
        None if error is None else (type(error), error, error.__traceback__),
        record.function,
    )
    if record.format is not None:
        args = decoder.decode(record.args)
        found.args = args if isinstance(args, tuple | dict) else (args,)
    found.created = record.time
    found.msecs = record.time % 1 * 1000
    found.exc_text, found.stack_info = record.exception, record.stack
    extra = {name: decoder.decode(value) for name, value in record.extra.items() if name not in vars(found)}
    vars(found).update(extra)
    return found


def _encode_warning(warning: CapturedWarning) -> WarningRecord:
    cls = warning.category
    return WarningRecord.model_construct(
        type=cls.__qualname__,
        module=cls.__module__,
        text=_text(warning.message),
        file=_text(warning.filename),
        line=warning.line,
        error=_encode_error(warning.message, str),
        once_in=warning.once_in,
    )


def _decode_warning(record: WarningRecord, decoder: Decoder) -> CapturedWarning:
    cls = decoder.find_class(record.module, record.type)
    category = cls if cls is not None and issubclass(cls, Warning) else UserWarning
    message = None if record.error is None else _decode_chain(record.error, decoder)
    if not isinstance(message, category):
        message = remote_exceptions.new_exception(category, (record.text,))
    if not isinstance(message, Warning):
        category, message = UserWarning, UserWarning(record.text)
    return CapturedWarning(message, category, record.file, record.line, record.once_in)


def _encode_unhandled(unhandled: UnhandledError) -> UnhandledRecord:
    return UnhandledRecord.model_construct(
        error=_encode_error(remote_exceptions.decode_exception(unhandled.exception), str),
        source=_text(unhandled.source),
        message=None if unhandled.message is None else _text(unhandled.message),
        in_thread=unhandled.in_thread,
    )


def _decode_unhandled(record: UnhandledRecord, decoder: Decoder) -> UnhandledError:
    exception = remote_exceptions.encode_exception(_decode_chain(record.error, decoder))
    return UnhandledError(exception, record.source, record.message, record.in_thread)


def _encode_assertion(failed: FailedAssertion) -> AssertionRecord:
    comparisons = [
        ComparisonRecord.model_construct(
            number=each.number,
            operator=each.operator,
            left=encode_value(serialization.loads(each.left))[0],
            right=encode_value(serialization.loads(each.right))[0],
        )
        for each in failed.comparisons
    ]
    return AssertionRecord.model_construct(
        message=_text(failed.message), template=_text(failed.template), comparisons=comparisons
    )


def _decode_assertion(record: AssertionRecord, decoder: Decoder) -> FailedAssertion:
    """Rebuild a failed assertion; what JSON does not have of its comparisons keeps the worker's explanation."""
    comparisons = []
    for each in record.comparisons:
        left, right = decoder.decode(each.left), decoder.decode(each.right)
        if not_decoded(left) is None and not_decoded(right) is None:
            pickles = serialization.dumps(left), serialization.dumps(right)
            comparisons.append(Comparison(each.number, each.operator, *pickles))
    return FailedAssertion(record.message, record.template, tuple(comparisons))


def _encode_error(error: BaseException, to_caller: Callable[[str], str]) -> list[ExceptionRecord]:
    """Return an exception and all that it refers to, in an order in which each refers to later ones only."""
    order: list[BaseException] = []
    links: dict[int, dict[str, Any]] = {}
    state: dict[int, bool] = {}  # False while an exception's own are visited: an ancestor

    def visit(error: BaseException, depth: int) -> bool:
        if id(error) in state:
            return state[id(error)]
        if depth > _MAX_CHAIN:
            return False
        state[id(error)] = False
        members = error.exceptions if isinstance(error, BaseExceptionGroup) else None
        links[id(error)] = {
            "cause": error.__cause__ if _visited(error.__cause__, depth) else None,
            "context": error.__context__ if _visited(error.__context__, depth) else None,
            "exceptions": None if members is None else [member for member in members if visit(member, depth + 1)],
        }
        state[id(error)] = True
        order.append(error)
        return True

    def _visited(other: BaseException | None, depth: int) -> bool:
        return other is not None and visit(other, depth + 1)

    visit(error, 0)
    order.reverse()
    index = {id(each): number for number, each in enumerate(order)}
    return [_encode_one(each, links[id(each)], index, to_caller) for each in order]


def _encode_one(
    error: BaseException, links: dict[str, Any], index: dict[int, int], to_caller: Callable[[str], str]
) -> ExceptionRecord:
    cls = type(error)
    attributes = {**getattr(error, "__dict__", {}), **remote_exceptions.member_values(error)}
    notes = attributes.pop("__notes__", ())
    cause, context, members = links["cause"], links["context"], links["exceptions"]
    return ExceptionRecord.model_construct(
        type=cls.__qualname__,
        module=cls.__module__,
        text=_text(error.message if isinstance(error, BaseExceptionGroup) else error),
        args=_encode_args(error, links["exceptions"]),
        attributes={_text(name): encode_value(value)[0] for name, value in attributes.items()},
        notes=[*map(_text, notes)] if isinstance(notes, Iterable) else [],
        frames=[*map(_encode_frame, remote_exceptions.frames_of(error.__traceback__, to_caller))],
        cause=None if cause is None else index[id(cause)],
        context=None if context is None else index[id(context)],
        suppress_context=error.__suppress_context__,
        exceptions=None if members is None else [index[id(member)] for member in members],
    )


def _encode_args(error: BaseException, members: list[BaseException] | None) -> list[Any]:
    given: Any = vars(BaseException)["args"].__get__(error)  # the class may have its own `args`
    found = []
    for value in given:
        is_members = members and type(value) in (list, tuple) and [*map(id, value)] == [*map(id, members)]
        found.append({"$members": []} if is_members else encode_value(value)[0])
    return found


def _encode_frame(frame: FrameSummary) -> FrameRecord:
    return FrameRecord.model_construct(
        file=_text(frame.filename),
        line=frame.line,
        function=frame.qualname,
        source=_text(linecache.getline(frame.filename, frame.line).strip("\r\n")),
        module=frame.module,
        first_line=frame.first_line,
        span=frame.span,
        hidden=frame.hidden,
        arguments=tuple((name, _text(repr(value))) for name, value in frame.arguments),
    )


def _decode_error(records: list[ExceptionRecord], decoder: Decoder, action: str) -> PluginError:
    error = _decode_chain(records, decoder)
    if isinstance(error, PluginError):
        return error
    wrapped = ExecutionError(f"{action} failed: {type(error).__name__}: {safe_str(error)}")
    wrapped.__cause__ = error
    return wrapped


def _decode_chain(records: list[ExceptionRecord], decoder: Decoder) -> BaseException:
    made: dict[int, BaseException] = {}
    for number in reversed(range(len(records))):
        made[number] = _decode_one(records[number], decoder, made)
    return made[0]


def _decode_one(record: ExceptionRecord, decoder: Decoder, later: Mapping[int, BaseException]) -> BaseException:
    """Rebuild an exception. It refers only to later ones, which are rebuilt already, so there are no cycles."""
    members = None if record.exceptions is None else [later[each] for each in record.exceptions if each in later]
    error = _new_exception(record, decoder, members)
    for name, data in record.attributes.items():
        if not name.startswith("__"):
            value = decoder.decode(data)
            is_text_only = isinstance(value, dict) and value.keys() == {"$type", "repr"}
            remote_exceptions.set_attribute(error, name, value["repr"] if is_text_only else value)
    if record.notes:
        error.__notes__ = list(record.notes)
    BaseException.__setattr__(
        error, "__traceback__", remote_exceptions.traceback_of([*map(_decode_frame, record.frames)])
    )
    for name, number in (("__context__", record.context), ("__cause__", record.cause)):
        if number is not None and number in later:
            BaseException.__setattr__(error, name, later[number])
    BaseException.__setattr__(error, "__suppress_context__", record.suppress_context)
    return error


def _new_exception(record: ExceptionRecord, decoder: Decoder, members: list[BaseException] | None) -> BaseException:
    cls = decoder.find_class(record.module, record.type)
    if members:
        base = cls if cls is not None and issubclass(cls, BaseExceptionGroup) else BaseExceptionGroup
        group = remote_exceptions.new_exception(base, (record.text, members))
        if group is not None:
            if record.args:
                own = tuple(members if data == _MEMBERS else decoder.decode(data) for data in record.args)
                BaseException.__setattr__(group, "args", own)
            return group
    elif cls is not None and issubclass(cls, BaseException) and record.args is not None and members is None:
        args = tuple(map(decoder.decode, record.args))
        error = None if not_decoded(args) is not None else remote_exceptions.new_exception(cls, args)
        if error is not None:
            return error
    return remote_exceptions.placeholder_class(record.module, record.type)(record.text)


def _decode_frame(record: FrameRecord) -> FrameSummary:
    is_only_line = not os.path.exists(record.file) and _add_source(record.file, record.line, record.source)
    return FrameSummary(
        filename=record.file,
        name=record.function.rpartition(".")[2],
        qualname=record.function,
        first_line=record.line if is_only_line else min(record.first_line, record.line),
        line=record.line,
        module=record.module,
        hidden=record.hidden,
        span=record.span if _is_span(record) else None,
        arguments=tuple((name, ReprText(text)) for name, text in _unique(record.arguments)),
    )


def _is_span(record: FrameRecord) -> bool:
    if record.span is None:
        return False
    end_line, column, end_column = record.span
    return record.line <= end_line < 2**31 and 0 <= column < 2**31 and 0 <= end_column < 2**31


def _unique(arguments: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the arguments whose names a function can have, at most 100."""
    return [(name, text) for name, text in dict(arguments).items() if name.isidentifier()][:100]


# Lines of records' files that do not exist here, by file and line.
_sources: dict[str, dict[int, str]] = {}
_MAX_SOURCES = 200
_MAX_SOURCE_LINE = 20_000


def _add_source(file: str, line: int, text: str) -> bool:
    """Let `linecache`, which reports read sources from, know a line of a file that does not exist here."""
    known = _sources.get(file)
    if line > _MAX_SOURCE_LINE or (known is None and (file in linecache.cache or len(_sources) >= _MAX_SOURCES)):
        return False
    lines = _sources.setdefault(file, {})
    lines[line] = text + "\n"
    listed = [lines.get(number, "\n") for number in range(1, max(lines) + 1)]
    # `linecache` drops entries of missing files, unless the entry has no modification time.
    linecache.cache[file] = (sum(map(len, listed)), None, listed, file)
    return True

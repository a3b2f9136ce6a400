"""Follow a job: its output and events as they come, each exactly once, until its status says that it has ended.

Requests are made in threads, so that the caller can be interrupted, and a slow one delays no other.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from synapse_runtime.errors import RemoteError
from synapse_runtime.events import Event
from synapse_runtime.executors.protocol import plugin_modules
from synapse_runtime.executors.remote.backend import Backend, Job, lines_of
from synapse_runtime.executors.remote.transport import Answer, StreamBroken, shortened
from synapse_runtime.run_record import InvalidRecord, decode_event, parse_json

_POLL_SECONDS: Final = (0.5, 5.0)
_RECONNECT_SECONDS: Final = (0.1, 5.0)
_WAIT_SECONDS: Final = 0.1
_T = TypeVar("_T")


class Output(NamedTuple):
    """What an action has printed.

    Attributes:
        stream: `stdout` or `stderr`.
        text: Any text.
    """

    stream: str
    text: str


class Ended(NamedTuple):
    """The job has ended, and all its output has come.

    Attributes:
        job: Its final state.
        message: What the log's stream has said about a failure.
    """

    job: Job
    message: str


Item = Output | Event | Ended


def follow(
    backend: Backend, job_id: str, *, import_root: str | None = None, deadline: float = float("inf")
) -> Generator[Item, None, None]:
    """Yield the output and events of a job from its start, and then that it has ended.

    Args:
        backend: The backend.
        job_id: The job.
        import_root: The directory of the plugin's modules, whose classes events may have.
        deadline: When to give up, by the monotonic clock.

    Raises:
        TimeoutError: The job has not ended in time; it keeps running.
        RemoteError: There is no such job, or the backend has not answered for too long.
    """
    kind = _RuntimeFollower if backend.has_runtime else _PlainFollower
    yield from kind(backend, job_id, import_root).items(deadline)


class _Follower(ABC):
    """Makes the requests in threads, and yields what they put into a queue."""

    def __init__(self, backend: Backend, job_id: str, import_root: str | None) -> None:
        self.backend = backend
        self.job_id = job_id
        self.import_root = import_root
        self._items: queue.SimpleQueue[Item | BaseException] = queue.SimpleQueue()
        self._is_closed = threading.Event()

    def items(self, deadline: float) -> Iterator[Item]:
        """Yield the items."""
        for work in self._workers():
            threading.Thread(target=self._guarded, args=(work,), name=f"synapse-{self.job_id}", daemon=True).start()
        try:
            while True:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"job {self.job_id} has not ended in time")
                try:
                    item = self._items.get(timeout=_WAIT_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Ended):
                    return
        finally:
            self._is_closed.set()

    @abstractmethod
    def _workers(self) -> list[Callable[[], None]]:
        """Return what to run in threads."""

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._items.put(error)

    def _put(self, item: Item) -> None:
        self._items.put(item)

    def _patiently(self, request: Callable[[], _T]) -> _T:
        """Make a request until it succeeds, unless the backend refuses it or is away for too long."""
        outage = _Outage(self.backend)
        while True:
            try:
                return request()
            except RemoteError as error:
                if error.status is not None and error.status < 500 and error.status != 429:
                    raise
                problem = error
            outage.wait(problem, self.job_id, self._is_closed)

    def _job(self) -> Job:
        return self._patiently(lambda: self.backend.job(self.job_id))


class _Outage:
    """A time in which a backend does not answer as it should."""

    def __init__(self, backend: Backend) -> None:
        self._host = backend.host
        self._limit = backend.transport.timeouts.outage
        self.reset()

    def reset(self) -> None:
        """Start again: the backend has answered."""
        self._began: float | None = None
        self._pause = _RECONNECT_SECONDS[0]

    def wait(self, problem: Exception | str, job_id: str, closed: threading.Event) -> None:
        """Wait before the next request, each time longer.

        Raises:
            RemoteError: It takes too long.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if now - self._began > self._limit:
            raise RemoteError(
                f"lost contact with job {job_id}: {problem}. It may still be running; to follow it again: `synapse job "
                f"logs {job_id} --follow --host {self._host}`"
            )
        if closed.wait(self._pause):
            raise _Closed
        self._pause = min(2 * self._pause, _RECONNECT_SECONDS[1])


class _Closed(Exception):
    """The caller does not need more."""


@dataclass
class _Message:
    """An event of a stream."""

    event: str = "message"
    id: str = ""
    data: list[str] = field(default_factory=list)


def messages(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    r"""Yield the server-sent events of a stream as id, event and data; one that is not complete is left out.

    Example:
        >>> list(messages(iter(["id: 7", "event: log", "data: {}", "", ": comment", "", "data: cut"])))
        [('7', 'log', '{}')]
    """
    message = _Message()
    for line in lines:
        if not line:
            if message.data:
                yield message.id, message.event, "\n".join(message.data)
            message = _Message()
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            message.data.append(value)
        elif name == "event":
            message.event = value
        elif name == "id":
            message.id = value


class _RuntimeFollower(_Follower):
    """Reads the numbered events of `/runtime/`, and resumes them by number."""

    def __init__(self, backend: Backend, job_id: str, import_root: str | None) -> None:
        super().__init__(backend, job_id, import_root)
        self._number = 0
        self._message = ""
        self._has_ended = False

    def _job(self) -> Job:
        return self._patiently(lambda: self.backend.job_here(self.job_id))

    def _workers(self) -> list[Callable[[], None]]:
        return [self._work]

    def _work(self) -> None:
        outage = _Outage(self.backend)
        late_since: float | None = None
        self._job()  # raises if there is none
        while not self._is_closed.is_set():
            before, problem, is_silent = self._number, "the stream of its events ended", False
            try:
                self._read()
            except StreamBroken as error:
                problem, is_silent = str(error), error.is_silent
            except RemoteError as error:
                if error.status is not None and error.status < 500 and error.status != 429:
                    raise
                problem = str(error)
            job = self._job()
            if job.has_ended and (late_since is None or self._number > before):
                late_since = time.monotonic()
            is_late = late_since is not None and time.monotonic() - late_since > self.backend.transport.timeouts.late
            if job.has_ended and (self._has_ended or is_late):
                self._put(Ended(job, self._message))
                return
            if self._number > before:
                outage.reset()
            elif is_silent:  # as the action may be, too
                continue
            outage.wait(problem, self.job_id, self._is_closed)

    def _read(self) -> None:
        headers = {"Last-Event-ID": str(self._number)} if self._number else {}
        path = f"runtime/jobs/{quote(self.job_id, safe='')}/events/"
        with self.backend.transport.lines(path, headers=headers) as lines:
            if isinstance(lines, Answer):
                raise RemoteError(f"{lines.request} answered without events: {shortened(lines.text)}", status=200)
            for number, event, data in messages(lines):
                if self._is_closed.is_set():
                    return
                if not number.isdecimal():
                    continue
                if int(number) > self._number + 1:
                    raise StreamBroken(f"event {self._number + 1} is missing before {number}")
                if int(number) == self._number + 1:
                    self._handle(event, data)
                    self._number += 1
                if self._has_ended:
                    return

    def _handle(self, event: str, text: str) -> None:
        try:
            data = parse_json(text)
            if event == "log" and isinstance(data, dict):
                stream = "stderr" if data.get("stream") == "stderr" else "stdout"
                self._put(Output(stream, str(data.get("text", ""))))
            elif event in ("progress", "metric", "event"):
                with plugin_modules(self.import_root):
                    self._put(checked_event(decode_event(data, self.import_root)))
            elif event == "end":
                self._has_ended = True
        except InvalidRecord as error:
            raise RemoteError(
                f"event {self._number + 1} of job {self.job_id} is malformed: {error}", status=200
            ) from error


def checked_event(event: Event) -> Event:
    """Return an event from elsewhere, if it has what events of its kind have.

    Raises:
        InvalidRecord: It does not.
    """
    if event.kind == "progress":
        current: Any = event.data.get("current")
        total: Any = event.data.get("total")
        if not (_is_number(current) and _is_number(total) and 0 <= current <= total and total > 0):
            raise InvalidRecord(f"progress of {current!r} of {total!r}")
    if event.kind == "metrics" and not event.step:
        raise InvalidRecord("metrics without a step")
    return event


class _PlainFollower(_Follower):
    """Reads the lines of the log from its tail, and the rest from the job's state."""

    def __init__(self, backend: Backend, job_id: str, import_root: str | None) -> None:
        super().__init__(backend, job_id, import_root)
        self._shown = 0
        self._message = ""
        self._ended: Job | None = None
        self._ended_at = 0.0
        self._has_ended = threading.Event()
        self._ask_now = threading.Event()

    def _workers(self) -> list[Callable[[], None]]:
        return [self._poll, self._read]

    def _poll(self) -> None:
        """Ask for the job's state, until it has ended."""
        seen = _Seen()
        pause = _POLL_SECONDS[0]
        while not self._is_closed.is_set():
            self._ask_now.clear()
            job = self._job()
            for event in seen.new_events(job):
                self._put(event)
            if job.has_ended:
                self._ended, self._ended_at = job, time.monotonic()
                self._has_ended.set()
                return
            self._ask_now.wait(pause)
            pause = min(1.25 * pause, _POLL_SECONDS[1])

    def _read(self) -> None:
        """Read the log, until the job has ended and its whole log has been read."""
        pause = _RECONNECT_SECONDS[0]
        while not self._is_closed.is_set() and not self._has_ended.is_set():
            before = self._shown
            if not self._read_tail():
                self._read_console_logs()
                self._has_ended.wait(_POLL_SECONDS[0])
                continue
            # That the tail has ended says nothing about the job.
            self._ask_now.set()
            pause = _RECONNECT_SECONDS[0] if self._shown > before else min(2 * pause, _RECONNECT_SECONDS[1])
            self._has_ended.wait(pause)
        if self._ended is None:
            return
        # Lines may have come after the tail was read.
        if not self._read_console_logs():
            self._read_tail()
        self._put(Ended(self._ended, self._message))

    def _read_tail(self) -> bool:
        """Read the tail of the log, from the log's start, to the end of the tail; return whether there is a tail."""
        path = f"jobs/{quote(self.job_id, safe='')}/tail_console_logs/"
        read = 0
        try:
            with self.backend.transport.lines(path, accept=(404, 405)) as lines:
                if isinstance(lines, Answer):
                    return False
                for line in lines:
                    frame = _frame(line)
                    if frame.get("type") == "log":
                        for text in _texts(frame.get("data")):
                            read += 1
                            self._show(text, read)
                    elif frame.get("type") == "error":
                        self._message = str(frame.get("message") or self._message)
                    if frame.get("type") == "complete" or self._is_closed.is_set() or self._is_late():
                        return True
        except StreamBroken:
            pass
        except RemoteError as error:
            if error.status is not None and error.status < 500 and error.status != 429:
                raise
        return True

    def _is_late(self) -> bool:
        """Return whether the job has ended so long ago that no more lines come."""
        late = self.backend.transport.timeouts.late
        return self._has_ended.is_set() and time.monotonic() - self._ended_at > late

    def _read_console_logs(self) -> bool:
        """Show the lines that the log has more; return whether it could be read."""
        try:
            lines = self.backend.console_logs(self.job_id)
        except RemoteError as error:
            if error.status is not None and 300 <= error.status < 500 and error.status != 429:
                raise
            return False
        for number, line in enumerate(lines or (), start=1):
            self._show(line, number)
        return lines is not None

    def _show(self, line: str, number: int) -> None:
        if number > self._shown:
            self._shown = number
            self._put(Output("stdout", line + "\n"))


def _frame(line: str) -> Mapping[str, Any]:
    """Return the frame of a line of a tail; empty if it has none."""
    if not line.startswith("data:"):
        return {}
    try:
        found = json.loads(line[5:])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(data: Any) -> list[str]:
    """Return the lines of a frame, whose text may be a frame itself."""
    text = "" if data is None else str(data)
    inner = _frame(text)
    if inner.get("type") == "log" and "message" in inner:
        text = str(inner["message"])
    return lines_of(text)


class _Seen:
    """Makes events of what is new in a job's records of progress and metrics."""

    def __init__(self) -> None:
        self._progress: dict[str | None, float] = {}
        self._metrics: dict[str, str] = {}

    def new_events(self, job: Job) -> Iterator[Event]:
        """Yield the events."""
        for step, percent in _percents(job.progress):
            if self._progress.get(step) != percent:
                self._progress[step] = percent
                yield Event("progress", data={"current": percent, "total": 100}, step=step)
        for name, values in _steps(job.metrics).items():
            text = json.dumps(values, sort_keys=True, default=str)
            if isinstance(values, dict) and values and self._metrics.get(name) != text:
                self._metrics[name] = text
                yield Event("metrics", data=values, step=name)


def _steps(record: Any) -> Mapping[str, Any]:
    inner = record.get("record") if isinstance(record, dict) else None
    steps = inner.get("steps") if isinstance(inner, dict) else None
    return steps if isinstance(steps, dict) else {}


def _percents(record: Any) -> Iterator[tuple[str | None, float]]:
    steps = _steps(record)
    for name, state in steps.items():
        if isinstance(state, dict) and _is_percent(state.get("percent")):
            yield name, state["percent"]
    current = record.get("current_progress") if isinstance(record, dict) else None
    if not steps and isinstance(current, dict) and _is_percent(current.get("percent")):
        yield None, current["percent"]


def _is_percent(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

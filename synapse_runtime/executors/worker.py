"""The worker's side of a call, and what crosses the border: parcels with calls there, packed runs back.

A parcel says first where modules are to be found, then holds the pickled call: reading the call imports them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import pickle
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from synapse_runtime import assertions, compat, measurement, tracing, transport
from synapse_runtime.aside import Together
from synapse_runtime.audience import Audience
from synapse_runtime.capture import Captured, Interjection, OutputFiles, captured_logging
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import (
    ConfigError,
    ExecutionError,
    PluginError,
    ResultNotSerializable,
    ValidationError,
    safe_str,
)
from synapse_runtime.events import Event
from synapse_runtime.execution import ActionCall, ActionRun, check_params, failure, require_travel, run_call
from synapse_runtime.executors.crash import Notes
from synapse_runtime.executors.travel import Relocation
from synapse_runtime.modules import Stay, fresh_modules, is_installed_path, modules_of, top_level_names
from synapse_runtime.site import CALLERS_TMPDIR
from synapse_runtime.surroundings import process

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

# How long after its time limit an action may take to notice, before its worker is ended with it.
GRACE_SECONDS = 1.0
# What crosses the border does so one at a time: meanwhile names of modules are those of one plugin.
_border = threading.RLock()
# In a worker a plugin stays the current one, also between calls, for threads that its actions have left.
_stay = Stay()


@dataclass(frozen=True)
class Habits:
    """What holds in the caller's process for all its calls, until it changes.

    Attributes:
        import_paths: The caller's own additions to `sys.path`, for workers that see the same disk.
        audience: What of an action's logging and warnings is heard.
        rewritten: The plugin's modules whose assertions pytest rewrites where the call comes from.
        coverage: How the caller measures coverage, if it does.
        sdk_names: Whether names of `synapse-sdk` mean ours where the caller is.
    """

    import_paths: tuple[str, ...]
    audience: Audience
    rewritten: tuple[str, ...] = ()
    coverage: measurement.Settings | None = None
    sdk_names: bool = True


@dataclass(frozen=True)
class Parcel:
    """A call on its way.

    Attributes:
        name: What people call the action.
        job_id: The id of the run.
        timeout: Seconds that the action may take, or None.
        import_root: The directory of the plugin's modules, if there is a plugin.
        habits: The pickled `Habits` of the caller, the same bytes in each call until they change.
        call: What else there is in the `ActionCall`, pickled.
        buffers: Large buffers of the params, which are beside that pickle.
        abroad: Whether the worker does not see the caller's disk: what it needs of that has come along.
    """

    name: str
    job_id: str
    timeout: float | None
    import_root: str | None
    habits: bytes = field(repr=False)
    call: bytes = field(repr=False)
    buffers: transport.Buffers = field(default_factory=list, repr=False)
    abroad: bool = False

    def read(self, loads: Callable[[bytes, Iterable[Any]], Any] = transport.loads) -> ActionCall:
        """Return the call."""
        # Params are the action's own: it may write to them.
        action, params, env, *rest = loads(self.call, map(bytearray, self.buffers))
        return ActionCall(action, self.name, params, env, self.job_id, self.timeout, self.import_root, *rest)


# What is wrong with a call that is not even sent: the errors of `pack_call`, which are the run's.
REFUSALS = (ValidationError, ResultNotSerializable, ConfigError)


def pack_call(call: ActionCall) -> Parcel:
    """Validate the params here where that is possible, and pack the call.

    Raises:
        ValidationError: The params do not fit; nothing has been sent.
        ConfigError: What was to be run is no action.
        ResultNotSerializable: The params or the action cannot travel.
    """
    with _no_bytecode():
        params = check_params(call)
    buffers: transport.Buffers = []
    contents = (call.action, params, call.env, call.cwd, call.config_path, call.category, call.language)
    if transport.is_plain(contents):
        data = transport.dumps(contents)
    else:
        with _border, _importable(call.import_root):
            try:
                data = transport.dumps(contents, buffers)
            except Exception:
                require_travel(call.name, call.action, params)
                raise
    habits = _habits.pickled(call.import_root)
    return Parcel(call.name, call.job_id, call.timeout, call.import_root, habits, data, buffers)


class _OwnHabits:
    """The habits of this process, pickled anew only where they have changed."""

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[tuple[Any, ...], bytes]] = {}
        self._path: list[str] = []
        self._directory: str | None = None  # the working directory, where it matters
        self._absent: list[str] = []
        self._import_paths: tuple[str, ...] = ()

    def pickled(self, root: str | None) -> bytes:
        """Return them for a plugin whose modules are in this directory."""
        habits = (
            self._additions(),
            Audience.here(),
            assertions.rewritten(top_level_names(root)) if root is not None and assertions.are_rewritten() else (),
            measurement.settings(),
            compat.is_installed(),
        )
        known = self._known.get(root)
        if known is None or known[0] != habits:
            known = self._known[root] = (habits, pickle.dumps(Habits(*habits), protocol=5))
        return known[1]

    def _additions(self) -> tuple[str, ...]:
        """Return what is on `sys.path` beside Python's own and installed packages."""
        if (
            sys.path != self._path
            or (self._directory is not None and self._directory != os.getcwd())
            or any(map(os.path.isdir, self._absent))
        ):
            self._path = list(sys.path)
            self._directory = None if all(map(os.path.isabs, self._path)) else os.getcwd()
            paths = [os.path.abspath(path) for path in self._path]
            self._absent = [path for path in paths if not os.path.isdir(path)]
            self._import_paths = tuple(path for path in paths if not is_installed_path(path))
        return self._import_paths


_habits = _OwnHabits()


@functools.lru_cache(maxsize=4)
def _read_habits(pickled: bytes) -> Habits:
    habits: Habits = pickle.loads(pickled)
    return habits


def restore_temp_dir() -> None:
    """Let this worker's temporary files be where the caller's are, not among those of the cluster's own processes."""
    value = os.environ.pop(CALLERS_TMPDIR, None)
    if value:
        os.environ["TMPDIR"] = value
    elif value is not None:
        os.environ.pop("TMPDIR", None)
    tempfile.tempdir = None


def serve(
    parcel: Parcel,
    *,
    mode: str,
    node: str = "",
    notes: Notes,
    output: OutputFiles | None = None,
    moved: Relocation | None = None,
    on_event: Callable[[Event], object] | None = None,
    on_start: Callable[[], object] | None = None,
    on_end: Callable[[], Sequence[Interjection]] | None = None,
    apart: transport.Buffers | None = None,
) -> bytes:
    """Run a parcel's call in this process, a worker, and return the packed run.

    Args:
        parcel: The call.
        mode: The mode, for the record.
        node: Ray's id of this node, for the record.
        notes: Where this worker notes how it ends.
        output: Where this worker's output is collected, if here.
        moved: Where the caller's plugin is here, if this worker does not see the caller's disk.
        on_event: Called with each event as it happens.
        on_start: Called when everything is imported and checked, and the action starts.
        on_end: Called when the action has ended; returns where its output came among its events.
        apart: Takes large buffers of the result, which are not in what is returned then.
    """
    sys.dont_write_bytecode = True  # into a plugin's directory: a call that goes elsewhere leaves no trace
    habits = _read_habits(parcel.habits)
    paths = habits.import_paths
    if moved is not None:
        paths = moved.all_arrived(paths)
        parcel = replace(parcel, import_root=moved.arrived(parcel.import_root))
    if habits.sdk_names != compat.is_installed():
        (compat.install if habits.sdk_names else compat.uninstall)()
    _stay.at(parcel.import_root)
    for path in paths:
        if path not in sys.path and os.path.exists(path):
            sys.path.append(path)
    _meter.begin(habits.coverage, abroad=moved is not None)
    captured = Captured()
    notes.clear()
    assertions.rewrite_here(habits.rewritten)
    if output is not None:
        output.begin()
    with captured_logging(captured, habits.audience):
        on_start = _armed(parcel.timeout, notes, on_start)
        run, env = _run(parcel, mode, on_event, on_start, moved=moved)
    if on_end is not None:
        captured.interjections.extend(on_end())
    if output is not None:
        captured.stdout, captured.stderr = output.take()
    run.captured = captured
    run.node = node
    if moved is not None:
        moved.tell_of_captured(captured)
    return _pack_run(run, env, moved, apart)


def unpack_run(
    data: bytes, call: ActionCall | None = None, *, import_root: str | None = None, buffers: Iterable[Any] = ()
) -> ActionRun:
    """Read a packed run back in the caller's process.

    Args:
        data: What `serve` returned.
        call: The call that it answers, which knows where the plugin's modules are.
        import_root: Where they are, if the call is not known: another process made it.
        buffers: What `serve` put apart.
    """
    facts, output, said, result, result_buffers = pickle.loads(data, buffers=transport.read_only(buffers))
    name, duration, mode, job_id, pid, host, node = facts
    captured = Captured(*output or ())
    run = ActionRun(name, None, None, [], None, duration, mode, job_id, pid, host, node)
    if output is not None:
        run.captured = captured
    if said is None and (result is None or _is_builtin(result)):  # the common case needs no modules
        run.result = None if result is None else transport.loads(result)
        return run
    with _border, _no_bytecode(), _importable(import_root if call is None else call.import_root):
        if said is not None:
            events, captured.records, captured.warnings, captured.printed, captured.interjections, *rest = (
                transport.loads_at_home(said)
            )
            run.events = [Event(*event) for event in events]
            error, failed, measured = rest
            measurement.count(measured)
            if error is not None:
                run.error = _own_error(tracing.unpack(error))
                assertions.explain(run.error, failed)
        if run.error is None and result is not None:
            try:
                run.result = transport.loads_at_home(result, transport.read_only(result_buffers))
            except Exception as problem:  # noqa: BLE001 - reading runs any code of the result's classes
                run.error = ResultNotSerializable(
                    f"the result of {run.name} cannot be read here: {type(problem).__name__}: {safe_str(problem)}"
                )
                run.error.__cause__ = problem
    if call is not None and run.error is not None and not run.duration:
        run.error = _at_home(call, run.error)
    return run


def unpack_said(data: bytes, import_root: str | None) -> Any:
    """Read what a worker sent while its action was running, in the caller's process.

    Args:
        data: An event, or a batch of what was said and printed.
        import_root: The directory of the plugin's modules, which what was said may be made of.
    """
    if _is_builtin(data):
        return transport.loads(data)
    with _border, _importable(import_root):
        return transport.loads_at_home(data)


def run_in_fresh_modules(call: ActionCall, *, on_event: Callable[[Event], object] | None = None) -> ActionRun:
    """Run a call in this process as a new worker would: with modules of the plugin that are imported anew.

    What goes in and comes out crosses the border as on the way to a worker; so results are of the classes that the
    caller knows, not of those that the fresh modules made.
    """
    with process.alone():
        try:
            parcel = pack_call(call)
        except REFUSALS as error:
            return ActionRun(call.name, error=error, job_id=call.job_id)
        root = call.import_root
        fresh = contextlib.nullcontext() if root is None else fresh_modules(root, but=transport.shipped_by_value())
        with fresh:
            run, _ = _run(parcel, "local", on_event, None, transport.loads_at_home)
            data = _pack_run(run, None)  # it stays in this process
        return unpack_run(data, call)


class Forwarder:
    """Sends what a running action says and prints, in numbered batches, from another thread.

    Args:
        send: Takes a batch: its number, and what `unpack_said` reads, a list of events (as tuples) and of
            (stream, text) pairs, in order. It may fail: all of it comes home with the run.
        output: Where this worker's output is collected.
    """

    EVERY_SECONDS = 0.05

    def __init__(self, send: Callable[[int, bytes], object], output: OutputFiles) -> None:
        self._send = send
        self._output = output
        self._number = 0
        self._events = 0
        self._said: deque[Event | tuple[str, str]] = deque()  # and not taken into a batch yet
        self._interjections: list[Interjection] = []
        self._is_gathering = self._is_closed = False
        self._lock = threading.Lock()
        _ticker.begin(self._forward)

    def event(self, event: Event) -> None:
        """Take an event, to be sent soon."""
        # What was printed before the event comes before it, also where the other thread has just found that: it says so
        # before it looks, so here it is asked after.
        if self._output.has_news() or self._is_gathering:
            with self._lock:
                self._gather_output()
        self._said.append(event)

    def close(self) -> list[Interjection]:
        """End; return where output came among the events. What has not been sent comes home with the run."""
        _ticker.end()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._take_batch()
        return self._interjections

    def _forward(self) -> None:
        with self._lock:
            batch = [] if self._is_closed else self._take_batch()
        if batch:
            number, self._number = self._number, self._number + 1
            with contextlib.suppress(Exception):
                self._send(number, transport.dumps([_row(item) if isinstance(item, Event) else item for item in batch]))

    def _take_batch(self) -> list[Event | tuple[str, str]]:
        self._gather_output()
        batch = [self._said.popleft() for _ in range(len(self._said))]
        for item in batch:
            if isinstance(item, Event):
                self._events += 1
            else:
                stream, text = item
                self._interjections.append((self._events, stream, len(text)))
        return batch

    def _gather_output(self) -> None:
        self._is_gathering = True
        for stream, text in zip(("stdout", "stderr"), self._output.peek(), strict=True):
            if text:
                self._said.append((stream, text))
        self._is_gathering = False


class _Ticker:
    """Calls a function from time to time, in one thread that is kept: to start one for each call would take longer.

    Args:
        seconds: The time between.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tick: Callable[[], object] | None = None
        self._is_wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, tick: Callable[[], object]) -> None:
        """Call this from now on."""
        self._tick = tick
        self._is_wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="synapse-forwarder", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Call nothing any more, except what is just being called."""
        self._is_wanted.clear()
        self._tick = None

    def _loop(self) -> None:
        while self._is_wanted.wait():
            time.sleep(self._seconds)
            tick = self._tick
            if tick is not None:
                tick()


_ticker = _Ticker(Forwarder.EVERY_SECONDS)


def _row(event: Event) -> tuple[Any, ...]:
    """Return an event as plain data, which makes it many times cheaper to carry."""
    return event.kind, event.name, event.data, event.level, event.step, event.file, event.time


def _run(
    parcel: Parcel,
    mode: str,
    on_event: Callable[[Event], object] | None,
    on_start: Callable[[], object] | None,
    loads: Callable[[bytes, Iterable[Any]], Any] = transport.loads,
    moved: Relocation | None = None,
) -> tuple[ActionRun, Mapping[str, Any] | None]:
    """Run a parcel's call; return its run, and the variables that came with it."""
    try:
        call = parcel.read(loads)
        if moved is not None:
            call = moved.call(call)
    except Exception as error:  # noqa: BLE001 - reading the call imports any code of the user
        problem = ExecutionError(
            f"{parcel.name} cannot be imported in the worker: {type(error).__name__}: {safe_str(error)}"
        )
        problem.__cause__ = error
        return ActionRun(parcel.name, error=problem, mode=mode, job_id=parcel.job_id), None
    try:
        return run_call(call, mode=mode, on_event=on_event, on_start=on_start), call.env
    except KeyboardInterrupt as error:
        return ActionRun(call.name, error=failure(call.name, error), mode=mode, job_id=call.job_id), call.env
    finally:
        if call.timeout is not None:
            faulthandler.cancel_dump_traceback_later()


def _armed(timeout: float | None, notes: Notes, on_start: Callable[[], object] | None) -> Callable[[], object]:
    """Make ready for the moment when an action starts: listen to its assertions, and set its time limit.

    The worker ends itself where an action does not notice its limit, stuck in code that is not Python's.
    """

    def start() -> None:
        _notebook.begin()
        if timeout is not None:
            notes.end_after(timeout + GRACE_SECONDS)
        if on_start is not None:
            on_start()

    return start


# What this process, a worker, notes of assertions that fail, and measures of coverage.
_notebook = assertions.Notebook()
_meter = measurement.Meter()


def _pack_run(
    run: ActionRun,
    env: Mapping[str, Any] | None,
    moved: Relocation | None = None,
    apart: transport.Buffers | None = None,
) -> bytes:
    """Pack a run: plain data, and in that, pickled for themselves, what may be of any class.

    Args:
        run: The run.
        env: The variables that came with its call, which nothing is to show.
        moved: Where the caller's plugin is here.
        apart: Takes large buffers; without it they are in the pickle.
    """
    result: bytes | pickle.PickleBuffer | None = None
    buffers: transport.Buffers = []
    error = run.error
    if error is None and run.result is not None:
        try:
            result = transport.dumps_named(run.result, "result", buffers)
        except ResultNotSerializable as problem:
            error = problem
        else:
            result = result if len(result) < transport.APART_BYTES else pickle.PickleBuffer(result)
    packed = None
    if error is not None:
        if moved is not None:
            moved.tell_of(error)
        with tracing.hiding(PluginEnvironment(env).as_strings()):
            packed = tracing.pack(error, str if moved is None else moved.told)
    captured = Captured() if run.captured is None else run.captured
    measured = _meter.take(str if moved is None else moved.told_file)
    said = (
        [_row(event) for event in run.events],
        *(captured.records, captured.warnings, captured.printed, captured.interjections),
        *(packed, _notebook.take(error), measured),
    )
    facts = (run.name, run.duration, run.mode, run.job_id, run.pid, run.host, run.node)
    output = None if run.captured is None else (captured.stdout, captured.stderr)
    contents = (facts, output, transport.dumps(said) if any(said) else None, result, buffers)
    return pickle.dumps(contents, protocol=5, buffer_callback=None if apart is None else apart.append)


def _at_home(call: ActionCall, error: PluginError) -> PluginError:
    """Return why an action did not even start: what its worker says, unless it shows here that the call cannot travel.

    Some params can be pickled and not be read again, which costs too much to find out before each call.
    """
    try:
        require_travel(call.name, call.action, check_params(call))
    except PluginError as problem:
        return problem
    return error


def _own_error(error: BaseException) -> PluginError:
    error.__traceback__ = None  # the frames of its cause tell where; its own are of the worker's plumbing
    if isinstance(error, PluginError):
        return error
    return ExecutionError(safe_str(error))


@contextlib.contextmanager
def _writes_no_bytecode() -> Iterator[None]:
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# Keeps Python from writing `__pycache__` into a plugin's directory: a call that goes elsewhere leaves no trace.
_no_bytecode = Together(_writes_no_bytecode)


def _importable(root: str | None) -> contextlib.AbstractContextManager[None]:
    return modules_of(root) if root is not None and _is_here(root) else contextlib.nullcontext()


def _is_builtin(data: bytes) -> bool:
    """Tell whether a pickle is surely of builtin data alone: no instruction in it looks for a name in a module."""
    return isinstance(data, bytes) and len(data) < transport.APART_BYTES and pickle.STACK_GLOBAL not in data


def _is_here(root: str | None) -> bool:
    return root is not None and os.path.isdir(root)

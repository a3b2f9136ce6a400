"""Run one action in the current process: `run_call` takes an `ActionCall` and returns an `ActionRun`, in every mode."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synapse_runtime import action as actions
from synapse_runtime import serialization
from synapse_runtime.context import RuntimeContext
from synapse_runtime.core.event_loop import event_loop_restored, run_coroutine
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.process_settings import settings_restored
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.threads import CallThread, InterruptibleThread
from synapse_runtime.core.timeouts import time_limit
from synapse_runtime.environment import PluginEnvironment, Variables
from synapse_runtime.errors import (
    ConfigError,
    ExecutionError,
    ExecutionTimeout,
    PluginError,
    ResultMismatchWarning,
    ResultNotSerializable,
    described,
    is_from_code,
    safe_str,
)
from synapse_runtime.events import Event, Progress, StepMetrics, metrics_by_step
from synapse_runtime.plugins.plugin import import_entrypoint, with_config_line

if TYPE_CHECKING:
    from synapse_runtime.core.around import Around, Seed
    from synapse_runtime.core.log_capture import CapturedWarning
    from synapse_runtime.core.output_capture import Captured

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


@dataclass(frozen=True)
class ActionCall:
    """What to run, with which environment, working directory and import root. Can be pickled.

    Attributes:
        action: A class, a function, or an entrypoint `module:Name`, which is imported in the process that runs it.
        name: The action's name, for messages.
        params: A dict, or an instance of the action's params model, which is not validated again.
        env: The config file's `env` updated with the caller's; it overrides the process's own variables.
        job_id: The id of this run.
        timeout: Timeout of the action in seconds; None for no timeout.
        import_root: The directory that the plugin's modules are imported from, if there is a plugin.
        cwd: The working directory of the action: the plugin's directory, or the caller's working directory.
        config_path: The plugin's config file, for errors that have to be fixed there.
        category: The plugin's category, if its config file sets one.
        language: Two-letter language code of messages; None for the environment's language.
        around: Context managers that run around the action, in its process; the first is the outermost.
        seed: Seed of the random number generators for this call; None to leave them alone.
        sends_test_setup: Whether what a test has set up in this process goes along; see `Executor`.
    """

    action: Any
    name: str
    params: Any = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict, repr=False)  # values may be secrets
    job_id: str = ""
    timeout: float | None = None
    import_root: str | None = None
    cwd: str | None = None
    config_path: str | None = None
    category: str | None = None
    language: str | None = None
    around: tuple[Around, ...] = ()
    seed: Seed | None = None
    sends_test_setup: bool = False


@dataclass
class ActionRun:
    """The outcome of a run: the result or the error, and the action's events and output.

    Attributes:
        result: What the action returned; None if it failed.
        error: The error that the run failed with; None if it succeeded.
        events: The events that the action emitted through its context and logger, in order.
        captured: Output, log records and warnings of a worker: `stdout`, `stderr`, `records`, `warnings`. None in
            local mode, in which all of them go to this process's own output, loggers and filters.
        duration: Seconds that the action took.
        is_started: Whether the action was started: its params are valid.
        mode: `local`, `task`, `job` or `remote`.
        job_id: The id of this run.
        pid: Id of the process that it ran in; 0 if unknown.
        host: Name of the machine that it ran on; of a backend that does not say it, the backend's own.
        node: Ray's id of that node; empty in local mode.
    """

    name: str
    result: Any = None
    error: PluginError | None = None
    events: list[Event] = field(default_factory=list)
    captured: Captured | None = None
    duration: float = 0.0
    is_started: bool = False
    mode: str = "local"
    job_id: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    node: str = ""

    def unwrap(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result

    def add_location_note(self) -> None:
        """Add a note with mode, job, host and pid to the error of a failed action, and clear its own traceback.

        The traceback then starts where the error is raised to the caller.
        """
        if self.error is not None:
            self.error.__traceback__ = None
        if isinstance(self.error, ExecutionError) and self.is_started:
            process = f", pid {self.pid}" if self.pid else ""  # unknown to a backend without records
            self.error.add_note(f"{self.name} ran in {self.mode} mode, job {self.job_id}, on {self.host}{process}")

    @property
    def stdout(self) -> str:
        """What the action printed in a worker."""
        return self.captured.stdout if self.captured else ""

    @property
    def stderr(self) -> str:
        """What the action wrote to standard error in a worker."""
        return self.captured.stderr if self.captured else ""

    @property
    def records(self) -> list[logging.LogRecord]:
        """The `logging` records of all loggers in a worker."""
        return self.captured.records if self.captured else []

    @property
    def warnings(self) -> list[CapturedWarning]:
        """The Python warnings issued in a worker."""
        return self.captured.warnings if self.captured else []

    @property
    def progress(self) -> list[Progress]:
        """The progress reports, in order, as `(current, total)`."""
        return [
            Progress(event.data["current"], event.data["total"]) for event in self.events if event.kind == "progress"
        ]

    @property
    def metrics(self) -> dict[str, StepMetrics]:
        """The metrics by step: `run.metrics["training"]["loss"]`; every report is in `.history`."""
        return metrics_by_step(self.events)

    @property
    def logs(self) -> list[Event]:
        """The events of `ctx.log`, of messages and of logger calls, in order."""
        return [event for event in self.events if event.kind in ("log", "message")]


# How long to wait for an interrupted action in its own thread before abandoning the thread.
_STOP_SECONDS = 1.0


def new_job_id() -> str:
    """Return a new random id for a run."""
    return f"run-{os.urandom(8).hex()}"


def run_call(
    call: ActionCall,
    *,
    mode: str = "local",
    on_event: Callable[[Event], object] | None = None,
    on_start: Callable[[], object] | None = None,
    strict: bool = False,
    patched: Callable[[], AbstractContextManager[object]] | None = None,
) -> ActionRun:
    """Run an action in this process.

    Args:
        call: What to run.
        mode: The mode to record in the run.
        on_event: Called with each event as it happens, in the action's thread.
        on_start: Called after imports and validation, just before the action starts.
        strict: Pickle and unpickle params and result as a worker would, so that values that cannot be pickled fail
            in this process too.
        patched: Returns a context manager that applies the test's patches in this process, a worker.

    Returns:
        The run, with the action's error if it failed. Only Ctrl-C is raised.
    """
    run = ActionRun(call.name, mode=mode, job_id=call.job_id)
    append = run.events.append

    send: Callable[[Event], object] = append
    if on_event is not None:
        send = _in_order(append, on_event) if mode != "local" else _both(append, on_event)
    try:
        with shielded() as interrupts, event_loop_restored(), process_state_for(call):
            interrupts.call_interruptibly(lambda: _run_inside(run, call, send, on_start, patched, strict=strict))
    except PluginError as error:
        run.error = error
    return run


def _both(append: Callable[[Event], object], on_event: Callable[[Event], object]) -> Callable[[Event], object]:
    def emit(event: Event) -> None:
        append(event)
        on_event(event)

    return emit


def _in_order(append: Callable[[Event], object], on_event: Callable[[Event], object]) -> Callable[[Event], object]:
    """Return a function that any thread may call: both functions are called with the events in the same order."""
    lock, owner = threading.Lock(), os.getpid()

    def emit(event: Event) -> None:
        if os.getpid() != owner:  # a forked child process, whose events stay there
            append(event)
            return
        with lock:
            append(event)
            on_event(event)

    return emit


def _run_inside(
    run: ActionRun,
    call: ActionCall,
    emit: Callable[[Event], object],
    on_start: Callable[[], object] | None,
    patched: Callable[[], AbstractContextManager[object]] | None,
    *,
    strict: bool,
) -> None:
    """Run an action in the current process state and fill in `run`. Errors before the action starts are raised."""
    target = resolve(call)
    if patched is None:
        _run_target(target, run, call, emit, on_start, strict=strict)
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(patched())
        except BaseException as error:  # it imports users' modules
            if not is_from_code(error):
                raise
            text = f"{call.name}: the worker cannot apply the patches of the test: {described(error)}"
            raise ExecutionError(text) from error
        _run_target(target, run, call, emit, on_start, strict=strict)
        # It may be, or contain, an object that is as before when the patches are undone.
        result, run.result = run.result, None
        run.result = serialization.copy_result(result, "result")


def _run_target(
    target: Any,
    run: ActionRun,
    call: ActionCall,
    emit: Callable[[Event], object],
    on_start: Callable[[], object] | None,
    *,
    strict: bool,
) -> None:
    params = actions.validate_params(target, call.name, call.params)
    if strict:
        params = serialization.copy_params(params, "params")
        serialization.require_picklable_action(call.name, target)
    ctx = RuntimeContext(
        emit,
        PluginEnvironment.over(Variables(), call.env),
        call.job_id,
        language=call.language,
        name=call.name,
        category=call.category,
    )
    if on_start is not None:
        on_start()
    run.is_started = True
    started = time.perf_counter()
    try:
        with settings_restored, time_limit(call.timeout) as limit:
            if isinstance(threading.current_thread(), CallThread):  # which must end even if the action is stuck
                result = _run_in_thread(lambda: _invoke(target, params, ctx, call))
            else:
                result = _invoke(target, params, ctx, call)
    except BaseException as error:
        if not is_from_code(error):  # Ctrl-C, or an outer action's timeout
            raise
        run.error = ctx.params_error if error is ctx.params_error else failure(call.name, error)
        return
    finally:
        run.duration = max(time.perf_counter() - started, 0.0)  # a test may have stopped the clock
    if limit.stack is not None:
        text = f"{call.name} exceeded its timeout of {call.timeout:g} s"
        raise ExecutionTimeout(text, details=limit.stack, title="Stack of the action:")
    if call.timeout is not None and run.duration > call.timeout:
        raise ExecutionTimeout(
            f"{call.name} exceeded its timeout of {call.timeout:g} s: it took {run.duration:.1f} s and could not be "
            "interrupted, as it blocks signals or ran in native code"
        )
    run.result = _set_result(target, result, ctx, call, strict=strict)


def process_state_for(call: ActionCall) -> AbstractContextManager[None]:
    """Return a context manager that applies the call's import root, working directory and environment."""
    return process_state.applied(call.name, call.import_root, call.cwd, call.env)


@contextlib.contextmanager
def checked_params(call: ActionCall) -> Iterator[Any]:
    """Validate the params of a call in this process, with the process state that the action will have.

    Yields:
        The validated params, with that process state still applied; or the params as given if the action cannot be
        imported in this process: then the worker validates them.

    Raises:
        ValidationError: The params are invalid.
        ConfigError: The imported object is not an action.
    """
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(shielded())
        try:
            stack.enter_context(process_state_for(call))
            if isinstance(call.action, str):
                interrupts.call_interruptibly(lambda: import_entrypoint(call.action))
        except BaseException as error:
            if not is_from_code(error):
                raise
            params = call.params  # the worker may be able to import it, and reports the error if not
        else:
            params = interrupts.call_interruptibly(
                lambda: actions.validate_params(resolve(call), call.name, call.params)
            )
        yield params


def resolve(call: ActionCall) -> Any:
    """Return the class or function of a call, importing its entrypoint if necessary.

    Raises:
        ConfigError: The module or name does not exist, or is not an action.
        ExecutionError: Importing the module raised an exception, which is the cause.
    """
    if not isinstance(call.action, str):
        return call.action
    try:
        return actions.require_action(import_entrypoint(call.action))
    except ConfigError as error:
        raise with_config_line(error, call.name, call.config_path) from error
    except PluginError:
        raise
    except BaseException as error:
        if not is_from_code(error):
            raise
        module = call.action.partition(":")[0]
        raise ExecutionError(f"{call.name}: importing {module} failed: {described(error)}") from error


def require_picklable(name: str, target: Any, params: Any) -> None:
    """Raise `ResultNotSerializable` if the params or the action cannot be sent to a worker."""
    serialization.dumps_named(params, "params")
    serialization.require_picklable_action(name, target)


def _set_result(target: Any, result: Any, ctx: RuntimeContext, call: ActionCall, *, strict: bool) -> Any:
    """Check the action's return value, and return the result of the run."""
    if actions.is_generator(result):
        raise ResultNotSerializable(f"{call.name} returned a generator; return its items as a list instead")
    try:
        mismatch = actions.result_mismatch(target, call.name, result)
    except BaseException as error:  # raised by a custom validator
        if not is_from_code(error):
            raise
        raise ExecutionError(f"{call.name}: validating the result failed: {described(error)}") from error
    if mismatch is not None:
        ctx.log("result_mismatch", {"problem": mismatch}, level="warning")
        try:
            warnings.warn(mismatch, ResultMismatchWarning, stacklevel=2)
        except ResultMismatchWarning as warning:  # a filter turns warnings into errors
            raise failure(call.name, warning) from warning
    return serialization.copy_result(result, "result") if strict else result


def _invoke(target: Any, params: Any, ctx: RuntimeContext, call: ActionCall) -> Any:
    if call.around or call.seed is not None:
        from synapse_runtime.core import around

        result = None  # if a context manager suppresses the error of the action
        with around.entered(call.around), around.seeded(call.seed):
            result = _call_target(target, params, ctx)
        return result
    return _call_target(target, params, ctx)


def _call_target(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    result = actions.invoke(target, params, ctx)
    return _await(result) if inspect.iscoroutine(result) else result


def _await(coroutine: Any) -> Any:
    """Run a coroutine to completion on a new event loop: in a new thread if this thread already runs a loop."""
    if not _has_running_loop():  # not inside an `except RuntimeError`: it would become the context of action errors
        return run_coroutine(coroutine)
    return _run_in_thread(lambda: run_coroutine(coroutine))


def _run_in_thread(function: Callable[[], Any]) -> Any:
    return InterruptibleThread(function, name="synapse-action").start_and_wait(_STOP_SECONDS)


def _has_running_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def failure(name: str, error: BaseException) -> ExecutionError:
    """Return the error of a run whose action raised `error`, which becomes its cause."""
    if isinstance(error, SystemExit):
        text = f"{name} called sys.exit({error.code!r})"
    else:
        text = f"{name} failed: {type(error).__name__}: {safe_str(error)}"
    wrapped = ExecutionError(text)
    wrapped.__cause__ = error
    return wrapped

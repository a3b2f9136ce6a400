"""The kernel: an `ActionCall` goes in, an `ActionRun` comes out. Every mode calls `run_call`, wherever it runs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synapse_runtime import action as actions
from synapse_runtime import serialization
from synapse_runtime.context import RuntimeContext
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.threads import CallThread, InterruptibleThread
from synapse_runtime.core.timeouts import ActionInterrupted, time_limit
from synapse_runtime.environment import PluginEnvironment, Variables
from synapse_runtime.errors import (
    ConfigError,
    ExecutionError,
    ExecutionTimeout,
    PluginError,
    ResultMismatchWarning,
    ResultNotSerializable,
    safe_str,
)
from synapse_runtime.events import Event, Progress, StepMetrics, metrics_by_step
from synapse_runtime.plugins.plugin import import_entrypoint, with_config_line

if TYPE_CHECKING:
    from synapse_runtime.core.output_capture import Captured, CapturedWarning

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


@dataclass(frozen=True)
class ActionCall:
    """What to run, and in which surroundings. It pickles.

    Attributes:
        action: A class, a function, or an entrypoint `module:Name` that is imported where it runs.
        name: What people call the action.
        params: A dict, or an instance of the action's params model, which is not validated again.
        env: The config file's `env` and what was given over it; the process's own variables lie under it.
        job_id: The id of this run.
        timeout: Seconds that the action may take; None for any.
        import_root: The directory that the plugin's modules are imported from, if there is a plugin.
        cwd: The working directory of the action: the plugin's directory, or that of the caller.
        config_path: The plugin's config file, for errors that are to be mended there.
        category: The plugin's category, if its config file says one.
        language: Language of messages, in two letters; None for that of the environment.
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


@dataclass
class ActionRun:
    """What happened: the result or the error, and everything that the action said.

    Attributes:
        result: What the action returned; None if it failed.
        error: Why there is no result; None if there is one.
        events: What the action said through its context and logger, in order.
        captured: What it printed, logged and warned in a worker: `stdout`, `stderr`, `records`, `warnings`. In
            local mode None: there all that goes where this process's own goes.
        duration: Seconds that the action took.
        mode: `local`, `task`, `job` or `remote`.
        job_id: The id of this run.
        pid: Process that it ran in.
        host: Name of the machine that it ran on.
        node: Ray's id of that node; empty in local mode.
    """

    name: str
    result: Any = None
    error: PluginError | None = None
    events: list[Event] = field(default_factory=list)
    captured: Captured | None = None
    duration: float = 0.0
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
        """Let the error of a failed action say where it ran; its traceback begins where it is raised to the caller."""
        if self.error is not None:
            self.error.__traceback__ = None
        if isinstance(self.error, ExecutionError) and self.duration:
            self.error.add_note(
                f"{self.name} ran in {self.mode} mode, job {self.job_id}, on {self.host}, pid {self.pid}"
            )

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
        """Records of `logging`, of any logger, in a worker."""
        return self.captured.records if self.captured else []

    @property
    def warnings(self) -> list[CapturedWarning]:
        """Python warnings in a worker."""
        return self.captured.warnings if self.captured else []

    @property
    def progress(self) -> list[Progress]:
        """Each progress that was reported, in order, as `(current, total)`."""
        return [
            Progress(event.data["current"], event.data["total"]) for event in self.events if event.kind == "progress"
        ]

    @property
    def metrics(self) -> dict[str, StepMetrics]:
        """The metrics by step: `run.metrics["training"]["loss"]`; every report in `.history`."""
        return metrics_by_step(self.events)

    @property
    def logs(self) -> list[Event]:
        """Events of `ctx.log`, messages and logger calls, in order."""
        return [event for event in self.events if event.kind in ("log", "message")]


# How long an action in a thread of its own may take to stop, before it is left.
_STOP_SECONDS = 1.0


def new_job_id() -> str:
    """Return an id for a run that was given none."""
    return f"run-{os.urandom(8).hex()}"


def run_call(
    call: ActionCall,
    *,
    mode: str = "local",
    on_event: Callable[[Event], object] | None = None,
    on_start: Callable[[], object] | None = None,
    strict: bool = False,
) -> ActionRun:
    """Run an action in this process.

    Args:
        call: What to run.
        mode: The mode that it is run in, for the record.
        on_event: Called with each event as it happens, in the action's thread.
        on_start: Called when everything is imported and checked, just before the action starts.
        strict: Let params and result cross a border as they would on the way to a worker and back, so that
            what cannot is found here already.

    Returns:
        The run. Errors of the action are in it; only `KeyboardInterrupt` comes out of here.
    """
    run = ActionRun(call.name, mode=mode, job_id=call.job_id)
    append = run.events.append

    def emit(event: Event) -> None:
        append(event)
        on_event(event)  # type: ignore[misc]

    try:
        with process_state_for(call):
            _run_inside(run, call, append if on_event is None else emit, on_start, strict=strict)
    except PluginError as error:
        run.error = error
    return run


def _run_inside(
    run: ActionRun,
    call: ActionCall,
    emit: Callable[[Event], object],
    on_start: Callable[[], object] | None,
    *,
    strict: bool,
) -> None:
    """Run an action whose surroundings the process has, and write down what happens; refusals are raised."""
    target = resolve(call)
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
    started = time.perf_counter()
    try:
        with time_limit(call.timeout) as limit:
            if isinstance(threading.current_thread(), CallThread):  # which must end, stuck action or not
                result = _in_a_thread(lambda: _invoke(target, params, ctx))
            else:
                result = _invoke(target, params, ctx)
    except (KeyboardInterrupt, ActionInterrupted):  # ActionInterrupted: of an action that this one runs inside
        raise
    except BaseException as error:  # noqa: BLE001 - whatever an action raises is its outcome
        run.error = ctx.refusal if error is ctx.refusal else failure(call.name, error)
        return
    finally:
        run.duration = time.perf_counter() - started
    if limit.stack is not None:
        text = f"{call.name} did not end within {call.timeout:g} s"
        raise ExecutionTimeout(text, details=limit.stack, title="It was here:")
    run.result = _set_result(target, result, ctx, call, strict=strict)


def process_state_for(call: ActionCall) -> AbstractContextManager[None]:
    """Return a block inside which this process has the surroundings that the call asks for."""
    return process_state.applied(call.import_root, call.cwd, call.env)


def check_params(call: ActionCall) -> Any:
    """Validate the params of a call here, in the surroundings that the action will have.

    Returns:
        The validated params, or the params as they are where the action cannot be imported in this process:
        then the worker, which can, does it.

    Raises:
        ValidationError: The params do not fit.
        ConfigError: What could be imported is no action.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(process_state_for(call))
            if isinstance(call.action, str):
                import_entrypoint(call.action)
        except Exception:  # noqa: BLE001 - the worker tells why, and may well succeed
            return call.params
        return actions.validate_params(resolve(call), call.name, call.params)


def resolve(call: ActionCall) -> Any:
    """Return the class or function that the call means, imported where necessary.

    Raises:
        ConfigError: There is no such module or name, or it is no action.
        ExecutionError: The module failed while it was imported; the cause is what it raised.
    """
    if not isinstance(call.action, str):
        return call.action
    try:
        return actions.require_action(import_entrypoint(call.action))
    except ConfigError as error:
        raise with_config_line(error, call.name, call.config_path) from error
    except PluginError:
        raise
    except Exception as error:
        module = call.action.partition(":")[0]
        raise ExecutionError(
            f"{call.name}: importing {module} failed: {type(error).__name__}: {safe_str(error)}"
        ) from error


def require_picklable(name: str, target: Any, params: Any) -> None:
    """Raise `ResultNotSerializable` where the params or the action itself cannot reach a worker."""
    serialization.dumps_named(params, "params")
    serialization.require_picklable_action(name, target)


def _set_result(target: Any, result: Any, ctx: RuntimeContext, call: ActionCall, *, strict: bool) -> Any:
    """Check what an action returned, and return the result of the run."""
    if actions.is_generator(result):
        raise ResultNotSerializable(f"{call.name} returned a generator; return its items as a list instead")
    try:
        mismatch = actions.result_mismatch(target, call.name, result)
    except Exception as error:  # of a validator of the author's
        raise ExecutionError(
            f"{call.name}: checking the result failed: {type(error).__name__}: {safe_str(error)}"
        ) from error
    if mismatch is not None:
        ctx.log("result_mismatch", {"problem": mismatch}, level="warning")
        try:
            warnings.warn(mismatch, ResultMismatchWarning, stacklevel=2)
        except ResultMismatchWarning as warning:  # where warnings are errors
            raise failure(call.name, warning) from warning
    return serialization.copy_result(result, "result") if strict else result


def _invoke(target: Any, params: Any, ctx: RuntimeContext) -> Any:
    result = actions.invoke(target, params, ctx)
    return _await(result) if inspect.iscoroutine(result) else result


def _await(coroutine: Any) -> Any:
    """Run a coroutine to its end, on a loop of its own: in a thread of its own where this one runs a loop already."""
    import asyncio

    if not _has_running_loop():  # not in the handler below: what the action raises would come with its exception
        return asyncio.run(coroutine)
    return _in_a_thread(lambda: asyncio.run(coroutine))


def _in_a_thread(function: Callable[[], Any]) -> Any:
    return InterruptibleThread(function, name="synapse-action").start_and_wait(_STOP_SECONDS)


def _has_running_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def failure(name: str, error: BaseException) -> ExecutionError:
    """Return the error of a run whose action raised this; its cause is what the action raised."""
    if isinstance(error, SystemExit):
        text = f"{name} ended with sys.exit({error.code!r})"
    else:
        text = f"{name} failed: {type(error).__name__}: {safe_str(error)}"
    wrapped = ExecutionError(text)
    wrapped.__cause__ = error
    return wrapped

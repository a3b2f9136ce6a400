"""The worker: it runs calls, each a `CallRequest` that it answers with an encoded run."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from synapse_runtime import serialization
from synapse_runtime.class_copies import stand_in_modules
from synapse_runtime.core import assertions, coverage_support
from synapse_runtime.core.changed_variables import ChangedVariables
from synapse_runtime.core.execution import ActionCall, ActionRun, failure, run_call
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.log_capture import LogEntry, capture_logging
from synapse_runtime.core.output_capture import Captured, OutputFiles, OutputPosition
from synapse_runtime.core.process_state import process_state, variables_changed
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import (
    ActionInterrupted,
    ExecutionError,
    ProcessesLeftWarning,
    described,
    is_from_code,
)
from synapse_runtime.events import Event
from synapse_runtime.executors import child_processes
from synapse_runtime.executors.child_processes import ChildProcesses
from synapse_runtime.executors.journal import Journals
from synapse_runtime.executors.patch_transfer import ReceivedPatches
from synapse_runtime.executors.path_mapping import PathMap
from synapse_runtime.executors.process_exit import CrashLog
from synapse_runtime.executors.protocol import (
    ENCODE_CALL_ERRORS,
    CallRequest,
    decode_request,
    decode_run,
    encode_call,
    encode_run,
    event_to_tuple,
)
from synapse_runtime.plugins.module_scopes import ModuleScope, fresh_modules
from synapse_runtime.redaction import HiddenValues, Secrets
from synapse_runtime.sdk_compat import import_hook

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# How long an action may run past its timeout before its worker exits.
GRACE_SECONDS = 1.0
# In a worker the plugin's modules stay active between calls, for threads that its actions have left running.
_module_scope = ModuleScope()
# Failed assertions and coverage of this process, a worker.
_failure_recorder = assertions.FailureRecorder()
_coverage_collector = coverage_support.CoverageCollector()


def accept_interrupts() -> None:
    """Let SIGINT interrupt this process, and those that its actions start, as in a program that a user has started.

    Ray blocks it in its processes, and what starts a cluster ignores it; child processes inherit both.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def print_all_text() -> None:
    """Encode what is printed as pytest does, so that all text can be printed, whatever the locale is."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]


def serve(
    request: CallRequest,
    *,
    mode: str,
    node: str = "",
    crash_log: CrashLog,
    journals: Journals,
    output: OutputFiles | None = None,
    path_map: PathMap | None = None,
    on_event: Callable[[Event], object] | None = None,
    on_start: Callable[[], object] | None = None,
    on_log: Callable[[LogEntry], object] | None = None,
    on_end: Callable[[], Sequence[OutputPosition]] | None = None,
    encode: Callable[..., bytes] = encode_run,
    out_of_band: serialization.Buffers | None = None,
) -> bytes:
    """Run a call in this process, a worker, and return the encoded run.

    Args:
        request: The call.
        mode: The mode to record in the run.
        node: Ray's id of this node, to record in the run.
        crash_log: Where this worker records how it exits.
        journals: Where it records what the action has emitted.
        output: The captured output of this worker, if it captures output.
        path_map: Maps the caller's paths to this worker's, if this worker does not share the caller's file system.
        on_event: Called with each event as it happens.
        on_start: Called after imports and validation, just before the action starts.
        on_log: Called with each log record, warning and unhandled error at once.
        on_end: Called when the action has ended; returns the positions of its output between its events.
        encode: Encodes the run, with the arguments of `encode_run`.
        out_of_band: If given, large buffers of the result are added to it and are not in the encoded run.
    """
    sys.dont_write_bytecode = True  # no `__pycache__` in the plugin's directory
    settings = request.settings
    import_path = settings.import_path
    if path_map is not None:
        import_path = import_path.to_worker(path_map)
        request = replace(request, import_root=path_map.to_worker(request.import_root))
    if settings.sdk_names != import_hook.is_installed():
        (import_hook.install if settings.sdk_names else import_hook.uninstall)()
    _module_scope.activate(request.import_root)
    captured = Captured()
    crash_log.reset()
    journals.reset()
    assertions.enable_rewriting(settings.rewritten_modules)
    if output is not None:
        output.start()

    def record_event(event: Event) -> None:
        if on_event is not None:
            on_event(event)
        journals.events.add(event_to_tuple(event))

    def record_log(entry: LogEntry) -> None:
        captured.add(entry)
        if on_log is not None:
            on_log(entry)
        journals.logs.add(entry)

    with (
        variables_changed(dict(settings.environ)),
        import_path.applied(request.import_root),
        stand_in_modules(),
        capture_logging(
            record_log, settings.logging, settings.hooks, to_caller=str if path_map is None else path_map.to_caller
        ),
    ):
        _coverage_collector.start(settings.coverage, shares_filesystem=path_map is None)
        processes = ChildProcesses()
        on_start = _prepare_start(request.timeout, crash_log, on_start)
        patches = request.received_patches()
        try:
            patched = None if patches is None else patches.applied
            run, call = _run(request, mode, record_event, on_start, patched, path_map=path_map)
        except ActionInterrupted:
            stopped = ExecutionError(f"{request.name} was stopped by its caller")
            run, call = ActionRun(request.name, error=stopped, mode=mode, job_id=request.job_id), None
        finally:
            if request.timeout is not None:
                faulthandler.cancel_dump_traceback_later()
        _report_left_processes(processes, run, stop_now=mode == "job")
    if on_end is not None:
        captured.output_positions.extend(on_end())
    if output is not None:
        captured.stdout, captured.stderr = output.read_all()
    run.captured = captured
    run.node = node
    return encode(
        run,
        events=journals.events.since(0) if journals.events.count == len(run.events) else None,
        hidden=None if run.error is None and mode != "job" else hidden_values(call, settings.masked, settings.environ),
        recorder=_failure_recorder,
        collector=_coverage_collector,
        path_map=path_map,
        patches=patches,
        out_of_band=out_of_band,
    )


def run_in_fresh_modules(call: ActionCall, *, on_event: Callable[[Event], object] | None = None) -> ActionRun:
    """Run a call in this process as a new worker would: the plugin's modules are imported again.

    Params and result are encoded and decoded as for a worker, so results are instances of the caller's classes, not of
    the classes that the newly imported modules define.
    """
    with shielded() as interrupts, process_state.exclusive():
        try:
            encoded = encode_call(call)
        except ENCODE_CALL_ERRORS as error:
            return ActionRun(call.name, error=error, job_id=call.job_id)
        request = decode_request(encoded.message())
        root = call.import_root
        kept = serialization.modules_pickled_by_value()
        patches = ReceivedPatches(request.patches) if request.patches else None
        with contextlib.nullcontext() if root is None else fresh_modules(root, but=kept):
            patched = None if patches is None else patches.applied
            run, _ = interrupts.call_interruptibly(
                partial(_run, request, "local", on_event, None, patched, serialization.loads_in_caller)
            )
            # The error does not leave this process, so no values are redacted.
            data = encode_run(run, recorder=_failure_recorder, collector=_coverage_collector, patches=patches)
        return decode_run(data, encoded.call, patches=encoded.patches)


def _run(
    request: CallRequest,
    mode: str,
    on_event: Callable[[Event], object] | None,
    on_start: Callable[[], object] | None,
    patched: Callable[[], AbstractContextManager[None]] | None,
    loads: Callable[[Any, Iterable[Any]], Any] = serialization.loads,
    path_map: PathMap | None = None,
) -> tuple[ActionRun, ActionCall | None]:
    """Run the call of a request; return the run, and the call if it could be read."""
    try:
        call = request.read_call(loads)
        if path_map is not None:
            call = path_map.call(call)
    except BaseException as error:  # reading the call imports users' code
        if not is_from_code(error):
            raise
        problem = ExecutionError(f"{request.name} cannot be imported in the worker: {described(error)}")
        problem.__cause__ = error
        return ActionRun(request.name, error=problem, mode=mode, job_id=request.job_id), None
    try:
        return run_call(call, mode=mode, on_event=on_event, on_start=on_start, patched=patched), call
    except KeyboardInterrupt as error:
        return ActionRun(call.name, error=failure(call.name, error), mode=mode, job_id=call.job_id), call


def hidden_values(call: ActionCall | None, masked: Sequence[str], environ: ChangedVariables = ()) -> HiddenValues:
    """Return the values that must not appear in the report of a failed run.

    These are the variables of the call; of those that this process has inherited, such as the cluster's token, and of
    the params, the ones that are named like secrets; and what the user has named.
    """
    env = {} if call is None else PluginEnvironment(call.env).as_strings()
    found = [
        Secrets.of_variables(dict(os.environ), masked),
        Secrets.of_variables({name: value for name, value in environ if value is not None}, masked),
        Secrets.of_variables(env, masked),
        Secrets.of_params(None if call is None else call.params, masked),
    ]
    return HiddenValues(
        env,
        secrets=chain.from_iterable(each.secrets for each in found),
        masked=chain.from_iterable(each.masked for each in found),
    )


def _report_left_processes(processes: ChildProcesses, run: ActionRun, *, stop_now: bool) -> None:
    """Warn about processes that a call has left running, and stop them: now, or when this worker ends.

    A warm worker keeps them, as local mode does: a later call may use them.
    """
    left = processes.left()
    if not left:
        return
    if stop_now:
        child_processes.stop(left)
    else:
        child_processes.stop_with_this_process(left)
    end = "have been stopped" if stop_now else "will be killed when its worker ends"
    text = f"{run.name} has left processes running, which {end}: {child_processes.describe(left)}"
    try:
        warnings.warn(text, ProcessesLeftWarning, stacklevel=2)
    except ProcessesLeftWarning as warning:  # a filter turns warnings into errors
        if run.error is None:
            run.result, run.error = None, failure(run.name, warning)


def _prepare_start(
    timeout: float | None, crash_log: CrashLog, on_start: Callable[[], object] | None
) -> Callable[[], object]:
    """Return an `on_start` that also starts to record assertions and sets the worker's own timeout.

    The worker exits if an action cannot be interrupted at its timeout, being stuck in native code.
    """

    def start() -> None:
        _failure_recorder.start()
        if timeout is not None:
            crash_log.exit_after(timeout + GRACE_SECONDS)
        if on_start is not None:
            on_start()

    return start

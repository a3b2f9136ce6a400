"""The worker: it serves calls, each a message in and a message out."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from synapse_runtime import serialization
from synapse_runtime.core import assertions, coverage_support
from synapse_runtime.core.execution import ActionCall, ActionRun, failure, run_call
from synapse_runtime.core.output_capture import Captured, OutputFiles, OutputPosition, capture_logging
from synapse_runtime.core.process_state import process_state
from synapse_runtime.core.tempdirs import CALLERS_TMPDIR
from synapse_runtime.errors import ExecutionError, safe_str
from synapse_runtime.events import Event
from synapse_runtime.executors.path_mapping import PathMap
from synapse_runtime.executors.process_exit import CrashLog
from synapse_runtime.executors.protocol import (
    REFUSALS,
    CallRequest,
    decode_request,
    decode_run,
    encode_call,
    encode_run,
)
from synapse_runtime.plugins.module_scopes import ModuleScope, fresh_modules
from synapse_runtime.sdk_compat import import_hook

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help

# How long after its time limit an action may take to notice, before its worker exits with it.
GRACE_SECONDS = 1.0
# In a worker a plugin stays active, also between calls, for threads that its actions have left.
_module_scope = ModuleScope()
# What this process, a worker, records of failed assertions, and measures of coverage.
_failure_recorder = assertions.FailureRecorder()
_coverage_collector = coverage_support.CoverageCollector()


def restore_temp_dir() -> None:
    """Use the caller's temporary directory for this worker's temporary files, not the cluster's."""
    value = os.environ.pop(CALLERS_TMPDIR, None)
    if value:
        os.environ["TMPDIR"] = value
    elif value is not None:
        os.environ.pop("TMPDIR", None)
    tempfile.tempdir = None


def serve(
    request: CallRequest,
    *,
    mode: str,
    node: str = "",
    crash_log: CrashLog,
    output: OutputFiles | None = None,
    path_map: PathMap | None = None,
    on_event: Callable[[Event], object] | None = None,
    on_start: Callable[[], object] | None = None,
    on_end: Callable[[], Sequence[OutputPosition]] | None = None,
    out_of_band: serialization.Buffers | None = None,
) -> bytes:
    """Run a call in this process, a worker, and return the encoded run.

    Args:
        request: The call.
        mode: The mode, for the record.
        node: Ray's id of this node, for the record.
        crash_log: Where this worker records how it exits.
        output: Where this worker's output is collected, if here.
        path_map: Where the caller's plugin is here, if this worker does not share the caller's file system.
        on_event: Called with each event as it happens.
        on_start: Called when everything is imported and validated, and the action starts.
        on_end: Called when the action has ended; returns where its output came among its events.
        out_of_band: Takes large buffers of the result, which are not in what is returned then.
    """
    sys.dont_write_bytecode = True  # into a plugin's directory: a call to a worker leaves no trace
    settings = request.settings
    paths = settings.import_paths
    if path_map is not None:
        paths = path_map.all_to_worker(paths)
        request = replace(request, import_root=path_map.to_worker(request.import_root))
    if settings.sdk_names != import_hook.is_installed():
        (import_hook.install if settings.sdk_names else import_hook.uninstall)()
    _module_scope.activate(request.import_root)
    for path in paths:
        if path not in sys.path and os.path.exists(path):
            sys.path.append(path)
    _coverage_collector.start(settings.coverage, shares_filesystem=path_map is None)
    captured = Captured()
    crash_log.reset()
    assertions.enable_rewriting(settings.rewritten_modules)
    if output is not None:
        output.start()
    with capture_logging(captured, settings.logging):
        on_start = _prepare_start(request.timeout, crash_log, on_start)
        run, env = _run(request, mode, on_event, on_start, path_map=path_map)
    if on_end is not None:
        captured.output_positions.extend(on_end())
    if output is not None:
        captured.stdout, captured.stderr = output.read_all()
    run.captured = captured
    run.node = node
    if path_map is not None:
        path_map.rewrite_captured(captured)
    return encode_run(
        run,
        env=env,
        recorder=_failure_recorder,
        collector=_coverage_collector,
        path_map=path_map,
        out_of_band=out_of_band,
    )


def run_in_fresh_modules(call: ActionCall, *, on_event: Callable[[Event], object] | None = None) -> ActionRun:
    """Run a call in this process as a new worker would: with modules of the plugin that are imported again.

    Params and result are encoded and decoded as for a worker; so results are instances of the classes that the caller
    knows, not of those that the fresh modules define.
    """
    with process_state.exclusive():
        try:
            encoded = encode_call(call)
        except REFUSALS as error:
            return ActionRun(call.name, error=error, job_id=call.job_id)
        request = decode_request(encoded.message())
        root = call.import_root
        kept = serialization.modules_pickled_by_value()
        with contextlib.nullcontext() if root is None else fresh_modules(root, but=kept):
            run, _ = _run(request, "local", on_event, None, serialization.loads_in_caller)
            # It stays in this process, so there is no value to redact.
            data = encode_run(run, env=None, recorder=_failure_recorder, collector=_coverage_collector)
        return decode_run(data, encoded.call)


def _run(
    request: CallRequest,
    mode: str,
    on_event: Callable[[Event], object] | None,
    on_start: Callable[[], object] | None,
    loads: Callable[[Any, Iterable[Any]], Any] = serialization.loads,
    path_map: PathMap | None = None,
) -> tuple[ActionRun, Mapping[str, Any] | None]:
    """Run the call of a request; return its run and its variables."""
    try:
        call = request.read_call(loads)
        if path_map is not None:
            call = path_map.call(call)
    except Exception as error:  # noqa: BLE001 - reading the call imports any code of the user
        problem = ExecutionError(
            f"{request.name} cannot be imported in the worker: {type(error).__name__}: {safe_str(error)}"
        )
        problem.__cause__ = error
        return ActionRun(request.name, error=problem, mode=mode, job_id=request.job_id), None
    try:
        return run_call(call, mode=mode, on_event=on_event, on_start=on_start), call.env
    except KeyboardInterrupt as error:
        return ActionRun(call.name, error=failure(call.name, error), mode=mode, job_id=call.job_id), call.env
    finally:
        if call.timeout is not None:
            faulthandler.cancel_dump_traceback_later()


def _prepare_start(
    timeout: float | None, crash_log: CrashLog, on_start: Callable[[], object] | None
) -> Callable[[], object]:
    """Make ready for the moment when an action starts: listen to its assertions, and set its time limit.

    The worker ends itself where an action does not notice its limit, stuck in code that is not Python's.
    """

    def start() -> None:
        _failure_recorder.start()
        if timeout is not None:
            crash_log.exit_after(timeout + GRACE_SECONDS)
        if on_start is not None:
            on_start()

    return start

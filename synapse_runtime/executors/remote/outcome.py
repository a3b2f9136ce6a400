"""The run of a job that has ended: from its record, or from what a plain backend knows."""

from __future__ import annotations

import linecache
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from synapse_runtime.core import assertions, coverage_support
from synapse_runtime.core.execution import ActionRun
from synapse_runtime.core.output_capture import Captured, last_lines
from synapse_runtime.errors import (
    ExecutionError,
    ExecutionTimeout,
    RemoteError,
    ResultNotInJson,
    ValidationError,
    WorkerCrashed,
    is_from_code,
)
from synapse_runtime.executors.protocol import plugin_modules
from synapse_runtime.executors.remote.backend import Job
from synapse_runtime.executors.remote.follow import checked_event
from synapse_runtime.json_values import not_decoded
from synapse_runtime.plugins.plugin import import_entrypoint
from synapse_runtime.run_record import FrameRecord, RunRecord

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.patches import JsonPatches

MODE: Final = "remote"
_TRACEBACK: Final = "Traceback (most recent call last):"
_LOG_LINES = 2000
# Errors by the word that the backend has for them.
_ERRORS: Final[dict[str, Callable[[str], ExecutionError | ValidationError]]] = {
    "timeout": ExecutionTimeout,
    "infrastructure": WorkerCrashed,
    "validation_error": ValidationError,
}


def run_of_record(
    record: RunRecord,
    job_id: str,
    *,
    import_root: str | None,
    entrypoint: str | None,
    patches: JsonPatches | None = None,
) -> ActionRun:
    """Return the run of a record.

    Args:
        record: The record.
        job_id: The job.
        import_root: The directory of the plugin's modules, if there is a local plugin.
        entrypoint: The action's entrypoint in it. It is imported before the record is read, as only classes of modules
            that are imported can be used.
        patches: The patches of the call, whose mocks are called as those of the backend were.

    Raises:
        InvalidRecord: An event is malformed.
    """
    with plugin_modules(import_root):
        if import_root is not None and entrypoint is not None:
            try:
                import_entrypoint(entrypoint)
            except BaseException as error:  # then what needs its classes is shown as text
                if not is_from_code(error):
                    raise
        run = _with_local_files(record, import_root).to_run(import_root)
        if record.caller is not None:
            coverage_support.merge(record.caller.measured)
            assertions.explain(run.error, record.caller.failed_assertions(import_root))
            if patches is not None and record.caller.mock_calls is not None:
                try:
                    patches.repeat_calls(record.caller.mock_calls, import_root)
                except ResultNotInJson as error:
                    run.result, run.error = None, error
    run.events = [*map(checked_event, run.events)]
    run.mode, run.job_id = MODE, job_id
    needs = not_decoded(run.result)
    if needs is not None and run.error is None:
        text = f"the result of {run.name} contains {needs}, which JSON does not have: return plain data or a model"
        run.result, run.error = None, ResultNotInJson(text)
    return run


def _with_local_files(record: RunRecord, import_root: str | None) -> RunRecord:
    """Return the record with the files of the local plugin in its tracebacks, where they have the same line."""
    if record.error is None or import_root is None:
        return record
    errors = [
        error.model_copy(update={"frames": [_with_local_file(frame, import_root) for frame in error.frames]})
        for error in record.error
    ]
    return record.model_copy(update={"error": errors})


def _with_local_file(frame: FrameRecord, import_root: str) -> FrameRecord:
    module, source = frame.module.replace(".", "/"), frame.source.strip()
    for name in (f"{module}.py", f"{module}/__init__.py"):
        file = os.path.join(import_root, name)
        if source and frame.file.endswith(f"/{name}") and frame.file != file:
            linecache.checkcache(file)
            if linecache.getline(file, frame.line).strip() == source:
                return frame.model_copy(update={"file": file})
    return frame


def run_of_job(job: Job, host: str, *, name: str, output: str, message: str, started: float) -> ActionRun:
    """Return the run of a job of a plain backend.

    Args:
        job: Its final state.
        host: The backend's URL.
        name: The action's name.
        output: Its log.
        message: What the log's stream has said about a failure.
        started: When it was submitted, by the monotonic clock, for a backend that does not say how long it took.
    """
    run = ActionRun(name, mode=MODE, job_id=job.id, pid=0, host=urlsplit(host).hostname or host, is_started=True)
    run.captured = Captured(output)
    run.duration = time.monotonic() - started if job.took is None else job.took
    if job.status == "SUCCEEDED":
        run.result = job.result
    elif job.status == "STOPPED":
        run.error = ExecutionError(f"{name}: job {job.id} was stopped")
    else:
        kind, text = _failure(job, message)
        error = _ERRORS.get(kind, ExecutionError)(f"{name} failed: {text}")
        run.is_started = not isinstance(error, ValidationError)
        if isinstance(error, ExecutionError):
            traceback = last_traceback(output)
            if traceback:
                error.attach("Its log ends with:", traceback)
            else:
                error.attach("Last output:", last_lines(output))
        run.error = error
    return run


def _failure(job: Job, message: str) -> tuple[str, str]:
    """Return the kind of a failure, if known, and its text."""
    of_meta = job.meta.get("error") if isinstance(job.meta, dict) else None
    of_meta = of_meta if isinstance(of_meta, dict) else {}
    of_result = job.result.get("error") if isinstance(job.result, dict) else None
    texts = (of_result, of_meta.get("message"), message)
    text = next((str(text) for text in texts if text), "the backend does not say why")
    return str(of_meta.get("error_type") or ""), text


def last_traceback(log: str) -> str:
    r"""Return the traceback at the end of a log; empty if there is none.

    Example:
        >>> log = "epoch 1\nTraceback (most recent call last):\n  File \"a.py\", line 1\nValueError: no weights\n"
        >>> last_traceback(log).splitlines()[-1]
        'ValueError: no weights'
        >>> last_traceback(log + "done\n" * 30)
        ''
    """
    lines = log.splitlines()[-_LOG_LINES:]
    starts = [number for number, line in enumerate(lines) if line.startswith(_TRACEBACK)]
    if not starts:
        return ""
    # After the frames, which are indented, comes the error, whose message may have a few lines.
    indented = [number for number in range(starts[-1] + 1, len(lines)) if lines[number].startswith("  ")]
    if not indented or len(lines) - indented[-1] > 20:
        return ""
    first = starts[-1]
    for start in reversed(starts[:-1]):  # those that it is caused by
        if not any("exception" in line for line in lines[first - 3 : first]):
            break
        first = start
    return "\n".join(lines[first:])


def answer_run(name: str, value: Any, host: str, *, started: float) -> ActionRun:
    """Return the run of a served action, whose answer is its result."""
    return ActionRun(
        name,
        result=value,
        mode=MODE,
        pid=0,
        host=urlsplit(host).hostname or host,
        is_started=True,
        duration=time.monotonic() - started,
    )


def ticket_of(name: str, value: Any) -> Any:
    """Return the ticket of a deferred answer; None if the answer is not deferred any more.

    Raises:
        ExecutionError: The action failed.
        RemoteError: The application does not know the ticket.
    """
    if not isinstance(value, dict) or value.get("__synapse_deferred__") is not True:
        return None
    status = value.get("status")
    if status == "pending" and value.get("ticket") is not None:
        return value["ticket"]
    if status == "failed":
        raise ExecutionError(f"{name} failed: {value.get('error') or 'the application does not say why'}")
    raise RemoteError(f"{name}: the application has lost the deferred answer ({status}); run it again")

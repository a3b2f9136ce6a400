"""What a run has emitted, as the APIs show it: progress, metrics, console lines, log entries."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Any, Final

import pydantic

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.errors import ExecutionError, PluginError, WorkerCrashed
from synapse_runtime.run_record import RunRecord
from synapse_runtime.server.store import FAILED, STOPPED, SUCCEEDED, Batch, Job
from synapse_runtime.server.wire import plain

MAX_LOG_BYTES: Final = 64_000_000
_MAX_LINE = 10_000
_KINDS: Final = {"progress": "progress", "metrics": "metric", "log": "event", "message": "event"}
_ERROR_TYPES: Final = {
    "ValidationError": "validation_error",
    "ExecutionTimeout": "timeout",
    "WorkerCrashed": "infrastructure",
    "ClusterError": "resource_unavailable",
}


class _Problem(pydantic.BaseModel):
    """One of pydantic's errors."""

    loc: list[str | int]
    msg: str
    type: str


_PROBLEMS: Final = pydantic.TypeAdapter(list[_Problem])


class RunState:
    """Collects what a run emits into batches for the store.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._batch = Batch()
        self._partial = {"stdout": "", "stderr": ""}
        self._log_bytes = 0
        self._is_cut = False
        self._progress: dict[str, dict[str, Any]] = {}
        self._metrics: dict[str, dict[str, Any]] = {}
        self._started = time.time()

    @property
    def size(self) -> int:
        """The number of events in the current batch."""
        return len(self._batch.events)

    def take_batch(self) -> Batch:
        """Return what was added since the last call."""
        batch, self._batch = self._batch, Batch()
        return batch

    def add_output(self, stream: str, text: str) -> None:
        """Add output; beyond the limit of a job's log it is dropped, and a line says so."""
        if self._is_cut:
            return
        size = len(text.encode())
        if self._log_bytes + size > MAX_LOG_BYTES:
            self._is_cut = True
            size = 0
            text = f"\n[the log was cut here: it is longer than {MAX_LOG_BYTES // 1_000_000} MB]\n"
        self._log_bytes += size
        self._batch.log_bytes += size
        self._batch.events.append(("log", {"stream": stream, "text": text}))
        *lines, rest = (self._partial[stream] + text).split("\n")
        while len(rest) > _MAX_LINE:  # a line that never ends must not need unbounded memory
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        self._partial[stream] = rest
        self._batch.lines += [line + "\n" for line in lines]

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Add an event: the data of an `EventRecord`."""
        self._batch.events.append((_KINDS[event["kind"]], event))
        entry = _log_entry(event, self._job.owner)
        if entry is not None:
            self._batch.logs.append(entry)
        data = plain(event["data"])
        step = event["step"] or self._job.action
        if event["kind"] == "progress":
            percent = round(100 * data["current"] / data["total"], 2) if data["total"] else 0.0
            self._progress[step] = {"percent": percent}
            current = {"overall": percent, "step": step, "percent": percent}
            current["time_elapsed"] = round(time.time() - self._started, 2)
            record = {"record": {"steps": {**self._progress}}, "current_progress": current}
            self._batch.columns["progress_record"] = record
        elif event["kind"] == "metrics" and isinstance(data, dict):
            self._metrics[step] = self._metrics.get(step, {}) | data
            self._batch.columns["metrics_record"] = {"record": {"steps": {**self._metrics}}}

    def finish(self, record: RunRecord | None) -> tuple[str, Batch, dict[str, Any]]:
        """Return the final status, the last batch, and the columns of the job that the outcome sets.

        Args:
            record: The record of the run; None if it was stopped.
        """
        batch = self.take_batch()
        batch.lines += [text + "\n" for text in self._partial.values() if text]
        if record is None:
            return STOPPED, batch, {}
        columns: dict[str, Any] = {
            "record": record.model_copy(update={"events": [], "stdout": None, "stderr": None}).dumps()
        }
        if record.status == "succeeded":
            result = plain(record.result)
            columns["result"] = result if isinstance(result, dict) else {"result": result}
            return SUCCEEDED, batch, columns
        message = error_message(record)
        batch.lines += traceback_lines(record)
        columns["result"] = {"error": message}
        columns["meta"] = {"error": {"error_type": error_type(record), "message": message}}
        return FAILED, batch, columns


def error_type(record: RunRecord) -> str:
    """Return the type of a failed run's error, as the v2 API names them."""
    kind = record.error[0].type if record.error else ""
    return _ERROR_TYPES.get(kind, "execution_error")


def error_message(record: RunRecord) -> str:
    """Return the text of what was raised: of the cause, if there is one."""
    if not record.error:
        return "the run failed"
    first = record.error[0]
    if first.type in ("ExecutionError", "ValidationError") and first.cause is not None:
        return record.error[first.cause].text or first.text
    return first.text


def params_problems(record: RunRecord) -> list[dict[str, Any]]:
    """Return what is wrong with the params of a failed run, as a list of `{loc, msg, type}`.

    The list is empty if the action's model has not refused them, or a validator of it has raised anything else.
    """
    if error_type(record) != "validation_error":
        return []
    assert record.error is not None
    try:
        found = _PROBLEMS.validate_python(plain(record.error[0].attributes.get("_errors", [])))
    except pydantic.ValidationError:  # it comes from the plugin's process
        return []
    return [{"loc": ["body", "params", *each.loc], "msg": each.msg, "type": each.type} for each in found]


def traceback_lines(record: RunRecord) -> list[str]:
    """Return the lines that end the console log of a failed run: the traceback in the action's own code."""
    if not record.error:
        return []
    first = record.error[0]
    if first.type != "ExecutionError" or first.cause is None:
        return [line + "\n" for line in first.text.splitlines()]
    cause = record.error[first.cause]
    lines = ["Traceback (most recent call last):"]
    for frame in cause.frames:
        if not frame.hidden:
            lines.append(f'  File "{frame.file}", line {frame.line}, in {frame.function}')
            if frame.source:
                lines.append(f"    {frame.source.strip()}")
    name = cause.type if cause.module in ("builtins", "__main__") else f"{cause.module}.{cause.type}"
    lines += (f"{name}: {cause.text}" if cause.text else name).splitlines()
    return [line + "\n" for line in lines]


def record_of(job: Job, events: list[Any], stdout: str, stderr: str) -> RunRecord:
    """Return the whole record of a job that has ended.

    Args:
        job: The job.
        events: The data of its events, without output and statuses.
        stdout: Its output.
        stderr: Its output to standard error.
    """
    whole = {"events": events, "stdout": stdout, "stderr": stderr}
    if job.record is not None:
        return RunRecord.model_validate({**RunRecord.loads(job.record).model_dump(), **whole})
    error: PluginError | None = None
    if job.status == FAILED:
        text = str((job.meta.get("error") or {}).get("message") or (job.result or {}).get("error") or "the job failed")
        is_crash = (job.meta.get("error") or {}).get("error_type") == "infrastructure"
        error = WorkerCrashed(text) if is_crash else ExecutionError(text)
    elif job.status == STOPPED:
        error = ExecutionError(f"{job.action}: job {job.id} was stopped")
    run = ActionRun(job.action, result=job.result, error=error, mode="remote", job_id=job.id, pid=0)
    run.is_started = job.started is not None
    run.duration = (job.completed or 0.0) - (job.started or job.completed or 0.0)
    return RunRecord.model_validate({**RunRecord.from_run(run).model_dump(), **whole})


def _log_entry(event: Mapping[str, Any], owner: str) -> dict[str, Any] | None:
    """Return what the SDK's worker would send to `POST logs/` for an event."""
    data = plain(event["data"])
    name = event["name"]
    if event["kind"] == "progress":
        return None
    if event["kind"] == "message":
        name, data = "message", {"content": name, **(data if isinstance(data, dict) else {})}
    elif event["kind"] == "metrics":
        name, data = "metric", {"category": event["step"] or "", "metrics": data}
    when = dt.datetime.fromtimestamp(event["time"], dt.UTC).isoformat()
    return {
        "owner": owner,
        "event": name,
        "data": data,
        "level": event["level"],
        "step": event["step"] or "",
        "file": event["file"],
        "datetime": when,
    }

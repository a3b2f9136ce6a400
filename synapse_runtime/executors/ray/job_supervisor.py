"""The entrypoint of a Ray job: a supervisor process that runs the action in a child process.

Only the supervisor writes the job's log (see `job_log`). It keeps running if the action's process crashes, so that the
output is complete and the exit of the process is reported.

Started as `python -m synapse_runtime.executors.ray.job_supervisor FILE`, where the file contains the request. It is in
the working directory, or in a directory on `sys.path`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from synapse_runtime import serialization
from synapse_runtime.core.execution import ActionRun
from synapse_runtime.core.remote_exceptions import redact_values
from synapse_runtime.core.withheld_variables import restore_withheld
from synapse_runtime.events import Event
from synapse_runtime.executors.child_processes import adopt_orphans, descendants, prctl, stop
from synapse_runtime.executors.journal import Journals, read_journal
from synapse_runtime.executors.path_mapping import PathMap, create_worker_copy, remove_import_path
from synapse_runtime.executors.process_exit import CrashLog, kernel_oom_kills, parse_crash_log
from synapse_runtime.executors.protocol import VERSION_LINE, CallRequest, VersionMismatch, decode_request, encode_run
from synapse_runtime.executors.ray import job_log
from synapse_runtime.executors.ray.cluster.control_socket import JOB_CONFIG
from synapse_runtime.executors.supervisor import EVENT, RUN, START, Supervisor, reporter
from synapse_runtime.executors.worker import accept_interrupts, print_all_text, serve
from synapse_runtime.json_values import encode_value
from synapse_runtime.redaction import HiddenValues
from synapse_runtime.run_record import RunRecord, encode_event, to_json

_PR_SET_DUMPABLE = 4
_STREAMS = {"stdout": job_log.STDOUT, "stderr": job_log.STDERR}
# The record of a run has a result that needs pickle too, up to this size, for readers that do not unpickle it.
_MAX_INEXACT_RESULT = 1_000_000


def main() -> None:
    """Serve the request in the file named on the command line."""
    directories = [os.path.abspath(path) for path in ("", *sys.path)]
    root = next((path for path in directories if os.path.isfile(os.path.join(path, sys.argv[1]))), None)
    if root is None:
        sys.exit(f"request file {sys.argv[1]} not found in any of {', '.join(dict.fromkeys(directories))}")
    try:
        request = _read_request(Path(root, sys.argv[1]))
    except VersionMismatch:  # the caller reports both versions
        sys.stdout.buffer.write(job_log.LogWriter().frame(job_log.VERSION, {"line": VERSION_LINE.decode()}))
        return
    remove_import_path(root)
    _remove_request_package(shares_filesystem=request.shares_filesystem)
    path_map = None
    if not request.shares_filesystem:
        restore_withheld()
        path_map = create_worker_copy(request.import_root, None if request.import_root is None else os.getcwd())
    receive, send = Pipe(duplex=False)
    stdout, stderr = os.pipe(), os.pipe()
    crash_log, journals, oom_kills = CrashLog(), Journals.create(), kernel_oom_kills()
    gc.freeze()  # keeps the child's garbage collector from touching, and so copying, the memory of imported modules
    adopt_orphans()
    # SIGTERM is blocked until the supervisor can forward it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        receive.close()
        print_all_text()
        os.dup2(stdout[1], 1)
        os.dup2(stderr[1], 2)
        for descriptor in (*stdout, *stderr):
            os.close(descriptor)
        _run_child(replace(request, log_key=None), send, crash_log, journals, path_map)
    _hide_process()
    send.close()
    os.close(stdout[1])
    os.close(stderr[1])
    supervisor = _JobSupervisor(request, child, receive, stdout[0], stderr[0])
    status = supervisor.run()
    stop(descendants())  # of an action that crashed before its process could
    if status is None:
        sys.exit(0)
    process_exit = parse_crash_log(crash_log.read(), status, out_of_memory=kernel_oom_kills() > oom_kills)
    process_exit = replace(process_exit, timed_out=process_exit.timed_out or supervisor.timed_out)
    if path_map is not None:
        process_exit = replace(process_exit, stack=path_map.to_caller(process_exit.stack))
    supervisor.write_frame(job_log.LOGS, {"pickle": job_log.encode_bytes(read_journal(journals.logs.descriptor))})
    supervisor.write_frame(job_log.EXIT, {"process_exit": asdict(process_exit), "duration": supervisor.duration})
    sys.exit(1)


def _read_request(file: Path) -> CallRequest:
    """Read the request and delete its file, which may contain secrets and would remain on the node for long."""
    data = file.read_bytes()
    with contextlib.suppress(PermissionError):  # another user has unpacked it: Ray deletes it in time
        file.unlink()
    return decode_request(data)


def _hide_process() -> None:
    """Keep other processes of this user, the action above all, from opening this process's log or memory (Linux)."""
    prctl(_PR_SET_DUMPABLE, 0)


def _remove_request_package(*, shares_filesystem: bool) -> None:
    """Keep workers that an action starts through its own `ray.init()` from getting the package with the request.

    Ray gives them the runtime environment of the job, in which it is the working directory, or the first module.
    """
    job = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    environment = job.get("runtime_env") or {}
    if shares_filesystem:
        environment.pop("working_dir", None)
    elif environment.get("py_modules"):
        del environment["py_modules"][0]
    if job:
        os.environ[JOB_CONFIG] = json.dumps(job)


def _run_child(
    request: CallRequest, send: Connection, crash_log: CrashLog, journals: Journals, path_map: PathMap | None
) -> NoReturn:
    """Run the call and send its run to the supervisor; then exit like any Python program."""
    restore_withheld()
    accept_interrupts()
    crash_log.install()
    journals.adopt()
    for stream in (sys.stdout, sys.stderr):  # now pipes, which are fully buffered by default
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    report = reporter(send)
    data = serve(
        request,
        mode="job",
        crash_log=crash_log,
        journals=journals,
        path_map=path_map,
        on_event=lambda event: report(EVENT, _encode_event(event)),
        on_start=lambda: report(START),
        encode=_encode_run,
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    report(RUN, data)
    sys.exit(0)


def _encode_event(event: Event) -> bytes:
    """Return the data of an event's frame: JSON, and a pickle if that is not exactly the event."""
    record, is_exact = encode_event(event)
    pickled = {} if is_exact else {"pickle": job_log.encode_bytes(serialization.dumps(event))}
    return to_json({"event": record, **pickled}).encode()


def _encode_run(
    run: ActionRun, *, hidden: HiddenValues | None = None, path_map: PathMap | None = None, **options: Any
) -> bytes:
    """Return the data of a run's frame, with the arguments of `protocol.encode_run`.

    The data are a record, without the events and the output, which are in the log, and the pickled run.
    """
    result, is_exact = encode_value(run.result)
    sent = replace(run, result=None) if is_exact else run
    message = encode_run(sent, hidden=hidden, path_map=path_map, **options)
    hidden = hidden or HiddenValues({})
    with redact_values(hidden):
        to_caller = str if path_map is None else path_map.to_caller
        record = RunRecord.from_run(replace(sent, result=None, events=[]), to_caller=to_caller)
    record = record.redacted(hidden.of_secrets())
    if sent.error is None:
        if not is_exact and len(to_json({"result": result})) > _MAX_INEXACT_RESULT:
            result = {"$omitted": "it needs pickle, and is too large to be shown"}
        record = record.model_copy(update={"result": result})
    data = {"record": record, "is_exact": is_exact, "pickle": job_log.encode_bytes(message)}
    return to_json(data).encode()


class _JobSupervisor(Supervisor):
    """Writes the job's log.

    Attributes:
        duration: Seconds that the action had taken when its process ended.
    """

    def __init__(self, request: CallRequest, child: int, channel: Connection, stdout: int, stderr: int) -> None:
        self.duration = 0.0
        self._run: bytes | None = None
        self._writer = job_log.LogWriter(request.log_key)
        super().__init__(child, channel, stdout, stderr, request.timeout)

    def run(self) -> int | None:
        """Wait until the action has ended; return None if it has sent a run, else its process's exit status."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self.write_frame(job_log.START, {"host": socket.gethostname(), "pid": self.child})
        status = self.follow()
        if self._run is None:
            self.duration = time.monotonic() - self.started_at
            return status
        self.write_frame(job_log.RUN, self._run)
        return None

    def write_frame(self, kind: str, data: Mapping[str, Any] | bytes) -> None:
        """Append a frame to the log, with these data, or these as JSON."""
        text = data.decode("ascii", "backslashreplace") if isinstance(data, bytes) else data
        self._write(self._writer.frame(kind, text))

    def on_output(self, stream: str, data: bytes) -> None:
        """Write it to the log."""
        if data:
            self._write(self._writer.output(_STREAMS[stream], data))

    def on_start(self) -> None:
        """Do nothing: the log says when the process began."""

    def on_event(self, payload: bytes) -> None:
        """Write it to the log."""
        self.write_frame(job_log.EVENT, payload)

    def on_run(self, payload: bytes) -> None:
        """Keep it until all output is written."""
        self._run = payload

    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        """Pass it on to the action."""
        self.send_signal(number)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()

"""The process of one run: a supervisor that runs the action in a child process, and reports to the server.

It is a fork of the template, `python -m synapse_runtime.server.run_process`, which has imported what it needs. It reads
the call from standard input, one line of JSON, and writes frames to standard output, each one line of JSON: `output`,
`event`, `start`, and last `run` or `stopped`. The end of standard input stops the action: the server closes it, or has
ended, however it has ended. Nothing is pickled between the processes.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from synapse_runtime import serialization
from synapse_runtime.core.around import Seed
from synapse_runtime.core.assertions import FailureRecorder
from synapse_runtime.core.clock import set_clock
from synapse_runtime.core.coverage_support import CoverageCollector
from synapse_runtime.core.execution import ActionCall, ActionRun, checked_params, process_state_for
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.output_capture import Captured, last_lines
from synapse_runtime.core.remote_exceptions import redact_values
from synapse_runtime.errors import (
    ClusterError,
    ExecutionTimeout,
    PluginError,
    ResultNotSerializable,
    ValidationError,
    WorkerCrashed,
)
from synapse_runtime.events import Event
from synapse_runtime.executors.child_processes import adopt_orphans, descendants, prctl, stop
from synapse_runtime.executors.journal import Journals, decode_entries, read_journal
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.path_mapping import PathMap
from synapse_runtime.executors.process_exit import CrashLog, kernel_oom_kills, parse_crash_log
from synapse_runtime.executors.protocol import CallRequest, caller_settings, settings_of_json
from synapse_runtime.executors.supervisor import EVENT, RUN, START, Supervisor, reporter
from synapse_runtime.executors.worker import accept_interrupts, serve
from synapse_runtime.json_values import decode_value
from synapse_runtime.loggers import NullLogger
from synapse_runtime.plugins.plugin import import_entrypoint
from synapse_runtime.redaction import HiddenValues
from synapse_runtime.run_record import CallerRecord, RunRecord, encode_event, to_json

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.patches import ReceivedJsonPatches

# Modules that a run imports when it needs them: here once, for all runs.
_USED_BY_RUNS = (
    *("ctypes", "difflib", "yaml", "synapse_runtime.decorators", "synapse_runtime.plugins.manifest"),
    *("synapse_runtime.modes", "synapse_runtime.types", "encodings.utf_8_sig"),
)
_REQUEST_BYTES = 64
_LAST_OUTPUT = 20_000
# How long the driver of a Ray worker or job has to stop it.
_DRIVER_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def main() -> None:
    """Fork the processes of runs, as the server requests it on the socket that is standard input.

    A request is `fork`, with the descriptors of standard input and output, which is answered with the id of the new
    process; or `poll` with such an id, which is answered with its exit status, or `running`.
    """
    for name in _USED_BY_RUNS:
        importlib.import_module(name)
    prctl(_PR_SET_PDEATHSIG, 0)  # which loads the library that it calls
    gc.freeze()  # keeps the garbage collector of forks from touching, and so copying, the memory of imported modules
    with socket.socket(fileno=os.dup(0)) as channel:
        while True:
            request, descriptors, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 2)
            if not request:
                return
            if request.startswith(b"poll "):
                pid, raw = os.waitpid(int(request[5:]), os.WNOHANG)
                channel.send(b"%d" % os.waitstatus_to_exitcode(raw) if pid else b"running")
                continue
            pid = os.fork()
            if pid == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            channel.send(b"%d" % pid)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _supervise()


def _supervise() -> None:
    """Run the call that the server sends."""
    with open(0, "rb", closefd=False) as requests:
        line = requests.readline()
    if not line.endswith(b"\n"):  # the server has ended, or does not need this process
        return
    call: dict[str, Any] = json.loads(line)
    if call["at_start"] and call["run_in"] == "worker":
        _start_again(line, call["at_start"])
    _supervise_call(call)


def _start_again(line: bytes, variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by one that is started with these variables; it reads the call from a file in memory."""
    file = os.memfd_create("synapse-call", 0)  # inherited
    os.write(file, line)
    os.lseek(file, 0, os.SEEK_SET)
    command = [sys.executable, "-P", "-m", "synapse_runtime.server.run_process", str(file)]
    os.execve(sys.executable, command, {**os.environ, **variables})


def _supervise_call(call: dict[str, Any]) -> None:
    channel = os.dup(1)
    os.dup2(2, 1)
    receive, send = Pipe(duplex=False)
    stdout, stderr = os.pipe(), os.pipe()
    crash_log, journals, oom_kills = CrashLog(), Journals.create(), kernel_oom_kills()
    adopt_orphans()
    supervisor_pid = os.getpid()
    child = os.fork()
    if child == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:
            os._exit(1)
        receive.close()
        os.close(channel)
        _connect_output(stdout, stderr)
        _run_child(call, send, crash_log, journals)
    prctl(_PR_SET_DUMPABLE, 0)  # the action must not read this process's memory
    send.close()
    os.close(stdout[1])
    os.close(stderr[1])
    supervisor = _RunSupervisor(call, child, channel, receive, (stdout[0], stderr[0]), journals)
    status = supervisor.follow()
    stop(descendants())
    if supervisor.is_stopped:
        supervisor.write({"frame": "stopped"})
    elif supervisor.record is not None:
        supervisor.write({"frame": "run", "record": supervisor.record})
    else:
        log = crash_log.read()
        process_exit = parse_crash_log(log, status, out_of_memory=kernel_oom_kills() > oom_kills)
        timed_out = process_exit.timed_out or supervisor.timed_out
        supervisor.write(
            {"frame": "run", "record": supervisor.crash_record(process_exit.describe(), timed_out, process_exit.stack)}
        )


def _connect_output(stdout: tuple[int, int], stderr: tuple[int, int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(stdout[1], 1)
    os.dup2(stderr[1], 2)
    for descriptor in (null, *stdout, *stderr):
        os.close(descriptor)
    # All text can be printed, whatever the locale is.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", 1, "utf-8", "replace", closefd=False)  # noqa: SIM115
        for attribute in (name, f"__{name}__"):
            setattr(sys, attribute, stream)


def _run_child(call: Mapping[str, Any], send: Connection, crash_log: CrashLog, journals: Journals) -> NoReturn:
    """Run the call and send its run to the supervisor; then exit like any Python program."""
    accept_interrupts()
    crash_log.install()
    journals.adopt()

    report = reporter(send)

    def on_event(event: Event) -> None:
        report(EVENT, to_json(encode_event(event)[0]).encode())

    if call["run_in"] == "worker":
        record = _run_here(call, crash_log, journals, on_event, lambda: report(START))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        record = _run_on_ray(call, on_event, lambda: report(START))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    report(RUN, record.encode())
    sys.exit(0)


def _run_here(
    call: Mapping[str, Any],
    crash_log: CrashLog,
    journals: Journals,
    on_event: Callable[[Event], object],
    on_start: Callable[[], object],
) -> str:
    """Run the call in this process; return the record of its run as JSON."""
    try:
        executor = LocalExecutor(
            {**call["process_env"], **decode_value(call["env"])},
            call["job_id"],
            plugin=call["directory"],
            timeout=call["timeout"],
            logger=NullLogger(),
            language=call["language"],
        )
        clock = call["test"].get("clock")
        if clock is not None:
            executor.around(set_clock, **clock)
        made = executor.call(call["action"])
        seed = call["test"].get("seed")
        if seed is not None:
            made = replace(made, seed=Seed(seed["value"], tuple(seed["libraries"])))
    except (PluginError, ValueError) as error:
        return _record_of_error(call, error)
    settings = None if call["caller"] is None else settings_of_json(call["caller"])
    path_map = None
    if call["caller_root"] is not None and made.import_root not in (None, call["caller_root"]):
        path_map = PathMap(call["caller_root"], str(made.import_root))
    request = _JsonRequest(
        name=call["name"] or made.name,
        job_id=made.job_id,
        timeout=made.timeout,
        import_root=made.import_root if path_map is None else path_map.caller_root,
        shares_filesystem=path_map is None,
        settings=settings or caller_settings(made.import_root),
        call_data=memoryview(b""),
        call=made,
        alternatives=call["params"],
        is_encoded=call["is_encoded"],
        path_map=path_map,
        test=call["test"],
    )
    data = serve(
        request,
        mode="remote",
        crash_log=crash_log,
        journals=journals,
        path_map=path_map,
        on_event=on_event,
        on_start=on_start,
        encode=_encode_run,
    )
    return data.decode()


@dataclass(frozen=True)
class _JsonRequest(CallRequest):
    """A call whose params are JSON. They are decoded once the plugin's modules can be imported.

    Attributes:
        call: The call without its params.
        alternatives: Params: the first that the action's model accepts are taken.
        is_encoded: Whether they are encoded as in a run record.
        path_map: Maps the caller's paths to this worker's, if the plugin has another directory there.
        test: What the caller's test has set up.
    """

    call: ActionCall | None = None
    alternatives: Sequence[Any] = field(default=(), repr=False)
    is_encoded: bool = False
    path_map: PathMap | None = None
    test: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def received_patches(self) -> ReceivedJsonPatches | None:
        """Return the patches of the test, if it has any."""
        found = self.test.get("patches")
        if not found:
            return None
        from synapse_runtime.executors.remote.patches import ReceivedJsonPatches

        root = self.import_root if self.path_map is None else self.path_map.to_worker(self.import_root)
        return ReceivedJsonPatches(found, root)

    def read_call(self, loads: Callable[[Any, Iterable[Any]], Any] = serialization.loads) -> ActionCall:
        """Return the call, with the caller's paths."""
        call = self._read()
        if self.path_map is None:
            return call
        to_caller = self.path_map.to_caller
        return replace(
            call,
            import_root=call.import_root and to_caller(call.import_root),
            cwd=call.cwd and to_caller(call.cwd),
            config_path=call.config_path and to_caller(call.config_path),
        )

    def _read(self) -> ActionCall:
        assert self.call is not None
        call = replace(self.call, name=self.name)
        calls = [replace(call, params=params) for params in self.alternatives]
        if self.is_encoded:
            calls = [_decoded(each) for each in calls]
        for alternative in calls if len(calls) > 1 else ():
            with contextlib.suppress(ValidationError), checked_params(alternative):
                return alternative
        return calls[0]


def _decoded(call: ActionCall) -> ActionCall:
    """Return a call whose params are decoded: values in them may be of classes of the plugin."""
    if '"$' not in json.dumps(call.params):
        return call
    with shielded() as interrupts, process_state_for(call):
        with contextlib.suppress(Exception):  # reported once the action is run
            interrupts.call_interruptibly(lambda: import_entrypoint(call.action))
        return replace(call, params=decode_value(call.params, call.import_root))


def _run_on_ray(call: Mapping[str, Any], on_event: Callable[[Event], object], on_start: Callable[[], object]) -> str:
    """Run the call on a Ray actor or as a Ray job; return the record of its run as JSON."""
    from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor

    def on_output(stream: str, text: str) -> None:
        target = sys.stdout if stream == "stdout" else sys.stderr
        target.write(text)
        target.flush()

    kind: Any = RayActorExecutor if call["run_in"] == "task" else RayJobsApiExecutor
    on_start()
    try:
        with kind(
            {**call["process_env"], **decode_value(call["env"])},
            call["job_id"],
            plugin=call["directory"],
            timeout=call["timeout"],
            logger=NullLogger(),
            language=call["language"],
            ray_address=call["ray_address"],
            **call["resources"],
        ) as executor:
            run: ActionRun | None = None
            for params in call["params"]:
                params = _decoded(executor.call(call["action"], params)).params if call["is_encoded"] else params
                run = executor.run(call["action"], params, on_event=on_event, on_output=on_output)
                if not isinstance(run.error, ValidationError):
                    break
            assert run is not None
            run.mode = "remote"
            return RunRecord.from_run(replace(run, events=[])).dumps()
    except (PluginError, ValueError, KeyboardInterrupt) as error:
        return _record_of_error(call, error)


def _record_of_error(call: Mapping[str, Any], error: BaseException) -> str:
    """Return the record of a run that has not started."""
    problem = error if isinstance(error, PluginError) else ClusterError(str(error) or type(error).__name__)
    run = ActionRun(call["action"], error=problem, mode="remote", job_id=call["job_id"])
    with redact_values(HiddenValues({name: str(value) for name, value in call["env"].items()})):
        return RunRecord.from_run(run).dumps()


def _encode_run(
    run: ActionRun,
    *,
    hidden: HiddenValues | None = None,
    recorder: FailureRecorder,
    collector: CoverageCollector,
    path_map: PathMap | None = None,
    patches: ReceivedJsonPatches | None = None,
    **options: Any,
) -> bytes:
    """Return the record of a run, with the arguments of `protocol.encode_run`. The events have been sent before."""
    if run.error is None:
        try:
            serialization.dumps_named(run.result, "result")
        except ResultNotSerializable as problem:  # the same error as in the other modes
            run.result, run.error = None, problem
    failed = recorder.collect(run.error)
    to_caller: Callable[[str], str] = str
    to_caller_file: Callable[[str], str | None] = str
    if path_map is not None:
        to_caller, to_caller_file = path_map.to_caller, path_map.file_to_caller
        if isinstance(run.error, PluginError):
            path_map.rewrite_error(run.error)
    mock_calls = None if patches is None else patches.recorded()
    caller = CallerRecord.of(failed, collector.collect(to_caller_file), mock_calls)
    with redact_values(hidden or HiddenValues({})):
        return RunRecord.from_run(replace(run, events=[]), to_caller=to_caller, caller=caller).dumps().encode()


class _RunSupervisor(Supervisor):
    """Reports to the server.

    Attributes:
        record: The record of the run, as JSON data, if the child has sent one.
        is_stopped: Whether the server has asked to stop the action, or has ended.
    """

    def __init__(
        self,
        call: Mapping[str, Any],
        child: int,
        channel: int,
        receive: Connection,
        output: tuple[int, int],
        journals: Journals,
    ) -> None:
        self.record: Any = None
        self.is_stopped = False
        self._call = call
        self._channel = channel
        self._is_started = False
        self._last_output = ""
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._journals = journals
        # The driver of a worker or job of Ray stops its action at its timeout.
        super().__init__(child, receive, *output, call["timeout"] if call["run_in"] == "worker" else None)
        self.also_read(0, self._command)

    def write(self, frame: Mapping[str, Any]) -> None:
        """Send a frame to the server."""
        view = memoryview(json.dumps(frame).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # the server has ended
            while view:
                view = view[os.write(self._channel, view) :]

    def crash_record(self, reason: str, timed_out: bool, stack: str) -> Any:
        """Return the record of a run whose process has ended without sending one.

        Args:
            reason: How the process ended.
            timed_out: Whether its action exceeded its timeout.
            stack: The stack of the action, if known.
        """
        name, timeout = self._call["name"] or self._call["action"], self._call["timeout"]
        error = (
            ExecutionTimeout(
                f"{name} exceeded its timeout of {timeout:g} s and could not be interrupted; its worker was killed"
            )
            if timed_out
            else WorkerCrashed(f"the worker of {name} {reason}")
        )
        error.attach("Stack of the action:", stack)
        error.attach("Last output:", last_lines(self._last_output))
        captured = Captured()
        for entry in decode_entries(read_journal(self._journals.logs.descriptor)):
            captured.add(entry)
        run = ActionRun(
            name,
            error=error,
            mode="remote",
            job_id=self._call["job_id"],
            pid=self.child,
            duration=time.monotonic() - self.started_at,
            is_started=self._is_started,
            captured=captured,
        )
        return json.loads(RunRecord.from_run(run).dumps())

    def on_output(self, stream: str, data: bytes) -> None:
        """Send it to the server."""
        text = self._decoders[stream].decode(data, final=not data)
        if text:
            self._last_output = (self._last_output + text)[-_LAST_OUTPUT:]
            self.write({"frame": "output", "stream": stream, "text": text})

    def on_start(self) -> None:
        """Tell the server."""
        self._is_started = True
        self.write({"frame": "start", "pid": self.child})

    def on_event(self, payload: bytes) -> None:
        """Send it to the server."""
        self.write({"frame": "event", "event": json.loads(payload)})

    def on_run(self, payload: bytes) -> None:
        """Keep the record until all output is sent."""
        self.record = json.loads(payload)

    def on_terminate(self, number: int, frame: FrameType | None) -> None:
        """Stop the action."""
        self._stop()

    def on_kill(self) -> None:
        """Note why the process is killed."""
        self.timed_out = not self.has_run and not self.is_stopped

    def _command(self) -> None:
        os.read(0, _REQUEST_BYTES)  # nothing is sent after the call: it is the end
        self._stop()

    def _stop(self) -> None:
        if self.record is not None or self.is_stopped:
            return
        self.is_stopped = True
        if self._call["run_in"] == "worker":
            self.send_signal(signal.SIGKILL)
        else:
            self.send_signal(signal.SIGINT)  # the executor stops its worker or job, as for Ctrl-C
            self.kill_in(_DRIVER_STOP_SECONDS)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=ResourceWarning)
    if len(sys.argv) > 1:  # `_start_again`
        with open(int(sys.argv[1]), "rb") as given:
            _supervise_call(json.load(given))
    else:
        main()

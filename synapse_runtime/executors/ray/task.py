"""Task mode: a warm Ray actor runs one action after another."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from synapse_runtime.core.execution import ActionCall, ActionRun
from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.log_capture import LogEntry
from synapse_runtime.core.output_capture import Captured, OutputFiles, last_lines
from synapse_runtime.core.threads import InterruptibleLock
from synapse_runtime.core.withheld_variables import restore_withheld
from synapse_runtime.environment import PluginEnvironment, variables_at_start
from synapse_runtime.errors import (
    ClusterError,
    ExecutionError,
    ExecutionTimeout,
    WorkerCrashed,
)
from synapse_runtime.events import Event
from synapse_runtime.executors.base import Backend, Executor, OnEvent, OnOutput, checked_timeout
from synapse_runtime.executors.journal import Journals, decode_entries, read_journal
from synapse_runtime.executors.path_mapping import create_worker_copy
from synapse_runtime.executors.process_exit import (
    CrashLog,
    ProcessExit,
    kernel_oom_kills,
    parse_crash_log,
    read_crash_log,
)
from synapse_runtime.executors.protocol import (
    ENCODE_CALL_ERRORS,
    VERSION_LINE,
    EncodedCall,
    VersionMismatch,
    decode_request,
    decode_run,
    encode_call,
    loads_in_plugin,
    version_error,
)
from synapse_runtime.executors.ray.cluster.driver import (
    Cluster,
    background_shutdown,
    connected_address,
    connected_through_client,
)
from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
from synapse_runtime.executors.ray.cluster.handle import has_ended
from synapse_runtime.executors.ray.cluster.resolve import connect, find_cluster, is_alive, shares_disk
from synapse_runtime.executors.ray.event_channel import EventChannel, LiveEvents
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output
from synapse_runtime.executors.ray.resources import (
    WAIT_SECONDS,
    checked_resources,
    require_resources,
    resource_timeout_error,
)
from synapse_runtime.executors.ray.runtime_env import RuntimeEnvBuilder, setup_error, setup_seconds, upload_with_ray
from synapse_runtime.executors.streaming import Forwarder, decode_batch
from synapse_runtime.executors.worker import accept_interrupts, print_all_text, serve
from synapse_runtime.loggers import Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
# How often a waiting caller checks that the cluster is alive.
_CHECK_SECONDS = 1.0
# How long after an action's timeout a worker may still respond, so that large params have time to arrive. The worker
# enforces the timeout itself, unless it hangs.
_OVERDUE_SECONDS = 15.0
# Ray's messages for an actor that died because its node, or the caller's, has left the cluster.
_NODE_LOST = ("owner has died", "node has crashed", "node has died")
# How long an action may take to stop after its caller has asked for it, before its worker is killed.
_STOP_SECONDS = 3.0
# Stops the action of a worker; the system ignores it by default.
_STOP_SIGNAL = signal.SIGURG
# How much output of a dead worker to read.
_LAST_BYTES = 16_000_000


class WorkerInfo(NamedTuple):
    """A worker's host, pid, Ray's id of its node, and its file descriptors of stdout, stderr and crash log."""

    host: str
    pid: int
    node: str
    descriptors: tuple[int, ...]


def actor_class() -> type:
    """Return the actor class, which is pickled by value; all arguments and responses are plain data.

    So a process that only passes them on, such as Ray Client's server or a queue, does not need this package, and a
    worker without it can report that.
    """

    class ActionWorker:
        """The actor."""

        def __init__(self, version_line: bytes, root: str | None, shares_filesystem: bool, in_band: bool) -> None:
            import synapse_runtime

            try:
                from synapse_runtime.executors import protocol

                own_version_line = protocol.VERSION_LINE
            except (ImportError, AttributeError):
                if not hasattr(synapse_runtime, "__version__"):  # it is not installed here
                    raise
                own_version_line = b"synapse unknown " + synapse_runtime.__version__.encode()
            self._other_version = None if own_version_line == version_line else own_version_line
            if self._other_version is None:
                from synapse_runtime.executors.ray.task import TaskWorker

                self._worker = TaskWorker(root, shares_filesystem, in_band)

        def ready(self) -> bytes | tuple[str, int, str, tuple[int, ...]]:
            """Return the worker's `WorkerInfo` as plain data, or the version line of a worker of another version."""
            return self._other_version or (*self._worker.info,)

        def run(self, request: bytes, *buffers: Any) -> Any:
            """Serve a request; return the response, in a list with its large buffers if it has any."""
            return self._worker.run(request, buffers)

        def use_channel(self, channel: Any) -> None:
            """Send events and output of watched calls to this channel."""
            self._worker.channel = channel

        def run_watched(self, call: int, with_logs: bool, request: bytes, *buffers: Any) -> Any:
            """Serve a request, and send events and output to the channel as they occur."""
            return self._worker.run_watched(call, with_logs, request, buffers)

    return ActionWorker


class TaskWorker:
    """Implementation of an actor: captures its process's output once, then serves requests.

    Args:
        root: The plugin's directory in the caller's file system, if it was uploaded.
        shares_filesystem: Whether this process shares the caller's file system.
        in_band: Whether responses pass through Ray Client's server, which cannot handle separate large buffers.
    """

    def __init__(self, root: str | None, shares_filesystem: bool, in_band: bool) -> None:
        import ray

        self._in_band = in_band
        self.channel: Any = None
        restore_withheld()
        accept_interrupts()
        print_all_text()
        self._path_map = None
        if not shares_filesystem:
            self._path_map = create_worker_copy(root, None if root is None else os.getcwd())
        self._output = OutputFiles()
        self._crash_log = CrashLog()
        self._crash_log.install()
        self._journals = Journals.create()
        self._node = str(ray.get_runtime_context().get_node_id())
        self._watched_call: int | None = None
        self._main_thread = threading.get_ident()
        self._interrupts = shielded()
        signal.signal(_STOP_SIGNAL, self._on_stop_signal)

    @property
    def info(self) -> WorkerInfo:
        """This worker's `WorkerInfo`."""
        journals = (journal.descriptor for journal in self._journals)
        descriptors = (*self._output.descriptors, self._crash_log.descriptor, *journals)
        return WorkerInfo(socket.gethostname(), os.getpid(), self._node, descriptors)

    def run(self, request: bytes, buffers: Sequence[Any]) -> Any:
        """Serve a request; return the response, in a list with its large buffers if it has any."""
        return self._serve(request, buffers, None)

    def run_watched(self, call: int, with_logs: bool, request: bytes, buffers: Sequence[Any]) -> Any:
        """Serve a request, and send events and output to the channel as they occur.

        The action is stopped if the caller asks the channel for it.

        Args:
            call: The number of the call.
            with_logs: Whether to send log records and warnings too.
            request: The request.
            buffers: Its large buffers.
        """

        def send(number: int, batch: bytes) -> None:
            self.channel.put.remote(call, number, batch)
            if number == 0:  # what makes the caller stop the action is an event or output that was sent
                stopped = self.channel.wait_for_stop.remote(call).future()
                stopped.add_done_callback(lambda _: self._stop(call, stopped))

        forwarder = Forwarder(send, self._output)
        try:
            with self._interrupts:
                self._watched_call = call
                try:
                    return self._serve(request, buffers, forwarder, with_logs=with_logs)
                finally:
                    self._watched_call = None
                    self._interrupts.drop_deferred()
        finally:
            forwarder.close()

    def _stop(self, call: int, stopped: Future[bool]) -> None:
        if stopped.exception() is None and stopped.result() and self._watched_call == call:
            signal.pthread_kill(self._main_thread, _STOP_SIGNAL)  # also wakes it up

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        if self._watched_call is not None:
            self._interrupts.interrupt_or_defer()

    def _serve(
        self, request: bytes, buffers: Sequence[Any], forwarder: Forwarder | None, *, with_logs: bool = False
    ) -> Any:
        out_of_band: list[pickle.PickleBuffer] = []
        data = serve(
            decode_request(request, buffers),
            mode="task",
            node=self._node,
            crash_log=self._crash_log,
            journals=self._journals,
            output=self._output,
            path_map=self._path_map,
            on_event=None if forwarder is None else forwarder.event,
            on_log=forwarder.log if forwarder is not None and with_logs else None,
            on_end=None if forwarder is None else forwarder.close,
            out_of_band=None if self._in_band else out_of_band,
        )
        return [data, *out_of_band] if out_of_band else data


class WarmWorker:
    """One actor, created on first use and kept for later calls; several executors may share it.

    Args:
        address: The cluster's address; None for the cluster that `find_cluster` returns.
        num_cpus: CPUs that the worker holds.
        num_gpus: GPUs that the worker holds.
        memory: Memory that the worker holds, in bytes, or as text such as `"2GB"`.
        resources: Custom resources that the worker holds, by name.
        resource_timeout: Seconds to wait for resources that other workers hold.
        jobs: Whether an ephemeral cluster that is started for it also offers the Jobs API.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | str | None = None,
        resources: Mapping[str, float] | None = None,
        resource_timeout: float = WAIT_SECONDS,
        jobs: bool = True,
    ) -> None:
        self._address = address
        checked_timeout(resource_timeout, "resource_timeout", or_zero=True)
        self._resource_timeout = resource_timeout
        self._resources = checked_resources(num_cpus, num_gpus, memory, resources)
        self._jobs = jobs
        self._actor: Any = None
        self._info: WorkerInfo | None = None
        self._post_mortem: PostMortem | None = None
        self._runtime_env_key: tuple[str | None, bool] | None = None  # of the actor's runtime environment
        self._variables: dict[str, str] = {}  # that the actor's process was started with
        self._shares_filesystem = True
        self._channel: EventChannel | None = None
        self._watched = itertools.count()
        self.cluster: Cluster | None = None  # as returned by `find_cluster`
        self._cluster = ""  # its own address
        self._overdue_at = math.inf  # when to stop waiting for the current call
        self._call_lock = InterruptibleLock()  # held during a call; waiting for it can be interrupted
        self._lock = threading.RLock()

    def close(self) -> None:
        """Stop the worker. The next call starts a new one."""
        with self._lock:
            actor, self._actor = self._actor, None
            channel, self._channel = self._channel, None
            if self._post_mortem is not None:
                self._post_mortem.close()
                self._post_mortem = None
            if actor is not None and connected_address() == self._cluster and not has_ended(self._cluster):
                import ray

                ray.kill(actor)
                if channel is not None:
                    channel.close()

    def run(
        self,
        encoded: EncodedCall,
        runtime_env: RuntimeEnvBuilder,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
    ) -> ActionRun:
        """Make a call, once earlier calls have ended, and return its run.

        Args:
            encoded: The call.
            runtime_env: Builds the runtime environment of a worker that does not share this file system.
            on_event: Called with each event as it happens.
            on_output: Called with the worker's output as it is printed.

        Raises:
            ClusterError: There is no cluster, or it failed.
            ConfigError: The plugin cannot be uploaded.
        """
        return self._call_lock.call(lambda: self._run(encoded, runtime_env, on_event, on_output))

    def _run(
        self,
        encoded: EncodedCall,
        runtime_env: RuntimeEnvBuilder,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
    ) -> ActionRun:
        call = encoded.call
        with ephemeral.used_by_call() as use, self._lock:
            actor = self._warm_actor(call, runtime_env)
            use.is_running = True
            live_events = None
            assert self._post_mortem is not None
            if on_event is not None or on_output is not None or not self._post_mortem.is_available:
                read = partial(decode_batch, import_root=call.import_root)
                live_events = LiveEvents(next(self._watched), on_event, on_output, read)
            started = time.monotonic()
            self._overdue_at = started + (math.inf if call.timeout is None else call.timeout + _OVERDUE_SECONDS)
            try:
                data, *buffers = self._response(actor, encoded, live_events)
            except _WorkerLost as lost:
                run = self._crashed_run(call, lost, time.monotonic() - started, live_events)
                self.close()
                if live_events is not None:
                    live_events.finish(run)
                return run
            except _CallbackFailed as failed:
                raise failed.error from None
            except BaseException:  # mainly Ctrl-C: the action must not keep running
                self.close()
                raise
            run = decode_run(data, call, buffers=buffers, patches=encoded.patches)
            if live_events is not None:
                live_events.finish(run)
            if isinstance(run.error, ExecutionTimeout):  # the action may have left threads or other state behind
                self.close()
        return run

    def _crashed_run(
        self, call: ActionCall, lost: _WorkerLost, took: float, live_events: LiveEvents | None
    ) -> ActionRun:
        """Return the run of a call during which the worker has died."""
        assert self._post_mortem is not None
        assert self._info is not None
        host, pid, node, _ = self._info
        captured, process_exit = self._post_mortem.output(), self._post_mortem.process_exit()
        events = [] if live_events is None else live_events.events
        logs: Iterable[LogEntry] = () if live_events is None else live_events.logs
        if self._post_mortem.is_available:
            loads = partial(loads_in_plugin, import_root=call.import_root)
            events = [Event(*fields) for fields in self._post_mortem.events(loads)]
            logs = self._post_mortem.logs(loads)
        for entry in logs:
            captured.add(entry)
        error: ExecutionError
        if (process_exit is not None and process_exit.timed_out) or time.monotonic() > self._overdue_at:
            error = ExecutionTimeout(
                f"{call.name} exceeded its timeout of {call.timeout:g} s and could not be interrupted; "
                "its worker was killed"
            )
        elif lost.out_of_memory:
            error = WorkerCrashed(f"the worker of {call.name} ran out of memory and was killed by Ray")
        else:
            reason = f"died: {lost}" if process_exit is None else process_exit.describe()
            error = WorkerCrashed(f"the worker of {call.name} {reason}")
        error.__cause__ = lost.__cause__
        error.attach("Stack of the action:", process_exit.stack if process_exit is not None else "")
        error.attach("Last output:", last_lines(captured.stdout + captured.stderr))
        return ActionRun(
            call.name,
            error=error,
            events=events,
            captured=captured,
            mode="task",
            job_id=call.job_id,
            duration=took,
            is_started=True,
            host=host,
            pid=pid,
            node=node,
        )

    def _response(self, actor: Any, encoded: EncodedCall, live_events: LiveEvents | None) -> Sequence[Any]:
        """Send a call; return the response and its large buffers.

        Raises:
            _WorkerLost: The worker has died during the call.
            ClusterError: The cluster has failed.
        """
        from ray.exceptions import OutOfMemoryError, RayActorError, RayError

        request = encoded.message(shares_filesystem=self._shares_filesystem)
        try:
            if live_events is None:
                response = self._get(actor.run.remote(request, *encoded.buffers), partial(self._check_worker, actor))
            else:
                channel = self._open_channel(actor)
                assert self._post_mortem is not None
                response = actor.run_watched.remote(
                    *(live_events.call, not self._post_mortem.is_available, request, *encoded.buffers)
                )
                response = self._watch(actor, response, channel, live_events)
        except (RayActorError, OutOfMemoryError) as error:
            self._require_cluster(error)
            if any(words in str(error) for words in _NODE_LOST):
                raise self._lost_cluster(error) from error
            if live_events is not None and self._channel is not None:
                live_events.handle(self._channel.drain())
            raise _WorkerLost(error) from error
        except RayError as error:
            self._require_cluster(error)
            raise ClusterError(f"the cluster failed during the call: {_first_line(error)}") from error
        except ConnectionError as error:  # raised by Ray Client
            raise self._lost_cluster(error) from error
        return [response] if isinstance(response, bytes) else response

    def _get(self, response: Any, check: Callable[[Exception], object], seconds: float = math.inf) -> Any:
        """Wait for a response while the cluster is alive; if it is not, Ray would end this process after a minute.

        Args:
            response: The reference to wait for.
            check: Called once a second; raises if the cluster is no longer alive.
            seconds: Timeout in seconds.

        Raises:
            GetTimeoutError: The timeout was exceeded.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            try:
                return ray.get(response, timeout=max(0.0, min(left, _CHECK_SECONDS)))
            except GetTimeoutError as error:
                check(error)
                if left <= _CHECK_SECONDS:
                    raise

    def _open_channel(self, actor: Any) -> EventChannel:
        if self._channel is None or not self._channel.is_alive:
            self._channel = EventChannel()
            actor.use_channel.remote(self._channel.actor)
            assert self._post_mortem is not None
            if not self._post_mortem.is_available:
                # What the worker sends is lost if it dies before the channel has started.
                self._get(self._channel.actor.is_started.remote(), self._require_cluster)
        return self._channel

    def _watch(self, actor: Any, response: Any, channel: EventChannel, live_events: LiveEvents) -> Any:
        """Wait for a response, and pass on batches while waiting."""
        import ray
        from ray.exceptions import GetTimeoutError

        with contextlib.suppress(GetTimeoutError):
            return ray.get(response, timeout=Forwarder.EVERY_SECONDS)  # no batch is sent earlier
        check_at = time.monotonic() + _CHECK_SECONDS
        try:
            while (batches := channel.wait(response, _CHECK_SECONDS)) is not None:
                live_events.handle(batches)
                if time.monotonic() > check_at:
                    self._check_worker(actor, None)
                    check_at = time.monotonic() + _CHECK_SECONDS
            return self._get(response, partial(self._check_worker, actor))
        except BaseException as error:
            if live_events.caused(error) and self._stop_action(response, channel, live_events.call):
                raise _CallbackFailed(error) from None
            raise

    @staticmethod
    def _stop_action(response: Any, channel: EventChannel, call: int) -> bool:
        """Stop the action of a call; return whether its worker can be used again."""
        import ray

        channel.stop(call)
        ready, _ = ray.wait([response], timeout=_STOP_SECONDS, fetch_local=False)
        return bool(ready)

    def _check_worker(self, actor: Any, error: Exception | None) -> None:
        """Require that the cluster is alive; kill a worker that does not respond long after its action's timeout."""
        self._require_cluster(error)
        if time.monotonic() > self._overdue_at:
            import ray

            assert self._info is not None
            # `ray.kill` sends the worker a request, which a hanging worker may not handle.
            if self._info.host == socket.gethostname():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self._info.pid, signal.SIGKILL)
            ray.kill(actor)

    def _require_cluster(self, error: Exception | None) -> None:
        assert self.cluster is not None
        if not is_alive(self.cluster.address):
            raise self._lost_cluster("it no longer responds") from error

    def _lost_cluster(self, reason: object) -> ClusterError:
        """Disconnect from a cluster that has failed, and return the error."""
        self._actor = None
        background_shutdown.start()
        return ClusterError(f"the cluster at {self._cluster} failed: {_first_line(reason)}")

    def _warm_actor(self, call: ActionCall, runtime_env: RuntimeEnvBuilder) -> Any:
        if self._actor is not None and connected_address() == self._cluster and not has_ended(self._cluster):
            is_same_env = self._shares_filesystem or self._runtime_env_key == runtime_env.key
            if is_same_env and self._variables == variables_at_start(call.env):
                return self._actor
            self.close()
        cluster = self.cluster = find_cluster(self._address, jobs=self._jobs)
        self._cluster = connect(cluster)
        self._shares_filesystem = cluster.is_managed or shares_disk(cluster, _node_addresses())
        self._runtime_env_key = runtime_env.key
        self._variables = variables_at_start(call.env)
        self._actor = self._new_actor(call, runtime_env)
        return self._actor

    def _new_actor(self, call: ActionCall, runtime_env: RuntimeEnvBuilder) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        needed = self._resources or {"num_cpus": 1}  # Ray's default for scheduling an actor
        assert self.cluster is not None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        require_resources(needed, nodes, is_managed=self.cluster.is_managed)
        # By default, an actor that requests other resources but no CPUs holds one CPU; a job does not.
        options: dict[str, Any] = {"num_cpus": 0} | self._resources if self._resources else {}
        within = self._resource_timeout
        with suppress_ray_output():
            environment: dict[str, Any] = {}
            if not self._shares_filesystem:
                environment = runtime_env.build(upload_with_ray)
                within += setup_seconds(environment)
            if self._variables:
                environment["env_vars"] = {**(environment.get("env_vars") or {}), **self._variables}
            if environment:
                options["runtime_env"] = environment
            actor_type = ray.remote(actor_class()).options(max_restarts=0, **options)
            through_client = connected_through_client()
            actor = actor_type.remote(VERSION_LINE, call.import_root, self._shares_filesystem, through_client)
        try:
            response = self._get(actor.ready.remote(), self._require_cluster, within)
            if isinstance(response, bytes):
                ray.kill(actor)
                raise version_error(VersionMismatch(response))
            self._info = WorkerInfo(*response)
            self._post_mortem = PostMortem(self._info)
        except GetTimeoutError as error:
            ray.kill(actor)
            raise resource_timeout_error(self._cluster, needed, ray.available_resources(), within) from error
        except ClusterError:  # the actor has ended with the cluster
            raise
        except RayError as error:
            self._require_cluster(error)
            raise setup_error(str(error)) or ClusterError(f"the worker did not start: {error}") from error
        except BaseException:  # Ctrl-C: the actor must not start later
            ray.kill(actor)
            raise
        return actor


def _node_addresses() -> list[str]:
    """Return the IP addresses of the live nodes of the cluster that this process is connected to."""
    import ray

    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


class PostMortem:
    """Post-mortem data of a worker on this machine: the output of its call and its crash log, readable after it died.

    Both are in unnamed files, which are deleted once no process has them open; so this object keeps them open until
    `close`. For a worker on another machine, nothing is available.

    Args:
        worker: The worker.
    """

    def __init__(self, worker: WorkerInfo) -> None:
        self._files: list[int] = []
        self.close = weakref.finalize(self, _close_all, self._files)
        self._oom_kills = kernel_oom_kills()
        if worker.host == socket.gethostname():
            with contextlib.suppress(OSError):  # there is no /proc, or the pid is in another container
                for descriptor in worker.descriptors:
                    self._files.append(os.open(f"/proc/{worker.pid}/fd/{descriptor}", os.O_RDONLY))

    def output(self) -> Captured:
        """Return the output."""
        if len(self._files) < 2:
            return Captured()
        stdout, stderr = (os.pread(file, _LAST_BYTES, 0).decode("utf-8", errors="replace") for file in self._files[:2])
        return Captured(stdout=stdout, stderr=stderr)

    @property
    def is_available(self) -> bool:
        """Whether the worker's files can be read."""
        return len(self._files) == 5

    def events(self, loads: Callable[[bytes], Any]) -> Iterator[tuple[Any, ...]]:
        """Yield the events of the current call, as tuples.

        Args:
            loads: Unpickles one.
        """
        return decode_entries(read_journal(self._files[3]), loads)

    def logs(self, loads: Callable[[bytes], Any]) -> Iterator[LogEntry]:
        """Yield the log records and warnings of the current call.

        Args:
            loads: Unpickles one.
        """
        return decode_entries(read_journal(self._files[4]), loads)

    def process_exit(self) -> ProcessExit | None:
        """Return how the worker ended; None if it is unknown."""
        if len(self._files) < 3:
            return None
        out_of_memory = kernel_oom_kills() > self._oom_kills
        return parse_crash_log(read_crash_log(self._files[2]), out_of_memory=out_of_memory)


class RayActorExecutor(Executor):
    """Runs actions on a Ray actor, which is created on first use and kept for later calls.

    Calls are made one at a time. A worker that dies is replaced at the next call. If no cluster is given or running, an
    ephemeral one is started, which ends with this process.

    Args:
        env: Environment variables of the action, which override those of the worker. They are sent with the call.
        job_id: Id of the runs; each run gets a new one by default.
        plugin: The plugin whose actions can be named; see `Executor`.
        timeout: Timeout of a call in seconds.
        logger: Sink for events, once the run has returned; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.
        ray_address: `host:port`, `ray://host:port`, or `auto`. By default `RAY_ADDRESS`, else an ephemeral cluster.
        num_cpus: CPUs that the worker holds. By default it needs one to be scheduled and holds none.
        num_gpus: GPUs that the worker holds: a fraction of one, or a whole number.
        memory: Memory that the worker holds, in bytes, or as text: `"2GB"` is 2 × 1000³ bytes, `"2GiB"` 2 × 1024³. Ray
            uses it for scheduling and does not enforce it.
        resources: Custom resources that the worker holds, by name: `{"accelerator": 1}`.
        resource_timeout: Seconds to wait for a worker while other workers hold the resources.
        worker: A worker shared with other executors, instead of its own; `close` does not stop it.
        debug_sdk: Upload this runtime to a cluster that does not share this file system, instead of using the one
            installed there.

    Example:
        >>> with RayActorExecutor(plugin="example_plugin") as executor:  # doctest: +SKIP
        ...     trained = executor.execute("train", {"epochs": 5})
        ...     executor.execute("evaluate", {"weights": trained.weights})  # the same worker
    """

    mode = "task"
    starts_process = True

    def __init__(
        self,
        env: PluginEnvironment | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        *,
        plugin: Plugin | Path | str | None = None,
        timeout: float | None = None,
        logger: Logger | None = None,
        language: str | None = None,
        ray_address: str | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | str | None = None,
        resources: Mapping[str, float] | None = None,
        resource_timeout: float = WAIT_SECONDS,
        worker: WarmWorker | None = None,
        debug_sdk: bool = False,
    ) -> None:
        super().__init__(env, job_id, plugin=plugin, timeout=timeout, logger=logger, language=language)
        self._runtime_env = RuntimeEnvBuilder(self._plugin, debug_sdk=debug_sdk)
        self._shared = worker is not None
        self._worker = worker or WarmWorker(
            ray_address,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory,
            resources=resources,
            resource_timeout=resource_timeout,
        )

    def close(self) -> None:
        """Stop the worker, unless it is shared. The next call starts a new one."""
        if not self._shared:
            self._worker.close()

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that the worker is on; None before the first call."""
        return self._worker.cluster

    @property
    def backend(self) -> Backend | None:
        """The cluster, as the `Backend` that all executors return."""
        return None if self.cluster is None else self.cluster.as_backend()

    def _run_call(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        __tracebackhide__ = True
        try:
            encoded = encode_call(call, out_of_band=True)
        except ENCODE_CALL_ERRORS as error:
            return ActionRun(call.name, error=error, mode=self.mode, job_id=call.job_id)
        run = self._worker.run(encoded, self._runtime_env, on_event, on_output)
        self._replay(run, events=on_event is None, output=on_output is None)
        return run


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


class _CallbackFailed(Exception):
    """A callback of a watched call has raised an error, and the action was stopped."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class _WorkerLost(Exception):
    """The worker has died during a call. The cause is Ray's error; the message is the relevant line of it."""

    def __init__(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = [line for line in lines if "exit" in line.lower() or "killed" in line.lower()]
        # Ray appends a list of possible causes.
        super().__init__((reasons or lines or [type(error).__name__])[-1].partition(" Some common causes")[0])
        self.out_of_memory = "low on memory" in str(error)


def _first_line(reason: object) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0]

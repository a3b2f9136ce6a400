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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synapse_runtime.core.execution import ActionCall, ActionRun
from synapse_runtime.core.output_capture import Captured, OutputFiles, last_lines
from synapse_runtime.core.threads import InterruptibleLock
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import (
    ClusterError,
    ExecutionError,
    ExecutionTimeout,
    WorkerCrashed,
)
from synapse_runtime.executors.base import Backend, Executor, OnEvent, OnOutput
from synapse_runtime.executors.path_mapping import create_worker_copy
from synapse_runtime.executors.process_exit import (
    CrashLog,
    ProcessExit,
    kernel_oom_kills,
    parse_crash_log,
    read_crash_log,
)
from synapse_runtime.executors.protocol import (
    REFUSALS,
    VERSION_LINE,
    EncodedCall,
    VersionMismatch,
    decode_request,
    decode_run,
    encode_call,
    version_error,
)
from synapse_runtime.executors.ray.cluster.driver import (
    Cluster,
    background_shutdown,
    connected_address,
    connected_through_client,
)
from synapse_runtime.executors.ray.cluster.handle import has_ended
from synapse_runtime.executors.ray.cluster.resolve import connect, find_cluster, is_alive, shares_disk
from synapse_runtime.executors.ray.event_channel import EventChannel, LiveEvents
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output
from synapse_runtime.executors.ray.resources import WAIT_SECONDS, checked_resources, no_room, require_resources
from synapse_runtime.executors.ray.runtime_env import RuntimeEnvBuilder, setup_error, setup_seconds, upload_with_ray
from synapse_runtime.executors.streaming import Forwarder, decode_batch
from synapse_runtime.executors.worker import restore_temp_dir, serve
from synapse_runtime.loggers import Logger

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
# How often a caller that waits looks whether the cluster is still there.
_LOOK_SECONDS = 1.0
# How long beyond an action's limit a worker may be silent, for large params on their way. It ends itself at the limit,
# unless it is stopped altogether.
_OVERDUE_SECONDS = 15.0
# Ray's words for an actor that died because its machine, or ours, is gone from the cluster.
_NODE_LOST = ("owner has died", "node has crashed", "node has died")
# As much of a dead worker's output as is worth reading.
_LAST_BYTES = 16_000_000


class WorkerInfo(NamedTuple):
    """Where a worker is: host, pid, Ray's id of the node; its own descriptors of stdout, stderr and its notes."""

    host: str
    pid: int
    node: str
    descriptors: tuple[int, ...]


def actor_class() -> type:
    """Return the class of the actors, which goes by value, as do all arguments and answers: as plain data.

    So whoever only passes them on, as Ray Client's server and a queue do, needs nothing of this package; and a worker
    that does not have it can say so.
    """

    class ActionWorker:
        """The actor."""

        def __init__(self, version_line: bytes, root: str | None, shares_filesystem: bool, in_band: bool) -> None:
            import synapse_runtime

            try:
                from synapse_runtime.executors import protocol

                own_version_line = protocol.VERSION_LINE
            except (ImportError, AttributeError):
                own_version_line = b"synapse unknown " + synapse_runtime.__version__.encode()
            self._other_version = None if own_version_line == version_line else own_version_line
            if self._other_version is None:
                from synapse_runtime.executors.ray.task import TaskWorker

                self._worker = TaskWorker(root, shares_filesystem, in_band)

        def ready(self) -> bytes | tuple[str, int, str, tuple[int, ...]]:
            """Answer as soon as the worker is ready; a worker of another version answers with its version line."""
            return self._other_version or (*self._worker.info,)

        def run(self, request: bytes, *buffers: Any) -> Any:
            """Serve a request; return the response, in a list with its large buffers if it has any."""
            return self._worker.run(request, buffers)

        def use_channel(self, channel: Any) -> None:
            """Send events and output of watched calls to this channel, from now on."""
            self._worker.channel = channel

        def run_watched(self, call: int, request: bytes, *buffers: Any) -> Any:
            """Serve a request, and send events and output to the channel as they come."""
            return self._worker.run_watched(call, request, buffers)

    return ActionWorker


class TaskWorker:
    """What an actor does: it takes over its process's output once, then serves requests.

    Args:
        root: The plugin's directory in the caller's file system, if it was sent along.
        shares_filesystem: Whether this process sees the caller's file system.
        in_band: Whether responses pass through Ray Client's server, which cannot handle large buffers beside them.
    """

    def __init__(self, root: str | None, shares_filesystem: bool, in_band: bool) -> None:
        import ray

        self._in_band = in_band
        self.channel: Any = None
        restore_temp_dir()
        self._path_map = None
        if not shares_filesystem:
            self._path_map = create_worker_copy(root, None if root is None else os.getcwd())
        self._output = OutputFiles()
        self._crash_log = CrashLog()
        self._crash_log.install()
        self._node = str(ray.get_runtime_context().get_node_id())

    @property
    def info(self) -> WorkerInfo:
        """Where this worker is."""
        descriptors = (*self._output.descriptors, self._crash_log.descriptor)
        return WorkerInfo(socket.gethostname(), os.getpid(), self._node, descriptors)

    def run(self, request: bytes, buffers: Sequence[Any]) -> Any:
        """Serve a request; return the response, in a list with its large buffers if it has any."""
        return self._serve(request, buffers, None)

    def run_watched(self, call: int, request: bytes, buffers: Sequence[Any]) -> Any:
        """Serve a request, and send events and output to the channel as they come."""

        def send(number: int, batch: bytes) -> None:
            self.channel.put.remote(call, number, batch)

        forwarder = Forwarder(send, self._output)
        try:
            return self._serve(request, buffers, forwarder)
        finally:
            forwarder.close()

    def _serve(self, request: bytes, buffers: Sequence[Any], forwarder: Forwarder | None) -> Any:
        out_of_band: list[pickle.PickleBuffer] = []
        data = serve(
            decode_request(request, buffers),
            mode="task",
            node=self._node,
            crash_log=self._crash_log,
            output=self._output,
            path_map=self._path_map,
            on_event=None if forwarder is None else forwarder.event,
            on_end=None if forwarder is None else forwarder.close,
            out_of_band=None if self._in_band else out_of_band,
        )
        return [data, *out_of_band] if out_of_band else data


class WarmWorker:
    """One actor, created on first use and kept for the next call; several executors may share it.

    Args:
        address: The cluster's address; None for the one that `find_cluster` finds.
        num_cpus: CPUs that the worker holds.
        num_gpus: GPUs that the worker holds.
        memory: Memory that the worker holds, in bytes, or as text such as `"2GB"`.
        resources: Custom resources that the worker holds, by name.
        resource_timeout: Seconds to wait for what others hold.
        jobs: Whether an ephemeral cluster started for it should offer the Jobs API too.
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
        self._resource_timeout = resource_timeout
        self._resources = checked_resources(num_cpus, num_gpus, memory, resources)
        self._jobs = jobs
        self._actor: Any = None
        self._info: WorkerInfo | None = None
        self._post_mortem: PostMortem | None = None
        self._runtime_env_key: tuple[str | None, bool] | None = None  # of the runtime environment that it was made with
        self._shares_filesystem = True
        self._channel: EventChannel | None = None
        self._watched = itertools.count()
        self.cluster: Cluster | None = None  # as it was found
        self._cluster = ""  # its own address
        self._overdue_at = math.inf  # when the call that runs now will wait no longer
        self._call_lock = InterruptibleLock()  # of calls; a wait for it can be stopped
        self._lock = threading.RLock()

    def close(self) -> None:
        """End the worker. The next call gets a new one."""
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
        call: ActionCall,
        encoded: EncodedCall,
        runtime_env: RuntimeEnvBuilder,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
    ) -> ActionRun:
        """Make a call, after those before it have ended, and return its run.

        Args:
            call: The call.
            encoded: The same, encoded.
            runtime_env: Builds what a worker needs that does not share this file system.
            on_event: Called with each event as it happens.
            on_output: Called with what the worker prints, as it comes.

        Raises:
            ClusterError: There is no cluster, or it failed.
            ConfigError: The plugin cannot be sent there.
        """
        with self._call_lock.held(), self._lock:
            actor = self._warm_actor(call, runtime_env)
            listener = None
            if on_event is not None or on_output is not None:
                read = partial(decode_batch, import_root=call.import_root)
                listener = LiveEvents(next(self._watched), on_event, on_output, read)
            started = time.monotonic()
            self._overdue_at = started + (math.inf if call.timeout is None else call.timeout + _OVERDUE_SECONDS)
            try:
                data, *buffers = self._answer(actor, encoded, listener)
            except _WorkerLost as lost:
                run = self._crashed_run(call, lost, time.monotonic() - started)
                if listener is not None:
                    run.events = listener.events
                    listener.finish(run)
                self.close()
                return run
            except BaseException:  # Ctrl-C above all: the action must not go on without us
                self.close()
                raise
            run = decode_run(data, encoded.call, buffers=buffers)
            if listener is not None:
                listener.finish(run)
            if isinstance(run.error, ExecutionTimeout):  # the action may have left anything behind, threads above all
                self.close()
        return run

    def _crashed_run(self, call: ActionCall, lost: _WorkerLost, took: float) -> ActionRun:
        """Make the run of a call whose worker has died under it."""
        assert self._post_mortem is not None
        assert self._info is not None
        host, pid, node, _ = self._info
        captured, death = self._post_mortem.output(), self._post_mortem.process_exit()
        error: ExecutionError
        if (death is not None and death.timed_out) or time.monotonic() > self._overdue_at:
            text = f"{call.name} did not end within {call.timeout:g} s, and did not notice: its worker was ended"
            error = ExecutionTimeout(text)
        elif lost.out_of_memory:
            error = WorkerCrashed(f"the worker of {call.name} ran out of memory: Ray ended it")
        else:
            how = f"died: {lost}" if death is None else death.describe()
            error = WorkerCrashed(f"the worker of {call.name} {how}")
        error.__cause__ = lost.__cause__
        error.attach("It was here:", death.stack if death is not None else "")
        error.attach("Its last output:", last_lines(captured.stdout + captured.stderr))
        return ActionRun(
            call.name,
            error=error,
            captured=captured,
            mode="task",
            job_id=call.job_id,
            duration=took,
            host=host,
            pid=pid,
            node=node,
        )

    def _answer(self, actor: Any, encoded: EncodedCall, listener: LiveEvents | None) -> Sequence[Any]:
        """Return the response, and its large buffers.

        Raises:
            _WorkerLost: The worker has died under the call.
            ClusterError: The cluster has.
        """
        from ray.exceptions import OutOfMemoryError, RayActorError, RayError

        request = encoded.message(shares_filesystem=self._shares_filesystem)
        try:
            if listener is None:
                answer = self._get(actor.run.remote(request, *encoded.buffers), partial(self._check_worker, actor))
            else:
                channel = self._open_channel(actor)
                answer = self._watch(
                    actor, actor.run_watched.remote(listener.call, request, *encoded.buffers), channel, listener
                )
        except (RayActorError, OutOfMemoryError) as error:
            self._require_cluster(error)
            if any(words in str(error) for words in _NODE_LOST):
                raise self._lost_cluster(error) from error
            if listener is not None and self._channel is not None:
                listener.handle(self._channel.drain())
            raise _WorkerLost(error) from error
        except RayError as error:
            self._require_cluster(error)
            raise ClusterError(f"the cluster failed under the call: {_first_line(error)}") from error
        except ConnectionError as error:  # what Ray Client raises
            raise self._lost_cluster(error) from error
        return [answer] if isinstance(answer, bytes) else answer

    def _get(self, answer: Any, look: Callable[[Exception], object], seconds: float = math.inf) -> Any:
        """Wait for an answer, as long as somebody is there to give one: else Ray ends this process after a minute.

        Args:
            answer: What to wait for.
            look: Called once a second; raises where nobody is there any more.
            seconds: How long to wait.

        Raises:
            GetTimeoutError: It took longer.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            try:
                return ray.get(answer, timeout=max(0.0, min(left, _LOOK_SECONDS)))
            except GetTimeoutError as error:
                look(error)
                if left <= _LOOK_SECONDS:
                    raise

    def _open_channel(self, actor: Any) -> EventChannel:
        if self._channel is None or not self._channel.is_alive:
            self._channel = EventChannel()
            actor.use_channel.remote(self._channel.actor)
        return self._channel

    def _watch(self, actor: Any, answer: Any, channel: EventChannel, listener: LiveEvents) -> Any:
        """Wait for an answer, and hand on what comes meanwhile."""
        import ray
        from ray.exceptions import GetTimeoutError

        with contextlib.suppress(GetTimeoutError):
            return ray.get(answer, timeout=Forwarder.EVERY_SECONDS)  # before that there is nothing to be heard
        look_at = time.monotonic() + _LOOK_SECONDS
        while (batches := channel.wait(answer, _LOOK_SECONDS)) is not None:
            listener.handle(batches)
            if time.monotonic() > look_at:
                self._check_worker(actor, None)
                look_at = time.monotonic() + _LOOK_SECONDS
        return self._get(answer, partial(self._check_worker, actor))

    def _check_worker(self, actor: Any, error: Exception | None) -> None:
        """Require that the cluster is there; end a worker that is silent long after its action's limit."""
        self._require_cluster(error)
        if time.monotonic() > self._overdue_at:
            import ray

            assert self._info is not None
            if self._info.host == socket.gethostname():  # Ray asks a worker to end, which this one may not hear
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self._info.pid, signal.SIGKILL)
            ray.kill(actor)

    def _require_cluster(self, error: Exception | None) -> None:
        assert self.cluster is not None
        if not is_alive(self.cluster.address):
            raise self._lost_cluster("it does not answer any more") from error

    def _lost_cluster(self, reason: object) -> ClusterError:
        """Leave a cluster that is gone, and make the error that tells of it."""
        self._actor = None
        background_shutdown.start()
        return ClusterError(f"the cluster at {self._cluster} failed: {_first_line(reason)}")

    def _warm_actor(self, call: ActionCall, runtime_env: RuntimeEnvBuilder) -> Any:
        if self._actor is not None and connected_address() == self._cluster and not has_ended(self._cluster):
            if self._shares_filesystem or self._runtime_env_key == runtime_env.key:
                return self._actor
            self.close()
        cluster = self.cluster = find_cluster(self._address, jobs=self._jobs)
        self._cluster = connect(cluster)
        self._shares_filesystem = cluster.is_managed or shares_disk(cluster, _node_addresses())
        self._runtime_env_key = runtime_env.key
        self._actor = self._new_actor(call, runtime_env)
        return self._actor

    def _new_actor(self, call: ActionCall, runtime_env: RuntimeEnvBuilder) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        needed = self._resources or {"num_cpus": 1}  # Ray's own rule for an actor of which nothing is said
        require_resources(needed, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        # By another rule of Ray's, an actor that asks for anything but CPUs holds one; a job does not.
        options: dict[str, Any] = {"num_cpus": 0} | self._resources if self._resources else {}
        within = self._resource_timeout
        with suppress_ray_output():
            if not self._shares_filesystem:
                environment = runtime_env.build(upload_with_ray)
                options["runtime_env"] = environment
                within += setup_seconds(environment)
            actor_type = ray.remote(actor_class()).options(max_restarts=0, **options)
            through_client = connected_through_client()
            actor = actor_type.remote(VERSION_LINE, call.import_root, self._shares_filesystem, through_client)
        try:
            answer = self._get(actor.ready.remote(), self._require_cluster, within)
            if isinstance(answer, bytes):
                ray.kill(actor)
                raise version_error(VersionMismatch(answer))
            self._info = WorkerInfo(*answer)
            self._post_mortem = PostMortem(self._info)
        except GetTimeoutError as error:
            ray.kill(actor)
            raise no_room(self._cluster, needed, ray.available_resources(), within) from error
        except ClusterError:  # it is gone, and the actor with it
            raise
        except RayError as error:
            self._require_cluster(error)
            raise setup_error(str(error)) or ClusterError(f"the worker did not start: {error}") from error
        except BaseException:  # Ctrl-C: an actor that nobody waits for must not come up later
            ray.kill(actor)
            raise
        return actor


def _node_addresses() -> list[str]:
    """Return the IP addresses of the living nodes of the cluster that this process is connected to."""
    import ray

    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


class PostMortem:
    """What a worker on this machine has printed in its current call, and noted at its end, readable after its death.

    Both go to files without a name, which vanish with the last process that has them open; so we have them open too,
    until `close` or our own end. Of a worker on another machine nothing is known here.

    Args:
        worker: Where the worker is.
    """

    def __init__(self, worker: WorkerInfo) -> None:
        self._files: list[int] = []
        self.close = weakref.finalize(self, _close_all, self._files)
        self._oom_kills = kernel_oom_kills()
        if worker.host == socket.gethostname():
            with contextlib.suppress(OSError):  # no /proc here, or the pid is of another container
                for descriptor in worker.descriptors:
                    self._files.append(os.open(f"/proc/{worker.pid}/fd/{descriptor}", os.O_RDONLY))

    def output(self) -> Captured:
        """Return what was printed."""
        if len(self._files) < 2:
            return Captured()
        stdout, stderr = (os.pread(file, _LAST_BYTES, 0).decode("utf-8", errors="replace") for file in self._files[:2])
        return Captured(stdout=stdout, stderr=stderr)

    def process_exit(self) -> ProcessExit | None:
        """Return how the worker ended; None where that is not known here."""
        if len(self._files) < 3:
            return None
        out_of_memory = kernel_oom_kills() > self._oom_kills
        return parse_crash_log(read_crash_log(self._files[2]), out_of_memory=out_of_memory)


class RayActorExecutor(Executor):
    """Runs actions on a Ray actor, which is created on first use and stays warm for the next call.

    Calls are made one at a time. A worker that dies is replaced at the next call. Where no cluster is given or
    running, an ephemeral one is started, which ends with this process.

    Args:
        env: Variables of the action's environment, over those of the worker. They travel with the call.
        job_id: Id of the runs; each run gets a fresh one by default.
        plugin: The plugin whose actions can be named; see `Executor`.
        timeout: Seconds that a call may take.
        logger: Sink for events, when the run is back; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.
        ray_address: `host:port`, `ray://host:port`, or `auto`. By default `RAY_ADDRESS`, else an ephemeral cluster.
        num_cpus: CPUs that the worker holds. By default it needs one to be placed and holds none.
        num_gpus: GPUs that the worker holds: a part of one, or whole ones.
        memory: Memory that the worker holds, in bytes, or as text: `"2GB"` is 2 × 1000³ bytes, `"2GiB"` 2 × 1024³. Ray
            counts it when it places workers; it does not enforce it.
        resources: Custom resources that the worker holds, by name: `{"accelerator": 1}`.
        resource_timeout: Seconds to wait for a worker where others hold the resources.
        worker: A worker shared with other executors, instead of one of its own; closing leaves it warm.
        debug_sdk: Let this runtime travel to a cluster that does not see this disk, instead of using the one there.

    Example:
        >>> with RayActorExecutor(plugin="example_plugin") as executor:  # doctest: +SKIP
        ...     trained = executor.execute("train", {"epochs": 5})
        ...     executor.execute("evaluate", {"weights": trained.weights})  # the same worker
    """

    mode = "task"

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
        """End the worker, unless it is shared. The next call gets a new one."""
        if not self._shared:
            self._worker.close()

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that the worker is on; None before the first call."""
        return self._worker.cluster

    @property
    def backend(self) -> Backend | None:
        """The same, as all executors describe it."""
        return None if self.cluster is None else self.cluster.as_backend()

    def _carry(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        __tracebackhide__ = True
        try:
            encoded = encode_call(call, out_of_band=True)
        except REFUSALS as error:
            return ActionRun(call.name, error=error, mode=self.mode, job_id=call.job_id)
        run = self._worker.run(encoded.call, encoded, self._runtime_env, on_event, on_output)
        self._replay(run, events=on_event is None, output=on_output is None)
        return run


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


class _WorkerLost(Exception):
    """The worker has died under a call; the cause is Ray's error, the text its own words for it."""

    def __init__(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if "exit" in line.lower() or "killed" in line.lower()]
        # Ray goes on with a list of what it might have been.
        super().__init__((told or lines or [type(error).__name__])[-1].partition(" Some common causes")[0])
        self.out_of_memory = "low on memory" in str(error)


def _first_line(reason: object) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0]

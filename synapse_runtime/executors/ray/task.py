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

from synapse_runtime.aside import Turn
from synapse_runtime.capture import Captured, OutputFiles, last_lines
from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.errors import (
    ClusterError,
    ExecutionError,
    ExecutionTimeout,
    WorkerCrashed,
)
from synapse_runtime.execution import ActionCall, ActionRun
from synapse_runtime.executors.base import Executor, OnEvent, OnOutput
from synapse_runtime.executors.crash import Death, Notes, death_of, kernel_oom_kills, read_notes
from synapse_runtime.executors.ray.cluster import connect, find_cluster, is_alive, shares_disk
from synapse_runtime.executors.ray.connection import (
    Cluster,
    connected_address,
    connected_through_client,
    departure,
)
from synapse_runtime.executors.ray.luggage import Luggage, send_through_ray, setup_seconds, why_not_set_up
from synapse_runtime.executors.ray.mailbox import Listener, Mailbox
from synapse_runtime.executors.ray.owned import has_ended
from synapse_runtime.executors.ray.quiet import quiet
from synapse_runtime.executors.ray.resources import WAIT_SECONDS, checked_resources, no_room, require_resources
from synapse_runtime.executors.travel import settle
from synapse_runtime.executors.worker import (
    REFUSALS,
    Forwarder,
    Parcel,
    pack_call,
    restore_temp_dir,
    serve,
    unpack_run,
    unpack_said,
)
from synapse_runtime.loggers import Logger

if TYPE_CHECKING:
    from synapse_runtime.plugin import Plugin

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


class Whereabouts(NamedTuple):
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

        def __init__(self, root: str | None, abroad: bool, in_band: bool) -> None:
            from synapse_runtime.executors.ray.task import TaskWorker

            self._worker = TaskWorker(root, abroad, in_band)

        def ready(self) -> tuple[str, int, str, tuple[int, ...]]:
            """Answer, so that the caller knows that the worker is there."""
            return (*self._worker.whereabouts,)

        def run(self, parcel: bytes, *buffers: Any) -> Any:
            """Run a parcel's call; return the packed run, in a list with its large buffers if it has any."""
            return self._worker.run(parcel, buffers)

        def use(self, mailbox: Any) -> None:
            """Put what watched calls say and print into this mailbox, from now on."""
            self._worker.mailbox = mailbox

        def run_watched(self, call: int, parcel: bytes, *buffers: Any) -> Any:
            """Run a parcel's call, and put what it says and prints into the mailbox as it comes."""
            return self._worker.run_watched(call, parcel, buffers)

    return ActionWorker


class TaskWorker:
    """What an actor does. It takes over its process's output once, then serves parcels.

    Args:
        root: The plugin's directory on the caller's disk, if it has come along.
        abroad: Whether this process does not see the caller's disk.
        in_band: Whether answers pass by somebody who cannot handle large buffers beside them: Ray Client's server.
    """

    def __init__(self, root: str | None, abroad: bool, in_band: bool) -> None:
        import ray

        self._in_band = in_band
        self.mailbox: Any = None
        restore_temp_dir()
        self._moved = settle(root, None if root is None else os.getcwd()) if abroad else None
        self._output = OutputFiles()
        self._notes = Notes()
        self._notes.keep()
        self._node = str(ray.get_runtime_context().get_node_id())

    @property
    def whereabouts(self) -> Whereabouts:
        """Where this worker is."""
        descriptors = (*self._output.descriptors, self._notes.descriptor)
        return Whereabouts(socket.gethostname(), os.getpid(), self._node, descriptors)

    def run(self, parcel: bytes, buffers: Sequence[Any]) -> Any:
        """Run a parcel's call; return the packed run, in a list with its large buffers if it has any."""
        return self._serve(pickle.loads(parcel, buffers=buffers), None)

    def run_watched(self, call: int, parcel: bytes, buffers: Sequence[Any]) -> Any:
        """Run a parcel's call, and put what it says and prints into the mailbox as it comes."""

        def send(number: int, batch: bytes) -> None:
            self.mailbox.put.remote(call, number, batch)

        forwarder = Forwarder(send, self._output)
        try:
            return self._serve(pickle.loads(parcel, buffers=buffers), forwarder)
        finally:
            forwarder.close()

    def _serve(self, parcel: Parcel, forwarder: Forwarder | None) -> Any:
        apart: list[pickle.PickleBuffer] = []
        data = serve(
            parcel,
            mode="task",
            node=self._node,
            notes=self._notes,
            output=self._output,
            moved=self._moved,
            on_event=None if forwarder is None else forwarder.event,
            on_end=None if forwarder is None else forwarder.close,
            apart=None if self._in_band else apart,
        )
        return [data, *apart] if apart else data


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
        self._whereabouts: Whereabouts | None = None
        self._last_words: LastWords | None = None
        self._carries: tuple[str | None, bool] | None = None  # the key of the luggage that it was made with
        self._abroad = False
        self._mailbox: Mailbox | None = None
        self._watched = itertools.count()
        self.cluster: Cluster | None = None  # as it was found
        self._cluster = ""  # its own address
        self._overdue_at = math.inf  # when the call that runs now will wait no longer
        self._turn = Turn()  # of calls; a wait for it can be stopped
        self._lock = threading.RLock()

    def close(self) -> None:
        """End the worker. The next call gets a new one."""
        with self._lock:
            actor, self._actor = self._actor, None
            mailbox, self._mailbox = self._mailbox, None
            if self._last_words is not None:
                self._last_words.close()
                self._last_words = None
            if actor is not None and connected_address() == self._cluster and not has_ended(self._cluster):
                import ray

                ray.kill(actor)
                if mailbox is not None:
                    mailbox.close()

    def run(
        self,
        call: ActionCall,
        parcel: Parcel,
        luggage: Luggage,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
    ) -> ActionRun:
        """Make a call, after those before it have ended, and return its run.

        Args:
            call: The call.
            parcel: The same, packed.
            luggage: What a worker needs that does not see this disk.
            on_event: Called with each event as it happens.
            on_output: Called with what the worker prints, as it comes.

        Raises:
            ClusterError: There is no cluster, or it failed.
            ConfigError: The plugin cannot be sent there.
        """
        with self._turn.taken(), self._lock:
            actor = self._warm_actor(call, luggage)
            listener = None
            if on_event is not None or on_output is not None:
                read = partial(unpack_said, import_root=call.import_root)
                listener = Listener(next(self._watched), on_event, on_output, read)
            started = time.monotonic()
            self._overdue_at = started + (math.inf if call.timeout is None else call.timeout + _OVERDUE_SECONDS)
            try:
                data, *buffers = self._answer(actor, parcel, listener)
            except _WorkerLost as lost:
                run = self._lost(call, lost, time.monotonic() - started)
                if listener is not None:
                    run.events = listener.events
                    listener.finish(run)
                self.close()
                return run
            except BaseException:  # Ctrl-C above all: the action must not go on without us
                self.close()
                raise
            run = unpack_run(data, call, buffers=buffers)
            if listener is not None:
                listener.finish(run)
            if isinstance(run.error, ExecutionTimeout):  # the action may have left anything behind, threads above all
                self.close()
        return run

    def _lost(self, call: ActionCall, lost: _WorkerLost, took: float) -> ActionRun:
        """Make the run of a call whose worker has died under it."""
        assert self._last_words is not None
        assert self._whereabouts is not None
        host, pid, node, _ = self._whereabouts
        captured, death = self._last_words.output(), self._last_words.death()
        error: ExecutionError
        if (death is not None and death.timed_out) or time.monotonic() > self._overdue_at:
            text = f"{call.name} did not end within {call.timeout:g} s, and did not notice: its worker was ended"
            error = ExecutionTimeout(text)
        elif lost.out_of_memory:
            error = WorkerCrashed(f"the worker of {call.name} ran out of memory: Ray ended it")
        else:
            how = f"died: {lost}" if death is None else death.in_words()
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

    def _answer(self, actor: Any, parcel: Parcel, listener: Listener | None) -> Sequence[Any]:
        """Return the packed run, and its large buffers.

        Raises:
            _WorkerLost: The worker has died under the call.
            ClusterError: The cluster has.
        """
        from ray.exceptions import OutOfMemoryError, RayActorError, RayError

        buffers: list[pickle.PickleBuffer] = []
        packed = pickle.dumps(parcel, protocol=5, buffer_callback=buffers.append)
        try:
            if listener is None:
                answer = self._get(actor.run.remote(packed, *buffers), partial(self._look_after, actor))
            else:
                mailbox = self._open_mailbox(actor)
                answer = self._watch(
                    actor, actor.run_watched.remote(listener.call, packed, *buffers), mailbox, listener
                )
        except (RayActorError, OutOfMemoryError) as error:
            self._require_cluster(error)
            if any(words in str(error) for words in _NODE_LOST):
                raise self._lost_cluster(error) from error
            if listener is not None and self._mailbox is not None:
                listener.take(self._mailbox.rest())
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

    def _open_mailbox(self, actor: Any) -> Mailbox:
        if self._mailbox is None or not self._mailbox.is_there:
            self._mailbox = Mailbox()
            actor.use.remote(self._mailbox.actor)
        return self._mailbox

    def _watch(self, actor: Any, answer: Any, mailbox: Mailbox, listener: Listener) -> Any:
        """Wait for an answer, and hand on what comes meanwhile."""
        import ray
        from ray.exceptions import GetTimeoutError

        with contextlib.suppress(GetTimeoutError):
            return ray.get(answer, timeout=Forwarder.EVERY_SECONDS)  # before that there is nothing to be heard
        look_at = time.monotonic() + _LOOK_SECONDS
        while (letters := mailbox.wait(answer, _LOOK_SECONDS)) is not None:
            listener.take(letters)
            if time.monotonic() > look_at:
                self._look_after(actor, None)
                look_at = time.monotonic() + _LOOK_SECONDS
        return self._get(answer, partial(self._look_after, actor))

    def _look_after(self, actor: Any, error: Exception | None) -> None:
        """Require that the cluster is there; end a worker that is silent long after its action's limit."""
        self._require_cluster(error)
        if time.monotonic() > self._overdue_at:
            import ray

            assert self._whereabouts is not None
            if self._whereabouts.host == socket.gethostname():  # Ray asks a worker to end, which this one may not hear
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self._whereabouts.pid, signal.SIGKILL)
            ray.kill(actor)

    def _require_cluster(self, error: Exception | None) -> None:
        assert self.cluster is not None
        if not is_alive(self.cluster.address):
            raise self._lost_cluster("it does not answer any more") from error

    def _lost_cluster(self, reason: object) -> ClusterError:
        """Leave a cluster that is gone, and make the error that tells of it."""
        self._actor = None
        departure.begin()
        return ClusterError(f"the cluster at {self._cluster} failed: {_first_line(reason)}")

    def _warm_actor(self, call: ActionCall, luggage: Luggage) -> Any:
        if self._actor is not None and connected_address() == self._cluster and not has_ended(self._cluster):
            if not self._abroad or self._carries == luggage.key:
                return self._actor
            self.close()
        cluster = self.cluster = find_cluster(self._address, jobs=self._jobs)
        self._cluster = connect(cluster)
        self._abroad = not (cluster.is_ours or shares_disk(cluster, _node_addresses()))
        self._carries = luggage.key
        self._actor = self._new_actor(call, luggage)
        return self._actor

    def _new_actor(self, call: ActionCall, luggage: Luggage) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        needed = self._resources or {"num_cpus": 1}  # Ray's own rule for an actor of which nothing is said
        require_resources(needed, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        # By another rule of Ray's, an actor that asks for anything but CPUs holds one; a job does not.
        options: dict[str, Any] = {"num_cpus": 0} | self._resources if self._resources else {}
        within = self._resource_timeout
        with quiet():
            if self._abroad:
                environment = luggage.environment(send_through_ray)
                options["runtime_env"] = environment
                within += setup_seconds(environment)
            actor_type = ray.remote(actor_class()).options(max_restarts=0, **options)
            actor = actor_type.remote(call.import_root, self._abroad, connected_through_client())
        try:
            self._whereabouts = Whereabouts(*self._get(actor.ready.remote(), self._require_cluster, within))
            self._last_words = LastWords(self._whereabouts)
        except GetTimeoutError as error:
            ray.kill(actor)
            raise no_room(self._cluster, needed, ray.available_resources(), within) from error
        except ClusterError:  # it is gone, and the actor with it
            raise
        except RayError as error:
            self._require_cluster(error)
            raise why_not_set_up(str(error)) or ClusterError(f"the worker did not start: {error}") from error
        except BaseException:  # Ctrl-C: an actor that nobody waits for must not come up later
            ray.kill(actor)
            raise
        return actor


def _node_addresses() -> list[str]:
    """Return the IP addresses of the living nodes of the cluster that this process is connected to."""
    import ray

    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


class LastWords:
    """What a worker on this machine has printed in its current call, and noted at its end, readable after its death.

    Both go to files without a name, which vanish with the last process that has them open; so we have them open too,
    until `close` or our own end. Of a worker on another machine nothing is known here.

    Args:
        worker: Where the worker is.
    """

    def __init__(self, worker: Whereabouts) -> None:
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

    def death(self) -> Death | None:
        """Return how the worker ended; None where that is not known here."""
        if len(self._files) < 3:
            return None
        out_of_memory = kernel_oom_kills() > self._oom_kills
        return death_of(read_notes(self._files[2]), out_of_memory=out_of_memory)


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
        self._luggage = Luggage(self._plugin, debug_sdk=debug_sdk)
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

    def _carry(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        __tracebackhide__ = True
        try:
            parcel = pack_call(call)
        except REFUSALS as error:
            return ActionRun(call.name, error=error, mode=self.mode, job_id=call.job_id)
        run = self._worker.run(call, parcel, self._luggage, on_event, on_output)
        self._put_out(run, events=on_event is None, output=on_output is None)
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

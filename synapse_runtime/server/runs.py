"""Runs jobs in order of submission, some at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.environment import variables_at_start
from synapse_runtime.errors import ConfigError, WorkerCrashed, described
from synapse_runtime.json_values import decode_value
from synapse_runtime.plugins.plugin import Plugin
from synapse_runtime.redaction import secret_variables
from synapse_runtime.run_record import InvalidRecord, RunRecord
from synapse_runtime.server.auth import new_token
from synapse_runtime.server.changes import Changes
from synapse_runtime.server.processes import ProcessTemplate, RunProcess
from synapse_runtime.server.releases import Releases
from synapse_runtime.server.run_state import RunState
from synapse_runtime.server.store import (
    FAILED,
    PENDING,
    RUNNING,
    STOPPED,
    Batch,
    InvalidTransition,
    Job,
    Store,
    StoreUnavailable,
)

RunIn = Literal["worker", "task", "job"]
DIED: Final = "the server was stopped while the job was waiting or running"
# What is emitted within this time is stored together.
_BATCH_SECONDS = 0.03
_BATCH_EVENTS = 500
_STOP_SECONDS = 15.0
_RETRY_SECONDS = 0.5
# How long a job waits before it starts, while the request that has submitted it is answered, in a third of the time.
_ANSWER_SECONDS = 0.004


@dataclass(frozen=True)
class RunOptions:
    """How jobs are run.

    Attributes:
        run_in: In a process of this machine (`worker`), on a Ray actor (`task`) or as a Ray job (`job`).
        ray_address: The cluster's address, for the last two.
        concurrency: How many jobs run at a time.
        variables: Variables of the processes that run jobs, such as those with which they find a cluster.
    """

    run_in: RunIn = "worker"
    ray_address: str | None = None
    concurrency: int = 2
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def run_options(run_in: RunIn, ray_address: str | None, concurrency: int) -> RunOptions:
    """Return how jobs are run; for `task` and `job`, after finding the cluster, or starting one.

    Args:
        run_in: Where jobs run.
        ray_address: The cluster's address.
        concurrency: How many run at a time; 0 for as many as there are CPUs, at least 2.

    Raises:
        ClusterError: There is no cluster.
    """
    concurrency = concurrency or max(2, os.cpu_count() or 2)
    if run_in == "worker":
        return RunOptions(concurrency=concurrency)
    return RunOptions(run_in, ray_address, concurrency, _cluster_variables(ray_address, run_in))


@dataclass(frozen=True)
class Submission:
    """What a job needs beyond what is stored of it: its environment may contain secrets.

    Attributes:
        job_id: The job.
        params: Alternative params: the first that the action's model accepts are taken.
        env: Environment variables of the action.
        is_encoded: Whether params are encoded as in a run record.
        caller: Settings of the caller's process.
        caller_root: The plugin's directory there.
        test: What the caller's test has set up.
    """

    job_id: str
    params: list[Any] = field(repr=False)
    env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_encoded: bool = False
    caller: Mapping[str, Any] | None = field(default=None, repr=False)
    caller_root: str | None = None
    test: Mapping[str, Any] | None = field(default=None, repr=False)


class Runs:
    """The queue, and the threads that run its jobs.

    Args:
        store: The store.
        releases: The plugins.
        changes: Who is told that a job has changed.
        options: How jobs are run.
    """

    def __init__(self, store: Store, releases: Releases, changes: Changes, options: RunOptions) -> None:
        self._store = store
        self._releases = releases
        self._changes = changes
        self._options = options
        self._queue: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[str, RunProcess] = {}
        self._template = ProcessTemplate(self._environment())
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._host = ""

    def start(self, host: str) -> None:
        """Start to run jobs.

        Args:
            host: The address of this server, which actions find in their environment.
        """
        self._host = host
        for number in range(self._options.concurrency):
            thread = threading.Thread(target=self._work, name=f"synapse-run-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def prepare(self) -> None:
        """Start what the first job would have to wait for: the process whose forks run jobs."""
        self._template.prepare()

    @property
    def run_in(self) -> str:
        """Where actions run: `worker`, `task` or `job`."""
        return self._options.run_in

    def submit(self, submission: Submission) -> None:
        """Add a job, which is stored as pending, to the queue."""
        self._queue.put(submission)

    def stop(self, job_id: str) -> Job | None:
        """Stop a job, wait until it has ended, and return it; None if it does not exist.

        Raises:
            InvalidTransition: It has ended before.
        """
        with self._lock:
            process = self._running.get(job_id)
            if process is not None:
                process.stop()
        if process is None:
            job = self._store.job(job_id)
            if job is None:
                return None
            if job.has_ended:
                raise InvalidTransition(job.status, STOPPED)
            if job.status == PENDING:
                job = self._store.set_status(job_id, STOPPED)
                self._changes.notify(job_id)
                return job
        deadline = time.monotonic() + _STOP_SECONDS
        while (job := self._store.job(job_id)) is not None and not job.has_ended and time.monotonic() < deadline:
            time.sleep(0.02)
            with self._lock:
                process = self._running.get(job_id)
                if process is not None:
                    process.stop()
        return job

    def stop_all(self) -> None:
        """Stop all jobs that wait or run, and wait until they have ended."""
        jobs = [job for status in (PENDING, RUNNING) for job in self._store.jobs(status=status, limit=100_000)[0]]
        for job in jobs:
            with self._lock:
                process = self._running.get(job.id)
                if process is not None:
                    process.stop()
        for job in jobs:
            with contextlib.suppress(InvalidTransition):
                self.stop(job.id)

    def close(self) -> None:
        """Kill all runs and end the threads. The jobs stay as they are in the store."""
        with self._lock:
            self._closing.set()
            processes = [*self._running.values()]
        for process in processes:
            process.stop()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            process.close()
        self._template.close()

    def _work(self) -> None:
        while (submission := self._queue.get()) is not None and not self._closing.is_set():
            time.sleep(_ANSWER_SECONDS)
            while True:
                try:
                    self._run(submission)
                except StoreUnavailable:  # such as a full disk: the job stays until there is space
                    if self._closing.is_set():
                        return
                    time.sleep(_RETRY_SECONDS)
                    continue
                except Exception as error:  # noqa: BLE001 - a job must end, and this thread must not
                    self._fail(submission.job_id, error)
                break

    def _run(self, submission: Submission) -> None:
        """Run a job, unless it was stopped before."""
        job_id = submission.job_id
        job = self._store.job(job_id)
        if job is None or job.has_ended:
            return
        release = self._store.release(job.release_id)
        named = job.request.get("directory")
        live = self._releases.live.get(job.plugin) if release is not None and release.is_live else None
        live = live if named is None else Path(named)
        directory = self._releases.unpacked(job.content) if live is None else live
        content = job.content
        if live is not None:
            with contextlib.suppress(ConfigError, OSError):  # the run will report it
                content = self._releases.content_of(live)
        token = new_token()
        with self._lock:
            if self._closing.is_set():
                return
            process = self._template.start()
            self._running[job_id] = process
        try:
            try:
                started = self._store.set_status(job_id, RUNNING, content=content)
            except InvalidTransition:  # stopped meanwhile
                return
            if started is None:
                return
            self._changes.notify(job_id)
            self._store.add_token(token, name=f"run {job_id}", owner=job.owner, scopes=["read"], job_id=job_id)
            process.send(self._call(started, submission, str(directory), token, content))
            self._follow(started, process)
        finally:
            with self._lock:
                self._running.pop(job_id, None)
            process.close()
            with contextlib.suppress(StoreUnavailable):
                self._store.revoke_token(job_id=job_id)
            self._changes.notify(job_id)

    def _fail(self, job_id: str, error: Exception) -> None:
        """Mark a job as failed that could not be run."""
        message = f"the server could not run the job: {described(error)}"
        meta = {"error": {"error_type": "infrastructure", "message": message}}
        with contextlib.suppress(InvalidTransition, StoreUnavailable):
            batch = Batch(lines=[message + "\n"])
            self._store.set_status(job_id, FAILED, batch, result={"error": message}, meta=meta)
        self._changes.notify(job_id)

    def _follow(self, job: Job, process: RunProcess) -> None:
        """Store what a run emits, until it has ended, and its outcome."""
        state = RunState(job)
        record: RunRecord | None = None
        stored_at = 0.0
        for frame in process.frames(_BATCH_SECONDS):
            if frame is not None:
                kind = frame["frame"]
                if kind == "output":
                    state.add_output(frame["stream"], frame["text"])
                elif kind == "event":
                    state.add_event(frame["event"])
                elif kind == "run":
                    record = _read_record(frame["record"])
                if state.size < _BATCH_EVENTS and time.monotonic() - stored_at < _BATCH_SECONDS:
                    continue
            batch = state.take_batch()
            if batch:
                self._retry(partial(self._store.append, job.id, batch))
                self._changes.notify(job.id)
            stored_at = time.monotonic()
        if self._closing.is_set() and record is None:
            return  # the job fails when the store is closed
        if record is None and not process.is_stopped:
            text = f"the worker of {job.action} was killed: its supervisor {process.describe_exit()}"
            run = ActionRun(job.action, error=WorkerCrashed(text), mode="remote", job_id=job.id, pid=process.pid)
            record = RunRecord.from_run(run)
        status, last, columns = state.finish(record)
        try:
            self._retry(lambda: self._store.set_status(job.id, status, last, **columns))
        except InvalidTransition:  # the run, or an admin, has set another final status
            self._retry(lambda: self._store.update_job(job.id, record=columns.get("record")))

    def _retry(self, write: Any) -> None:
        while True:
            try:
                write()
            except StoreUnavailable:
                if self._closing.is_set():
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _call(self, job: Job, submission: Submission, directory: str, token: str, content: str) -> dict[str, Any]:
        request = job.request
        variables = {
            "SYNAPSE_HOST": self._host,
            "SYNAPSE_ACCESS_TOKEN": token,
            "SYNAPSE_JOB_ID": job.id,
            "SYNAPSE_PLUGIN_RELEASE_CODE": f"{job.plugin}@{job.version}",
            "SYNAPSE_PLUGIN_RELEASE_CHECKSUM": content,
        }
        if request.get("language"):
            variables["SYNAPSE_LANGUAGE"] = request["language"]
        env = dict(submission.env)
        with contextlib.suppress(ConfigError, ValueError):  # reported by the run
            env = {**Plugin.load_cached(directory).manifest.env, **decode_value(env)}
        return {
            "run_in": self._options.run_in,
            "ray_address": self._options.ray_address,
            "directory": directory,
            "action": request.get("entrypoint") or job.action,
            "name": request.get("name"),
            "params": submission.params,
            "caller": submission.caller,
            "caller_root": submission.caller_root,
            "test": submission.test or {},
            "is_encoded": submission.is_encoded,
            "env": dict(submission.env),
            "at_start": variables_at_start(env),
            "process_env": variables,
            "job_id": job.id,
            "timeout": request.get("timeout"),
            "language": request.get("language"),
            "resources": request.get("resources") or {},
        }

    def _environment(self) -> dict[str, str]:
        """Return the environment of runs: that of this process, without its secrets and its own settings."""
        inherited = dict(os.environ)
        secret = secret_variables(inherited)
        kept = {
            name: value for name, value in inherited.items() if name not in secret and not name.startswith("SYNAPSE_")
        }
        return kept | dict(self._options.variables)


def _cluster_variables(address: str | None, run_in: RunIn) -> dict[str, str]:
    """Return the variables with which the processes of runs connect to the cluster.

    The server finds or starts the cluster, so that runs share it, and it ends with the server if that started it.
    """
    access = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
    if address is not None:
        return access
    from synapse_runtime.executors.ray.cluster.control_socket import LOOPBACK_ENV
    from synapse_runtime.executors.ray.cluster.resolve import dashboard_of, find_cluster

    cluster = find_cluster(jobs=run_in == "job")
    if run_in == "job":
        dashboard_of(cluster)  # which starts in the background; a job needs it
    if cluster.token is not None:
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token, **LOOPBACK_ENV}
    return {**access, "RAY_ADDRESS": cluster.address}


def _read_record(data: Any) -> RunRecord | None:
    try:
        return RunRecord.loads(json.dumps(data))
    except InvalidRecord:
        return None

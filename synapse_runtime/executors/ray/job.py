"""Job mode: each call is a separate Ray job, submitted through the Jobs API; only HTTP is needed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import secrets
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from synapse_runtime.core.execution import ActionCall, ActionRun
from synapse_runtime.core.log_capture import LogEntry
from synapse_runtime.core.output_capture import Captured, last_lines
from synapse_runtime.core.threads import InterruptibleLock, reraise_dropped_interrupts
from synapse_runtime.environment import PluginEnvironment, variables_at_start
from synapse_runtime.errors import (
    ClusterError,
    ExecutionError,
    ExecutionTimeout,
    ResultNotSerializable,
    VersionMismatchWarning,
    WorkerCrashed,
)
from synapse_runtime.events import Event
from synapse_runtime.executors.base import Backend, Executor, OnEvent, OnOutput, checked_timeout
from synapse_runtime.executors.journal import decode_entries
from synapse_runtime.executors.patch_transfer import SentPatches
from synapse_runtime.executors.process_exit import ProcessExit
from synapse_runtime.executors.protocol import (
    ENCODE_CALL_ERRORS,
    VersionMismatch,
    decode_run,
    encode_call,
    loads_in_plugin,
    plugin_modules,
    version_error,
)
from synapse_runtime.executors.ray import job_log
from synapse_runtime.executors.ray.archive import package_of_one_file
from synapse_runtime.executors.ray.cluster.driver import Cluster
from synapse_runtime.executors.ray.cluster.handle import has_ended
from synapse_runtime.executors.ray.cluster.preflight import (
    Versions,
    certificates,
    free_resources,
    node_addresses,
    nodes_of,
    require_dashboard,
    session_directory,
    to_camel_case,
)
from synapse_runtime.executors.ray.cluster.resolve import (
    clear_token,
    dashboard_of,
    drop_broken_connection,
    find_cluster,
    shares_disk,
    without_dashboard_variable,
)
from synapse_runtime.executors.ray.job_key import job_key
from synapse_runtime.executors.ray.log_suppression import suppress_log_records, suppress_ray_output
from synapse_runtime.executors.ray.resources import (
    WAIT_SECONDS,
    checked_resources,
    fits,
    requested_by,
    require_resources,
    resource_timeout_error,
)
from synapse_runtime.executors.ray.runtime_env import RuntimeEnvBuilder, setup_error, upload_over_http
from synapse_runtime.json_values import decode_value, not_decoded
from synapse_runtime.loggers import Logger, format_event
from synapse_runtime.run_record import InvalidRecord, RunRecord, decode_event, read_record

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from synapse_runtime.plugins.plugin import Plugin

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
# Metadata key that identifies a job that runs an action.
_ACTION_KEY = "synapse_action"
_SUPERVISOR = "synapse_runtime.executors.ray.job_supervisor"
_POLL_SECONDS = 0.1
# For so long after a job has started, its whole log is polled, which is faster; after that, the log is followed.
_POLL_FOR_SECONDS = 3.0
_AGENT_START_SECONDS = 30.0
# Ray monitors a job until a second or two after its end. If the job has been deleted, Ray recreates it, as failed.
_MONITORED_SECONDS = 3.0
# How often to check that the cluster is alive while a job has no new output.
_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class JobSummary:
    """Summary of a job that runs an action.

    Attributes:
        id: The job's id.
        action: The action's name.
        status: `PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`.
        started: When the job was submitted, in UTC; None if unknown.
        took: Seconds from then to its end, or until now.
    """

    id: str
    action: str
    status: str
    started: datetime | None
    took: float | None


class RayJobsApiExecutor(Executor):
    """Runs actions as Ray jobs: fresh processes, submitted to the dashboard over HTTP.

    `submit` returns the job's id immediately; `run` and `execute` wait for the end of the job, as in every mode.

    Args:
        env: Environment variables of the action, which override those of the worker. They are sent with the call, not
            in the job's `runtime_env`, so that no dashboard shows them.
        job_id: Id of the job; each job gets a new one by default. A cluster accepts an id only once.
        plugin: The plugin whose actions can be named; see `Executor`.
        timeout: Timeout of the action in seconds, counted from its start.
        logger: Sink for events, once the run has returned; the console by default.
        language: Language of messages, in two letters; the variable `SYNAPSE_LANGUAGE` by default, else English.
        dashboard_address: The dashboard's URL, such as `http://127.0.0.1:8265`.
        ray_address: The cluster's own address, if the dashboard's is not given. By default `RAY_ADDRESS`, else
            an ephemeral cluster.
        num_cpus: CPUs that the job's process holds.
        num_gpus: GPUs that the job's process holds: a fraction of one, or a whole number.
        memory: Memory that the job's process holds, in bytes, or as text: `"2GB"` is 2 × 1000³ bytes, `"2GiB"`
            2 × 1024³. Ray uses it for scheduling and does not enforce it.
        resources: Custom resources that the job's process holds, by name: `{"accelerator": 1}`.
        resource_timeout: Seconds that `run` and `execute` wait for the start of the job while other workers hold the
            resources. Submitted jobs wait for as long as Ray allows: 15 minutes, unless the cluster is configured
            otherwise.
        start_cluster: Whether to start an ephemeral cluster if there is no other. It ends with this process, and so do
            its jobs. If False, a missing cluster raises `ClusterError`.
        leave_running: Called with the job's id when Ctrl-C interrupts `run`, on a cluster that outlives this process;
            returns whether the job keeps running. By default it is stopped.
        debug_sdk: Upload this runtime to a cluster that does not share this file system, instead of using the one
            installed there.

    Example:
        >>> executor = RayJobsApiExecutor(plugin="example_plugin")  # doctest: +SKIP
        >>> job_id = executor.submit("train", {"epochs": 5})  # doctest: +SKIP
        >>> for line in executor.stream_logs(job_id):  # doctest: +SKIP
        ...     print(line, end="")
        >>> executor.get_result(job_id)  # doctest: +SKIP
    """

    mode = "job"
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
        dashboard_address: str | None = None,
        ray_address: str | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | str | None = None,
        resources: Mapping[str, float] | None = None,
        resource_timeout: float = WAIT_SECONDS,
        start_cluster: bool = True,
        leave_running: Callable[[str], bool] | None = None,
        debug_sdk: bool = False,
    ) -> None:
        super().__init__(env, job_id, plugin=plugin, timeout=timeout, logger=logger, language=language)
        self._address = dashboard_address or ray_address
        self._resources = checked_resources(num_cpus, num_gpus, memory, resources)
        checked_timeout(resource_timeout, "resource_timeout", or_zero=True)
        self._resource_timeout = resource_timeout
        self._start_cluster = start_cluster
        self._leave_running = leave_running
        self._runtime_env = RuntimeEnvBuilder(self._plugin, debug_sdk=debug_sdk)
        self._shares_filesystem = True
        self._connection: tuple[Cluster, JobSubmissionClient] | None = None
        self._connection_lock = InterruptibleLock()
        self._calls: dict[str, ActionCall] = {}
        self._patches: dict[str, SentPatches] = {}
        self._session_directory: tuple[JobSubmissionClient, Path | None] | None = None  # of the cluster of a client

    def submit(self, action: Any, params: Any = None, *, job_id: str | None = None) -> str:
        """Submit a job and return its id immediately.

        Args:
            action: As for `run`.
            params: As for `run`.
            job_id: Id of this job, instead of the executor's or a new one.

        Raises:
            ValidationError: The params are invalid; nothing was submitted.
            ClusterError: There is no cluster, the id is already used, or the cluster lacks the requested resources.
        """
        call = self.call(action, params, job_id=job_id)
        if self.observer is not None:
            self.observer.started(call)
        return self._submit(call)

    def list_jobs(self) -> list[JobSummary]:
        """Return all jobs of this cluster that run actions, whoever submitted them; the oldest first.

        Raises:
            ClusterError: There is no cluster, or it does not respond.
        """
        with self._request() as client:
            jobs = client.list_jobs()
        ours = [job for job in jobs if _ACTION_KEY in (job.metadata or {})]
        return [_summary(job) for job in sorted(ours, key=lambda job: job.start_time or 0)]

    def get_status(self, job_id: str) -> str:
        """Return `PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`.

        `SUCCEEDED` means that the job ended and returned a result or an error; `get_result` raises the error if the
        action failed.

        Raises:
            ClusterError: The cluster has no such job, or does not respond.
        """
        with self._request(job_id) as client:
            return str(client.get_job_status(job_id).value)

    def get_logs(self, job_id: str) -> str:
        """Return all events and output of the job's action so far, as text."""
        self._require_action(job_id)
        with _readable_log(job_id):
            reader = self._reader(job_id)
            items = itertools.chain(reader.feed(self._raw_logs(job_id)), reader.close())
            return "".join(_as_text(items))

    def stream_logs(self, job_id: str) -> Iterator[str]:
        """Yield the job's log line by line, as it grows, until the job has ended."""
        self._require_action(job_id)
        reader = self._reader(job_id)
        pieces = itertools.chain.from_iterable(map(reader.feed, self._follow(job_id)))
        rest = ""
        with _readable_log(job_id):
            for text in _as_text(itertools.chain(pieces, reader.close())):
                lines = (rest + text).splitlines(keepends=True)
                rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
                yield from lines
        if rest:
            yield rest

    def wait(self, job_id: str, timeout: float | None = None) -> str:
        """Wait until the job has ended and return its final status.

        Args:
            job_id: The job's id.
            timeout: Maximum number of seconds to wait; None for no limit.

        Raises:
            TimeoutError: The job has not ended in time; it keeps running.
            ValueError: The timeout is negative, not a number, or longer than a year.
        """
        checked_timeout(timeout, or_zero=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.get_status(job_id)) not in _ENDED:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is {status} after {timeout:g} s")
            time.sleep(_POLL_SECONDS)
        return status

    def get_run(self, job_id: str, timeout: float | None = None) -> ActionRun:
        """Wait until the job has ended and return its `ActionRun`. Arguments and errors as for `get_result`."""
        checked_timeout(timeout, or_zero=True)
        self._require_action(job_id)
        run = self._collect(job_id, None, None, timeout)
        run.add_location_note()
        if self.observer is not None:
            self.observer.finished(run)
        return run

    def get_result(self, job_id: str, timeout: float | None = None) -> Any:
        """Wait until the job has ended and return the action's result.

        Args:
            job_id: Id of a job that this class submitted, in this process or another. If the result contains classes
                of the plugin, this executor must have the plugin. Of jobs that other users have submitted, only
                results of builtin types and the like can be read: nothing in their logs is unpickled.
            timeout: Maximum number of seconds to wait; None for no limit.

        Raises:
            TimeoutError: The job has not ended in time; it keeps running.
            ClusterError: The cluster has no such job, or the job does not run an action.
            ExecutionError: The action failed; the cause is the exception that it raised.
            ResultNotSerializable: The result needs pickle, and another user has submitted the job.
        """
        return self.get_run(job_id, timeout).unwrap()

    def stop(self, job_id: str) -> bool:
        """Request that the job stops. Returns whether it was running."""
        with self._request(job_id) as client:
            return bool(client.stop_job(job_id))

    def delete(self, job_id: str) -> bool:
        """Delete the status, log and result of a job that has ended from the cluster.

        Ray itself keeps the log, which contains the result, in a file on the node until its session ends, and has no
        way to delete it. It is deleted here if the node is this machine.

        Returns:
            Whether the log's file was deleted, too.

        Raises:
            ClusterError: The cluster has no such job, or the job has not ended.
        """
        with self._request(job_id) as client:
            ended = (client.get_job_info(job_id).end_time or 0) / 1000
            client.delete_job(job_id)
            until = time.monotonic() + min(ended + _MONITORED_SECONDS - time.time(), _MONITORED_SECONDS)
            while time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                try:
                    client.delete_job(job_id)
                except RuntimeError as error:
                    if "does not exist" not in str(error):
                        raise
                else:  # Ray had recreated it, which happens once
                    break
        return self._delete_logs(job_id)

    def _delete_logs(self, job_id: str) -> bool:
        cluster, client = self._connect()
        if not self._shares_filesystem or os.sep in job_id:
            return False
        if self._session_directory is None or self._session_directory[0] is not client:
            self._session_directory = client, session_directory(client.get_address(), cluster.headers)
        directory = self._session_directory[1]
        if directory is None:
            return False
        try:
            for name in (f"job-driver-{job_id}.log", f"jobs/supervisor-{job_id}.log"):
                Path(directory, "logs", name).unlink(missing_ok=True)
        except OSError:  # another user's cluster
            return False
        return True

    def close(self) -> None:
        """Delete the jobs that `run` has submitted, and stop those that are still running.

        On an ephemeral cluster this is unnecessary, because the jobs are deleted with the cluster.
        """
        if self._connection is not None and self._connection[0].origin == "ephemeral":
            self._calls.clear()
        for job_id in list(self._calls):
            with contextlib.suppress(ClusterError, TimeoutError):
                status = self.get_status(job_id)
                if status not in _ENDED:
                    self.stop(job_id)
                    # A job that waits for resources stops only when it gets them, so do not wait for that.
                    self.wait(job_id, timeout=1 if status == "PENDING" else 10)
                self.delete(job_id)
            del self._calls[job_id]
        self._connection = None

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that jobs are submitted to; None before the first job."""
        return None if self._connection is None else self._connection[0]

    @property
    def backend(self) -> Backend | None:
        """The cluster, as the `Backend` that all executors return."""
        return None if self.cluster is None else self.cluster.as_backend()

    def _run_call(self, call: ActionCall, on_event: OnEvent | None, on_output: OnOutput | None) -> ActionRun:
        __tracebackhide__ = True
        try:
            job_id = self._submit(call)
        except ENCODE_CALL_ERRORS as error:
            return ActionRun(call.name, error=error, mode=self.mode, job_id=call.job_id)
        self._calls[job_id] = call
        try:
            with reraise_dropped_interrupts():
                run = self._collect(job_id, on_event, on_output, None, give_up_after=self._resource_timeout)
        except BaseException as error:  # mainly Ctrl-C: stop the job, unless the user wants it to keep running
            if isinstance(error, KeyboardInterrupt) and self._is_running(job_id):
                del self._calls[job_id]
                raise
            with contextlib.suppress(ClusterError):
                self._require_cluster(job_id)  # not on a new one
                self.stop(job_id)
            raise
        self._replay(run, events=on_event is None, output=on_output is None)
        return run

    def _is_running(self, job_id: str) -> bool:
        """Return whether a job keeps running after Ctrl-C."""
        if self._leave_running is None or self._connection is None or self._connection[0].origin == "ephemeral":
            return False
        self._logger.finish()  # a progress bar would hide the prompt
        return self._leave_running(job_id)

    def _submit(self, call: ActionCall) -> str:
        encoded = encode_call(call)
        if encoded.patches is not None:
            self._patches[call.job_id] = encoded.patches
        cluster, client = self._connect()
        if self._resources:
            nodes = nodes_of(client.get_address(), cluster.headers)
            require_resources(self._resources, nodes, is_managed=cluster.is_managed)
        message = encoded.message(shares_filesystem=self._shares_filesystem, log_key=job_key(call.job_id))
        # Each upload must be unique: Ray would not unpack the same package again, and the first job deletes its file.
        file = f"call-{secrets.token_hex(8)}.bin"
        with self._request(call.job_id), suppress_ray_output():
            # The call is uploaded over HTTP, so that no listing shows its content: as the working directory, or, if
            # that is the plugin's directory, as a `py_modules` package.
            uri = upload_over_http(client, package_of_one_file(file, message))
            environment: dict[str, Any] = {"working_dir": uri}
            python = sys.executable
            if not self._shares_filesystem:
                python, environment = "python", self._runtime_env.build(partial(upload_over_http, client))
                environment["py_modules"] = [uri, *(environment.get("py_modules") or ())]
            variables = [f"{name}={value}" for name, value in variables_at_start(call.env).items()]
            command = [*(("env", *variables) if variables else ()), python, "-m", _SUPERVISOR, file]
            submission: dict[str, Any] = {
                # `exec` replaces the shell that Ray starts: if a job is stopped as it starts, Ray kills only the shell,
                # and the process that it has just started would keep running.
                "entrypoint": f"exec {shlex.join(command)}",
                "submission_id": call.job_id,
                "runtime_env": environment,
                "metadata": {_ACTION_KEY: call.name},
                **{f"entrypoint_{name}": number for name, number in self._resources.items()},
            }
            return _submit_when_ready(client, submission)

    def _connect(self) -> tuple[Cluster, JobSubmissionClient]:
        def connect() -> tuple[Cluster, JobSubmissionClient]:
            if self._connection is None or has_ended(self._connection[0].address):
                self._connection = self._new_connection()
            return self._connection

        return self._connection_lock.call(connect)

    def _new_connection(self) -> tuple[Cluster, JobSubmissionClient]:
        cluster = find_cluster(self._address, start=self._start_cluster)
        if cluster.is_managed and any(map(str.isspace, sys.executable)):  # it runs with this Python
            raise ClusterError(
                f"Ray cannot start jobs if the path of Python contains a space: {sys.executable!r}. Create the virtual "
                "environment in a directory without spaces"
            )
        from synapse_runtime.executors.ray.job_client import JobClient

        url = dashboard_of(cluster)
        if cluster.is_managed:
            cluster = replace(cluster, dashboard=url)
        self._shares_filesystem = True
        if not cluster.is_managed:
            clear_token()
            theirs = require_dashboard(url, cluster.headers)
            self._shares_filesystem = shares_disk(cluster, node_addresses(url, cluster.headers))
            self._require_compatible_versions(url, theirs)
        try:
            with suppress_ray_output(), without_dashboard_variable(url):
                # Without TLS there is nothing to verify, and Ray's default makes aiohttp warn for each followed log.
                verify = certificates() if url.startswith("https://") else False
                client = JobClient(url, headers=cluster.headers, verify=verify)
        except Exception as error:
            raise ClusterError(f"the Jobs API at {url} does not respond: {error}") from error
        return cluster, client

    def _require_compatible_versions(self, url: str, theirs: Versions) -> None:
        """Raise `ClusterError` unless jobs can read the requests of this process."""
        here = Versions.here()
        # On this machine, jobs run with this process's Python.
        if not self._shares_filesystem and not theirs.same_python():
            raise ClusterError(
                f"the cluster at {url} runs {theirs}, but this process runs {here}: params and results can be sent "
                "between equal minor versions of Python only. Use Python "
                f"{'.'.join(theirs.python.split('.')[:2])} here"
            )
        if theirs.ray != here.ray:
            _warn_about_versions(url, theirs, here)

    @contextlib.contextmanager
    def _request(self, job_id: str | None = None) -> Iterator[JobSubmissionClient]:
        """Yield the client, and translate its errors to `ClusterError`."""
        cluster, client = self._connect()
        try:
            with suppress_log_records():
                yield client
        except (OSError, RuntimeError, ValueError) as error:
            text = str(error)
            if "does not exist" in text:
                raise ClusterError(
                    f"the cluster at {cluster.dashboard or cluster.address} has no job {job_id!r}; "
                    "`synapse job list` lists its jobs"
                ) from error
            if "already exists" in text:
                raise ClusterError(
                    f"the cluster already has a job {job_id!r}: delete it, or pass another job_id"
                ) from error
            if "non-terminal state" in text:
                raise ClusterError(f"cannot delete job {job_id!r}, which has not ended: stop it first") from error
            if isinstance(error, OSError) or "status code 5" in text:
                drop_broken_connection(cluster)
            about = "" if job_id is None else f" for job {job_id!r}"
            raise ClusterError(f"the Jobs API request failed{about}: {text.partition(chr(10))[0]}") from error

    def _require_cluster(self, job_id: str) -> None:
        """Raise `ClusterError` if an ephemeral cluster has ended: connections to its dashboard may stay open."""
        if self._connection is not None and has_ended(self._connection[0].address):
            raise ClusterError(f"the cluster of job {job_id!r} has ended: {self._connection[0].address}")

    def _node_of(self, job_id: str) -> str:
        """Return Ray's id of the node that a job runs on. The job's own process would have to connect to find it."""
        with self._request(job_id) as client:
            return str(client.get_job_info(job_id).driver_node_id or "")

    def _raw_logs(self, job_id: str) -> str:
        with self._request(job_id) as client:
            return str(client.get_job_logs(job_id))

    def _check_resource_timeout(self, job_id: str, give_up_at: float) -> float:
        """Raise `ClusterError` if a job has waited too long for resources that other workers hold.

        Args:
            job_id: The job's id.
            give_up_at: When to stop waiting, by the monotonic clock.

        Returns:
            When to check again; infinity if the job has started.
        """
        if not self._resources or time.monotonic() < give_up_at:
            return give_up_at
        if self.get_status(job_id) != "PENDING":
            return float("inf")
        cluster, client = self._connect()
        requested = requested_by(self._resources)
        available = free_resources(client.get_address(), cluster.headers)
        if available is not None:
            free = {name: available.get(to_camel_case(name), 0) for name in ("CPU", "GPU", *requested)}
            if not fits(requested, free):
                raise resource_timeout_error(client.get_address(), self._resources, free, self._resource_timeout)
        return time.monotonic() + _CHECK_SECONDS  # it is being set up, or no single node has enough available

    def _collect(
        self,
        job_id: str,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
        timeout: float | None,
        *,
        give_up_after: float = float("inf"),
    ) -> ActionRun:
        """Follow the job and return its run; if it ends without one, return a run with the reason as its error."""
        with _readable_log(job_id):
            return self._read_run(job_id, on_event, on_output, timeout, give_up_after)

    def _read_run(
        self,
        job_id: str,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
        timeout: float | None,
        give_up_after: float,
    ) -> ActionRun:
        reader = self._reader(job_id)
        printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        events: list[Event] = []
        process_exit: ProcessExit | None = None
        where: dict[str, Any] = {}
        logs: list[LogEntry] = []
        took: float | None = None
        started = time.monotonic()
        call = self._calls.get(job_id)
        pieces = itertools.chain.from_iterable(map(reader.feed, self._follow(job_id, timeout, give_up_after)))
        for item in itertools.chain(pieces, reader.close()):
            if isinstance(item, job_log.Output):
                printed[item.stream].append(item.text)
                if on_output is not None:
                    on_output(*item)
            elif item.kind == job_log.EVENT:
                events.append(self._event(item))
                if on_event is not None:
                    on_event(events[-1])
            elif item.kind == job_log.LOGS and item.is_signed:
                data = job_log.decode_bytes(item.data.get("pickle"))
                logs += decode_entries(data, partial(loads_in_plugin, import_root=self._import_root))
            elif item.kind == job_log.START:
                where = {**vars(read_record(_Place, item.data)), "node": self._node_of(job_id)}
            elif item.kind == job_log.EXIT:
                report = read_record(_ExitReport, item.data)
                process_exit, took = report.process_exit, report.duration
            elif item.kind == job_log.VERSION:
                raise version_error(VersionMismatch(str(item.data.get("line")).encode()))
            elif item.kind == job_log.RUN:
                run = self._run_in(item, call, events)
                run.job_id, run.node = job_id, where.get("node", "")
                return _with_output(run, printed)
        run = ActionRun(
            call.name if call else job_id,
            events=events,
            mode=self.mode,
            job_id=job_id,
            duration=time.monotonic() - started if took is None else took,
            is_started=True,
            **where,
        )
        run.captured = Captured()
        for entry in logs:
            run.captured.add(entry)
        run.error = self._job_error(run, process_exit, bool(where), printed, reader.preamble, call)
        return _with_output(run, printed)

    def _job_error(
        self,
        run: ActionRun,
        process_exit: ProcessExit | None,
        started: bool,
        printed: Mapping[str, list[str]],
        preamble: str,
        call: ActionCall | None,
    ) -> ExecutionError:
        """Return the error of a job that ended without a run; its cause has Ray's message."""
        with self._request(run.job_id) as client:
            info = client.get_job_info(run.job_id)
        action = (info.metadata or {}).get(_ACTION_KEY)
        if action is None:
            raise _not_an_action(run.job_id)
        run.name = action
        if info.status.value not in _ENDED:
            cluster, _ = self._connect()
            drop_broken_connection(cluster)
            raise ClusterError(f"lost the log of job {run.job_id!r} while it was {info.status.value}")
        message = info.message or info.status.value
        error: ExecutionError
        if info.status.value == "STOPPED":
            error = ExecutionError(f"{run.name}: job {run.job_id} was stopped")
        elif "low on memory" in message:
            for texts in printed.values():  # Ray appends its own report to the log
                texts[:] = ["".join(texts).partition("Unexpected error occurred: ")[0]]
            error = WorkerCrashed(f"the process of {run.name} ran out of memory and was killed by Ray")
        elif not started and (problem := setup_error(f"{message}\n{preamble}")) is not None:
            raise problem
        elif not started:
            error = WorkerCrashed(f"{run.name}: job {run.job_id} did not start: {message}")
            error.attach("Its log:", last_lines(preamble))
        elif process_exit is None:
            error = WorkerCrashed(f"{run.name}: the supervisor of job {run.job_id} crashed: {message}")
        elif process_exit.timed_out:
            timeout = f" of {call.timeout:g} s" if call is not None and call.timeout is not None else ""
            text = f"{run.name} exceeded its timeout{timeout} and could not be interrupted; its process was killed"
            error = ExecutionTimeout(text)
        else:
            error = WorkerCrashed(f"the process of {run.name} {process_exit.describe()}")
        error.__cause__ = RuntimeError(message.partition("\n")[0].partition(", last available logs")[0])
        error.attach("Stack of the action:", process_exit.stack if process_exit is not None else "")
        error.attach("Last output:", last_lines("".join(printed["stdout"]) + "".join(printed["stderr"])))
        return error

    def _reader(self, job_id: str) -> job_log.LogReader:
        return job_log.LogReader(job_id, job_key(job_id), must_be_signed=job_id in self._calls)

    def _event(self, frame: job_log.Frame) -> Event:
        """Return the event of a frame; only what the supervisor of a job of this user has signed is unpickled."""
        if frame.is_signed and "pickle" in frame.data:
            event: Event = loads_in_plugin(job_log.decode_bytes(frame.data["pickle"]), self._import_root)
            return event
        with plugin_modules(self._import_root):
            return decode_event(frame.data.get("event"), self._import_root)

    def _run_in(self, frame: job_log.Frame, call: ActionCall | None, events: list[Event]) -> ActionRun:
        """Return the run of a frame. As for events, it is unpickled only if it is signed."""
        record = read_record(RunRecord, frame.data.get("record"))
        if frame.is_signed:
            patches = self._patches.pop(record.job_id or "", None)
            data = job_log.decode_bytes(frame.data.get("pickle"))
            run = decode_run(data, call, import_root=self._import_root, patches=patches)
            if frame.data.get("is_exact") and run.error is None:
                run.result = decode_value(record.result)
            return run
        with plugin_modules(self._import_root):
            run = record.to_run(self._import_root)
        run.events = events
        needs = not_decoded(run.result)
        if needs is not None:
            text = f"the result of {run.name} contains {needs}: only the user who has submitted the job can read it"
            run.result, run.error = None, ResultNotSerializable(text)
        return run

    def _require_action(self, job_id: str) -> None:
        """Raise `ClusterError` if a job does not run an action: anything could be in its log."""
        if job_id in self._calls:
            return
        with self._request(job_id) as client:
            metadata = client.get_job_info(job_id).metadata or {}
        if _ACTION_KEY not in metadata:
            raise _not_an_action(job_id)

    def _follow(self, job_id: str, timeout: float | None = None, give_up_after: float = float("inf")) -> Iterator[str]:
        """Yield the job's log as it grows, in pieces, until the job has ended."""
        give_up_at = time.monotonic() + give_up_after
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        poll = _PollInterval()
        status, asked_at, seen = "PENDING", 0.0, 0
        may_end = False
        while not poll.is_over:
            # Only one request at a time: each is work for the cluster, which has to start the job. A job has no log
            # before it runs; then its log shows whether it may have ended.
            if status == "PENDING" or may_end or time.monotonic() - asked_at > _CHECK_SECONDS / 2:
                was_pending = status == "PENDING"
                status, asked_at = self.get_status(job_id), time.monotonic()
                if was_pending and status != "PENDING":
                    poll = _PollInterval(running=True)
            if status != "PENDING":
                text = self._raw_logs(job_id)
                may_end = may_end or job_log.may_end(text[seen:])
                if len(text) > seen:
                    yield text[seen:]
                    seen = len(text)
            if status in _ENDED:
                return
            self._require_cluster(job_id)
            give_up_at = self._check_resource_timeout(job_id, give_up_at)
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} has not ended after {timeout:g} s")
            poll.wait()
        with suppress_log_records():
            for chunk in self._tail(job_id, deadline, give_up_at):
                if seen < len(chunk):
                    yield chunk[seen:]
                seen = max(seen - len(chunk), 0)

    def _tail(self, job_id: str, deadline: float, give_up_at: float) -> Iterator[str]:
        """Yield the log from its beginning, over Ray's WebSocket for following logs."""
        cluster, client = self._connect()
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

        async def read() -> None:
            async for piece in client.tail_job_logs(job_id):
                pieces.put(piece)

        def work() -> None:
            try:
                with suppress_log_records():
                    asyncio.run(read())
                pieces.put(None)
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                pieces.put(error)

        threading.Thread(target=work, name=f"synapse-tail-{job_id}", daemon=True).start()
        while True:
            try:
                piece = pieces.get(timeout=max(min(deadline - time.monotonic(), _CHECK_SECONDS), 0))
            except queue.Empty:
                self._require_cluster(job_id)
                give_up_at = self._check_resource_timeout(job_id, give_up_at)
                if time.monotonic() < deadline:
                    continue
                raise TimeoutError(f"job {job_id} has not ended in time") from None
            if piece is None:
                return
            if isinstance(piece, BaseException):
                drop_broken_connection(cluster)
                raise ClusterError(f"lost the log of job {job_id!r}: {piece}") from piece
            yield piece


class _Place(BaseModel):
    """Where the process of a job's action runs."""

    host: str
    pid: int


class _ExitReport(BaseModel):
    """How that process has ended, and how long the action took in seconds."""

    process_exit: ProcessExit
    duration: float


@contextlib.contextmanager
def _readable_log(job_id: str) -> Iterator[None]:
    """Raise `ClusterError` for a log that no supervisor of ours has written."""
    try:
        yield
    except (job_log.MalformedFrame, InvalidRecord) as error:
        problem = str(error).partition("\n")[0]
        raise ClusterError(f"the log of job {job_id!r} is malformed: {problem}") from error


def _not_an_action(job_id: str) -> ClusterError:
    return ClusterError(f"job {job_id!r} does not run an action; `synapse job list` lists those that do")


def _as_text(items: Iterator[job_log.Output | job_log.Frame]) -> Iterator[str]:
    """Yield a log as text. Nothing in it is unpickled."""
    for item in items:
        if isinstance(item, job_log.Output):
            yield item.text
        elif item.kind == job_log.EVENT:
            yield format_event(decode_event(item.data.get("event"))) + "\n"


class _PollInterval:
    """How often to poll a job: the longer the job, or a response, takes, the longer the interval.

    Args:
        running: Whether the job is running, so that it may end at any moment.
    """

    def __init__(self, *, running: bool = False) -> None:
        self._shortest = _POLL_SECONDS / 2 if running else _POLL_SECONDS
        self._started_at = self._waited_at = time.monotonic()
        self._until = self._started_at + _POLL_FOR_SECONDS if running else float("inf")

    @property
    def is_over(self) -> bool:
        """Whether to follow the log instead from now on."""
        return time.monotonic() >= self._until

    def wait(self) -> None:
        """Sleep until the next poll."""
        now = time.monotonic()
        time.sleep(min(max((now - self._started_at) / 20, now - self._waited_at, self._shortest), _CHECK_SECONDS))
        self._waited_at = time.monotonic()


def _submit_when_ready(client: JobSubmissionClient, submission: dict[str, Any]) -> str:
    """Submit a job; retry while the agent that accepts jobs is starting, which is later ready than the cluster."""
    deadline = time.monotonic() + _AGENT_START_SECONDS
    while True:
        try:
            return str(client.submit_job(**submission))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


@cache  # once in a process
def _warn_about_versions(url: str, theirs: Versions, here: Versions) -> None:
    text = (
        f"the cluster at {url} runs {theirs}, but this process runs {here}: jobs work, but actions that use Ray "
        "themselves may fail"
    )
    warnings.warn(text, VersionMismatchWarning, stacklevel=2)


def _summary(details: Any) -> JobSummary:
    """Convert Ray's details of a job, whose times are in milliseconds."""
    started, ended = details.start_time, details.end_time or time.time() * 1000
    return JobSummary(
        id=details.submission_id,
        action=details.metadata[_ACTION_KEY],
        status=details.status.value,
        started=datetime.fromtimestamp(started / 1000, UTC) if started else None,
        took=round(max(ended - started, 0) / 1000, 3) if started else None,
    )


def _with_output(run: ActionRun, printed: Mapping[str, list[str]]) -> ActionRun:
    run.captured = run.captured or Captured()
    run.captured.stdout = "".join(printed["stdout"])
    run.captured.stderr = "".join(printed["stderr"])
    return run

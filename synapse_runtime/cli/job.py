"""`synapse job …`: jobs on a running cluster or at a backend, including those of other commands and users."""

from __future__ import annotations

import contextlib
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synapse_runtime.cli.console import (
    exit_on_errors,
    only_results_on_stdout,
    print_line,
    print_note,
    show_run,
    show_table,
    to_json,
    write_record,
)
from synapse_runtime.cli.options import AsJson
from synapse_runtime.cli.remote import Host, Insecure, Tenant, Token, TokenFile, settings_from
from synapse_runtime.cli.usage_error import require_json, require_seconds
from synapse_runtime.errors import ClusterWarning

if TYPE_CHECKING:
    from synapse_runtime.executors.ray import RayJobsApiExecutor
    from synapse_runtime.executors.ray.job import JobSummary
    from synapse_runtime.executors.remote.backend import Job
    from synapse_runtime.executors.remote.executor import RemoteExecutor
    from synapse_runtime.plugins.plugin import Plugin

app = typer.Typer(
    help="List, inspect, stop and delete jobs.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

# Ray kills a job if it has not ended within 3 s.
_STOP_SECONDS = 15.0

JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id, as shown by `synapse job list`.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Cluster address: host:port, http://dashboard, or auto for one started by `ray start` on this machine. "
        "Default: RAY_ADDRESS, else the warm cluster of `synapse cluster up`.",
    ),
]


@app.callback()
def _job() -> None:
    """List, inspect, stop and delete jobs."""


@app.command("list")
def list_jobs(
    as_json: AsJson = False,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """List the jobs that run actions, oldest first: those of a cluster, or with --host those of a backend."""
    where = JobLocation(ray_address, host, token, token_file, tenant, insecure)
    with _jobs_at(where) as cluster:
        jobs = _summaries(cluster.list_jobs())
        if as_json:
            print_line(to_json(jobs))
        elif jobs:
            show_table(("ID", "ACTION", "STATUS", "STARTED", "TOOK"), [_row(job) for job in jobs])
        else:
            print_note(f"this {'backend' if where.is_remote() else 'cluster'} has no jobs that run actions")


@app.command()
def status(
    job_id: JobId,
    as_json: AsJson = False,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """Print the job's status.

    It is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. On a cluster, SUCCEEDED means that the job ended and returned
    a result or an error; `synapse job result` shows which. At a backend, a job whose action failed is FAILED.
    """
    with _jobs_at(JobLocation(ray_address, host, token, token_file, tenant, insecure), job_id) as cluster:
        _show_status(job_id, cluster.get_status(job_id), as_json=as_json)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job has ended.")] = False,
    as_json: AsJson = False,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """Print the messages and output of the job's action so far."""
    if follow and as_json:
        raise typer.BadParameter(
            "--json prints the whole log at once and cannot be used with --follow", param_hint="--json"
        )
    with _jobs_at(JobLocation(ray_address, host, token, token_file, tenant, insecure), job_id) as cluster:
        if as_json:
            print_line(to_json({"id": job_id, "logs": cluster.get_logs(job_id)}))
            return
        for text in cluster.stream_logs(job_id) if follow else [cluster.get_logs(job_id)]:
            sys.stdout.write(text)
            sys.stdout.flush()


@app.command()
def result(
    job_id: JobId,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Maximum time to wait. Default: no limit."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result to standard output, as JSON.")] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="With --json: print the whole run, with its events, output and error, as a record."
        ),
    ] = False,
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            help="Plugin directory, for results of the plugin's own classes. "
            "Default: the nearest plugin at or above the current directory.",
        ),
    ] = None,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """Wait until the job has ended and print its result."""
    require_json(full=full, as_json=as_json)
    require_seconds(timeout, "--timeout", or_zero=True)
    with (
        exit_on_errors(),
        only_results_on_stdout() if as_json else contextlib.nullcontext(sys.stdout) as results,
        _jobs_at(JobLocation(ray_address, host, token, token_file, tenant, insecure), job_id, _plugin(path)) as cluster,
    ):
        run = cluster.get_run(job_id, timeout)
        if full:
            write_record(run, results)
        show_run(run, None if full else results, as_json=as_json)


@app.command()
def stop(
    job_id: JobId,
    as_json: AsJson = False,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """Stop the job, wait until it has ended and print its final status."""
    with _jobs_at(JobLocation(ray_address, host, token, token_file, tenant, insecure), job_id) as cluster:
        if not cluster.stop(job_id):
            print_note(f"job {job_id} had already ended")
        _show_status(job_id, cluster.wait(job_id, timeout=_STOP_SECONDS), as_json=as_json)


@app.command()
def delete(
    job_id: JobId,
    as_json: AsJson = False,
    ray_address: RayAddress = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
) -> None:
    """Delete the cluster's or backend's records of a job that has ended."""
    with _jobs_at(JobLocation(ray_address, host, token, token_file, tenant, insecure), job_id) as cluster:
        log_deleted = cluster.delete(job_id)
        rest = "" if log_deleted else ", except for its log file on the node, which Ray keeps until its session ends"
        print_note(f"deleted job {job_id}{rest}")
        if as_json:
            print_line(to_json({"id": job_id, "deleted": True, "log_deleted": log_deleted}))


def _show_status(job_id: str, status: str, *, as_json: bool) -> None:
    print_line(to_json({"id": job_id, "status": status}) if as_json else status)


@dataclass(frozen=True)
class JobLocation:
    """Where a job is, by the options of the command line.

    Attributes:
        ray_address: The cluster's address.
        host: The backend's URL.
        token: An access token for it.
        token_file: A file with one.
        tenant: The tenant.
        insecure: Whether to send the token without encryption.
    """

    ray_address: str | None
    host: str | None
    token: str | None
    token_file: Path | None
    tenant: str | None
    insecure: bool

    def is_remote(self, job_id: str = "") -> bool:
        """Return whether to ask a backend: if an option names it, or the job's id is one of a backend."""
        if self.ray_address is not None:
            return False
        if self.host is not None or self.token is not None or self.token_file is not None:
            return True
        try:
            return str(uuid.UUID(job_id)) == job_id
        except ValueError:
            return False


@contextlib.contextmanager
def _jobs_at(
    where: JobLocation, job_id: str = "", plugin: Plugin | None = None
) -> Iterator[RayJobsApiExecutor | RemoteExecutor]:
    """Yield an executor for the jobs of a running cluster or of a backend; exit on errors."""
    with exit_on_errors():
        if where.is_remote(job_id):
            from synapse_runtime.executors.remote.executor import RemoteExecutor

            settings = settings_from(where.host, where.token, where.token_file, where.tenant)
            with RemoteExecutor(settings=settings, insecure=where.insecure, plugin=plugin) as executor:
                yield executor
            return
        from synapse_runtime.executors.ray import RayJobsApiExecutor

        warnings.simplefilter("ignore", ClusterWarning)  # the error says it
        yield RayJobsApiExecutor(ray_address=where.ray_address, start_cluster=False, plugin=plugin)


def _plugin(path: Path | None) -> Plugin | None:
    from synapse_runtime.cli.plugin_lookup import nearest_config
    from synapse_runtime.plugins.plugin import Plugin

    found = path or nearest_config()
    return None if found is None else Plugin.load(found)


def _summaries(jobs: Sequence[JobSummary | Job]) -> list[JobSummary]:
    """Return the jobs of a cluster or of a backend, the oldest first."""
    from synapse_runtime.executors.ray.job import JobSummary

    found = [
        job
        if isinstance(job, JobSummary)
        else JobSummary(job.id, job.action, job.status, job.started, None if job.took is None else round(job.took, 3))
        for job in jobs
    ]
    return sorted(found, key=lambda job: datetime.min.replace(tzinfo=UTC) if job.started is None else job.started)


def _row(job: JobSummary) -> tuple[str, ...]:
    started = "" if job.started is None else f"{job.started.astimezone():%Y-%m-%d %H:%M:%S}"
    return job.id, job.action, job.status, started, _duration(job.took)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))

"""The head node of a managed cluster: starts only the Ray processes that it needs, in parallel where possible.

`ray.init` has no options for that. This module contains all uses of Ray's private API for starting a cluster.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from synapse_runtime.executors.ray.cluster.control_socket import RAY_DIRECTORY, ClusterOptions, start_seconds

_POLL_SECONDS = 0.05
# The Ray processes that a driver depends on.
_REQUIRED_PROCESSES = ("gcs_server", "raylet")
_NO_PORT = "65536"  # Ray 2.52 takes a negative number for no number
# The modules of Ray's dashboard that serve our requests.
_DASHBOARD_PARTS = ("JobHead", "NodeHead", "ReportHead", "StateHead")


class HeadNode:
    """The head node of one cluster, with this process as a driver.

    Args:
        directory: The cluster's directory.
        options: Options of the cluster.
    """

    def __init__(self, directory: Path, options: ClusterOptions) -> None:
        self._directory = directory
        self._options = options
        self._dashboard = _Dashboard() if options.jobs else None

    def start(self, on_up: Callable[[str], object]) -> dict[str, float]:
        """Start the node and wait until it has started, except for the dashboard.

        Args:
            on_up: Called with the cluster's address as soon as drivers can connect. This process connects next, which
                takes longer: Ray makes the first driver wait until the first workers have started.

        Returns:
            The cluster's resources, by Ray's names.
        """
        import ray
        from ray._private import node, parameter, services, worker

        # The raylet's agents choose their ports, and the raylet aborts if it does not know them within 15 s, too few on
        # a busy machine. So it gets them here. (One port, that of the agent that accepts jobs, is fixed by default: it
        # fails if another cluster's agent uses it. `ray.init` has an option for one of the four.)
        jobs_port = _free_port()
        settings: dict[str, Any] = {
            "dashboard_agent_listen_port": jobs_port,
            "metrics_agent_port": _free_port(),
            "runtime_env_agent_port": _free_port(),
        }
        services.start_ray_process = functools.partial(_start_with_port, services.start_ray_process, port=jobs_port)
        if self._options.parent_pid is not None:
            # Our drivers request no logs, and only the Jobs API needs the monitor: it reports available resources.
            settings |= {"include_log_monitor": False, "no_monitor": not self._options.jobs}
            services.start_ray_process = functools.partial(
                _start_minimal, services.start_ray_process, jobs=self._options.jobs
            )
        services.start_ray_process = functools.partial(_start_without_metrics, services.start_ray_process)
        services.get_node = functools.partial(_get_node, services.get_node)
        parameter.RayParams = functools.partial(parameter.RayParams, **settings)
        start_dashboard = (
            _no_dashboard if self._dashboard is None else self._dashboard.in_background(node.Node.start_api_server)
        )
        node.Node.start_api_server = start_dashboard
        worker.connect = functools.partial(self._connect, worker.connect, on_up)
        ray.init(
            include_dashboard=self._options.jobs,
            num_cpus=self._options.num_cpus,
            num_gpus=self._options.num_gpus,
            _memory=self._options.memory,
            _temp_dir=str(self._directory / RAY_DIRECTORY),
            _metrics_export_port=_free_port(),
            log_to_driver=False,
            logging_level="error",
        )
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    def _connect(self, connect: Any, on_up: Callable[[str], object], node: Any, *args: Any, **options: Any) -> Any:
        # `ray start` writes this file, `ray.init` does not. Without it, a job gets the address of any cluster on this
        # machine as its own, and its `ray.init()` connects to that cluster.
        current = self._directory / RAY_DIRECTORY / "ray_current_cluster"
        current.write_text(node.gcs_address, encoding="utf-8")
        on_up(node.gcs_address)
        return connect(node, *args, **options)

    def dashboard(self) -> str | None:
        """Wait until the dashboard has started, and return its URL; None if the cluster has none.

        Raises:
            Exception: It did not start; the exception is Ray's.
        """
        return None if self._dashboard is None else self._dashboard.url()


class _Dashboard:
    """The dashboard, started in parallel with the other processes; Ray itself starts those only once it responds.

    A process that Ray starts ends with the thread that started it. So that thread runs until this process ends.
    """

    def __init__(self) -> None:
        self._settled = threading.Event()
        self._error: Exception | None = None
        self._url = ""

    def in_background(self, start: Any) -> Any:
        """Return a replacement for Ray's own function."""

        def start_in_thread(node: Any, **options: Any) -> None:
            _no_dashboard(node)
            threading.Thread(target=work, args=(node, options), name="synapse-dashboard", daemon=True).start()

        def work(node: Any, options: dict[str, Any]) -> None:
            try:
                start(node, **options)
                self._url = f"http://{node.webui_url}"
            except Exception as error:  # noqa: BLE001 - raised again by `url`
                self._error = error
            self._settled.set()
            threading.Event().wait()

        return start_in_thread

    def url(self) -> str:
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return self._url


def _no_dashboard(node: Any, **_: Any) -> None:
    """Start no dashboard: even with `include_dashboard=False`, Ray would start it to collect usage statistics."""
    node._webui_url = ""


def _start_with_port(start: Any, command: list[str], process_type: str, *, port: int, **options: Any) -> Any:
    """Start one of Ray's processes; the raylet with the port of the agent that accepts jobs, if it has that option."""
    if process_type == "raylet":
        option = "dashboard_agent_listen_port"
        command = [*command, f"--{option}={port}", f"--undefok={option}"]
    return start(command, process_type, **options)


def _start_minimal(start: Any, command: list[str], process_type: str, *, jobs: bool, **options: Any) -> Any:
    """Start one of Ray's processes with only what a run's cluster needs of it.

    The dashboard loads only the modules that serve our requests: each is a process of its own, and half of them serve
    the web UI, which is not used. Without jobs, the raylet's agent is as small as if `ray[default]` were not installed:
    it gets no requests, and the raylet waits until the agent has imported its dependencies.
    """
    if process_type == "dashboard" and not any(word.startswith("--modules-to-load") for word in command):
        command = [*command, f"--modules-to-load={','.join(_DASHBOARD_PARTS)}"]
    if process_type == "raylet" and not jobs:
        command = [f"{word} --minimal" if word.startswith("--dashboard_agent_command=") else word for word in command]
    return start(command, process_type, **options)


def _start_without_metrics(start: Any, command: list[str], process_type: str, **options: Any) -> Any:
    """Start one of Ray's processes without its server for metrics, which would answer anybody, without a token.

    Ray has no option for this, but a server whose port is invalid is not started, which the process logs. The agent's
    server is turned off by a setting of Ray (`control_socket`).
    """
    if process_type in ("dashboard", "monitor"):
        variables = {"DASHBOARD_METRIC_PORT": _NO_PORT, "AUTOSCALER_METRIC_PORT": _NO_PORT}
        options["env_updates"] = (options.get("env_updates") or {}) | variables
    return start(command, process_type, **options)


def _get_node(get_node: Any, address: str, node_id: str) -> Any:
    """Wait for a node that is starting, unless its processes have ended; Ray itself gives up after 30 s."""
    until = time.monotonic() + start_seconds()
    while True:
        try:
            return get_node(address, node_id)
        except RuntimeError:
            if time.monotonic() > until or required_process_exited(os.getpid()):
                raise
            time.sleep(_POLL_SECONDS)


def required_process_exited(daemon: int) -> bool:
    """Return whether a process that drivers depend on is a zombie: the daemon, busy starting, has not reaped it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(daemon).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_zombie(child) and child.name() in _REQUIRED_PROCESSES:
                    return True
    return False


def is_zombie(process: psutil.Process) -> bool:
    """Return whether a process has ended, and its parent has not noticed yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    """Return a port that is free, outside of the range from which the system would give it to another process."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port

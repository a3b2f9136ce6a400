"""Ray's processes of a cluster of ours: those that its kind needs, and none waits for another where it need not.

`ray.init` has no options for that. All that is private of Ray in the start of a cluster is here.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synapse_runtime.executors.ray.cluster.control_socket import RAY_DIRECTORY, ClusterOptions

# Parts of Ray's dashboard that answer what is asked here.
_DASHBOARD_PARTS = ("JobHead", "NodeHead", "ReportHead", "StateHead")


class HeadNode:
    """The head of one cluster, which this process becomes a driver of.

    Args:
        directory: The cluster's directory.
        options: What the cluster is to be.
    """

    def __init__(self, directory: Path, options: ClusterOptions) -> None:
        self._directory = directory
        self._options = options
        self._dashboard = _Dashboard() if options.jobs else None

    def start(self, on_up: Callable[[str], object]) -> dict[str, float]:
        """Start all of it, and wait for it, but for the dashboard.

        Args:
            on_up: Called with the cluster's address as soon as drivers can connect. This process does so next, which
                takes longer: Ray lets the first one wait until the first workers have started.

        Returns:
            What the cluster has, by Ray's names.
        """
        import ray
        from ray._private import node, parameter, services, worker

        # The agent that takes jobs listens on one fixed port, and gives up where another cluster's has it. `ray start`
        # has an option for that, `ray.init` has none. With port 0, Ray 2.52 tells others another port than it takes.
        settings: dict[str, Any] = {"dashboard_agent_listen_port": _free_port()}
        if self._options.holder is not None:
            # Drivers of ours get no logs; what a cluster has free, the Jobs API alone learns from the monitor.
            settings |= {"include_log_monitor": False, "no_monitor": not self._options.jobs}
            services.start_ray_process = functools.partial(
                _start_minimal, services.start_ray_process, jobs=self._options.jobs
            )
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
            log_to_driver=False,
            logging_level="error",
        )
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    def _connect(self, connect: Any, on_up: Callable[[str], object], node: Any, *args: Any, **options: Any) -> Any:
        # `ray start` writes this, `ray.init` does not. Where it is missing, a job is told the address of any cluster of
        # this machine as its own, and its `ray.init()` goes there.
        current = self._directory / RAY_DIRECTORY / "ray_current_cluster"
        current.write_text(node.gcs_address, encoding="utf-8")
        on_up(node.gcs_address)
        return connect(node, *args, **options)

    def dashboard(self) -> str | None:
        """Wait until the dashboard has started, and return its URL; None where the cluster has none.

        Raises:
            Exception: It did not start; Ray says why.
        """
        return None if self._dashboard is None else self._dashboard.url()


class _Dashboard:
    """The dashboard, started beside the rest, which Ray starts only when the dashboard answers.

    What Ray starts ends with the thread that it was started in. So that thread stays until the process ends.
    """

    def __init__(self) -> None:
        self._settled = threading.Event()
        self._error: Exception | None = None
        self._url = ""

    def in_background(self, start: Any) -> Any:
        """Return what to put into the place of Ray's own function."""

        def begin(node: Any, **options: Any) -> None:
            _no_dashboard(node)
            threading.Thread(target=work, args=(node, options), name="dashboard", daemon=True).start()

        def work(node: Any, options: dict[str, Any]) -> None:
            try:
                start(node, **options)
                self._url = f"http://{node.webui_url}"
            except Exception as error:  # noqa: BLE001 - raised again where it is waited for
                self._error = error
            self._settled.set()
            threading.Event().wait()

        return begin

    def url(self) -> str:
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return self._url


def _no_dashboard(node: Any, **_: Any) -> None:
    """Start none: without pages to show, Ray's would still be there, to count who uses Ray."""
    node._webui_url = ""


def _start_minimal(start: Any, command: list[str], process_type: str, *, jobs: bool, **options: Any) -> Any:
    """Start one of Ray's processes, with what a run's own cluster needs of it.

    Of the dashboard only the parts that answer what is asked of it: each is a process of its own, and half of them draw
    pages that nobody sees here. Where no jobs are taken, the raylet's agent is as small as where `ray[default]` is not
    installed: nobody asks it, and the raylet waits until it has imported what it needs.
    """
    if process_type == "dashboard" and not any(word.startswith("--modules-to-load") for word in command):
        command = [*command, f"--modules-to-load={','.join(_DASHBOARD_PARTS)}"]
    if process_type == "raylet" and not jobs:
        command = [f"{word} --minimal" if word.startswith("--dashboard_agent_command=") else word for word in command]
    return start(command, process_type, **options)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])

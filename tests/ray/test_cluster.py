"""Which cluster is used, who has access to it, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.executors.ray.cluster.control_socket import (
    LOOPBACK_ENV,
    ClusterOptions,
    ControlClient,
    directory_lock,
    start_daemon,
    stop_cluster,
)
from synapse_runtime.executors.ray.cluster.handle import ManagedCluster
from synapse_runtime.executors.ray.cluster.resolve import (
    dashboard_of,
    describe,
    find_cluster,
    without_dashboard_variable,
)
from synapse_runtime.executors.ray.cluster.session_scope import new_directory
from synapse_runtime.loggers import NullLogger
from tests.patience import patience
from tests.ray.conftest import PLUGIN

USE_A_CLUSTER = """
    import sys, time
    from synapse_runtime.executors.ray import RayActorExecutor
    from synapse_runtime.loggers import NullLogger
    executor = RayActorExecutor(plugin=sys.argv[1], logger=NullLogger())
    assert executor.execute("echo", {"value": 1}) == 1
"""


class Process:
    """A Python process of a test. It and all its descendants are identified by a mark in their environment."""

    def __init__(self, code: str, temp_dir: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.temp_dir = temp_dir
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(PLUGIN)],
            env={**os.environ, "SYNAPSE_TEST_MARK": self.mark, "TMPDIR": str(temp_dir)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def relatives(self) -> list[str]:
        """Return the command lines of all live processes with the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    marked = self.mark.encode() in (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if marked and command:
                    found.append(command)
        return found

    def leaves_nothing_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + patience(seconds)
        while time.monotonic() < deadline:
            if not self.relatives() and not list(self.temp_dir.iterdir()):
                return True
            time.sleep(0.1)
        raise AssertionError(f"left: {self.relatives()} {list(self.temp_dir.iterdir())}")


@pytest.fixture
def short_temp_dir() -> Iterator[Path]:
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="st", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_nothing_is_left_when_the_process_ends_and_ray_may_be_imported_before(short_temp_dir):
    process = Process("    import ray\n" + USE_A_CLUSTER, short_temp_dir)
    output, _ = process.process.communicate(timeout=patience(60))
    assert process.process.returncode == 0, output
    assert output == ""
    assert process.leaves_nothing_within(5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_when_the_process_is_killed(short_temp_dir, number):
    process = Process(USE_A_CLUSTER + "    print('ready', flush=True)\n    time.sleep(60)\n", short_temp_dir)
    assert process.process.stdout is not None
    assert process.process.stdout.readline() == "ready\n"
    assert any("gcs_server" in command for command in process.relatives())
    process.process.send_signal(number)
    process.process.wait(timeout=patience(15))
    process.process.stdout.close()
    assert process.leaves_nothing_within(10)


def test_cluster_that_the_process_is_connected_to_is_used_and_not_shut_down(short_temp_dir):
    code = """
        import ray, sys
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        before = ray.get_runtime_context().gcs_address
        from synapse_runtime.executors.ray import RayActorExecutor
        from synapse_runtime.loggers import NullLogger
        with RayActorExecutor(plugin=sys.argv[1], logger=NullLogger()) as executor:
            assert executor.execute("echo", {"value": 1}) == 1
        assert ray.get_runtime_context().gcs_address == before
    """
    process = Process(code, short_temp_dir)
    output, _ = process.process.communicate(timeout=patience(60))
    assert process.process.returncode == 0, output


def test_token_is_required_and_not_visible(worker):
    worker.run  # noqa: B018 - the fixture alone starts nothing
    cluster = find_cluster()
    assert cluster.token
    assert cluster.token not in repr(cluster)
    with pytest.raises(urllib.error.HTTPError) as rejected:
        urllib.request.urlopen(f"{dashboard_of(cluster)}/api/jobs/", timeout=patience(10))
    rejected.value.close()
    assert rejected.value.code == 401
    assert cluster.token not in os.environ.values()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert cluster.token.encode() not in (entry / "cmdline").read_bytes()
            except OSError:
                continue


def test_token_is_not_sent_to_other_clusters_and_is_read_again_if_ray_has_cached_that_there_is_none(short_temp_dir):
    code = (
        # Ray looks for a token between its import and the connection, when there is none: it must look again.
        """
    from synapse_runtime.executors.ray.cluster.resolve import find_cluster
    find_cluster()  # which imports Ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    get_auth_headers_if_auth_enabled({})
    """
        + USE_A_CLUSTER
        + """
    import http.server, threading
    from synapse_runtime.errors import ClusterError
    from synapse_runtime.executors.ray import RayJobsApiExecutor
    from synapse_runtime.executors.ray.cluster.ephemeral import ephemeral
    ephemeral.release()
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        RayJobsApiExecutor(ray_address=f"http://127.0.0.1:{server.server_port}").submit("any:Action")
    except ClusterError as error:
        assert "is not a Ray dashboard" in str(error), error
    assert seen == [None], seen
    """
    )
    process = Process(code, short_temp_dir)
    output, _ = process.process.communicate(timeout=patience(60))
    assert process.process.returncode == 0, output


@pytest.mark.parametrize("executor_class", [RayActorExecutor, RayJobsApiExecutor])
@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_error_for_an_address_that_nothing_listens_on_takes_seconds(executor_class, form):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(port=free.getsockname()[1])
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"no cluster answers at {address}"):
        executor_class(plugin=PLUGIN, ray_address=address).execute("echo")
    assert time.monotonic() - started < patience(15)


@pytest.mark.parametrize("address", ["nonsense", "host", "host:", ":80"])
def test_invalid_address_raises_an_error(address):
    with pytest.raises(ClusterError, match="is not a cluster address"):
        find_cluster(address)


@pytest.mark.parametrize("jobs", [False, True], ids=["without-jobs", "with-jobs"])
def test_only_the_ray_processes_that_are_needed_run(short_temp_dir, jobs, monkeypatch):
    for variable in ("COVERAGE_PROCESS_CONFIG", "COV_CORE_SOURCE"):  # these would make each process write coverage data
        monkeypatch.setenv(variable, "nothing")
    directory = Path(new_directory())
    with directory_lock(directory):
        start_daemon(directory, ClusterOptions(jobs=jobs, num_cpus=1, parent_pid=os.getpid()), uuid.uuid4().hex * 2)
    try:
        with ControlClient(directory) as control:
            control.request("cluster", timeout=patience(60))
            dashboard = control.request("dashboard", timeout=patience(60))["dashboard"]
            daemon = psutil.Process(control.request("status")["pid"])
            assert not [name for name in daemon.environ() if name.startswith("COV")]
        running = " ".join(word for part in daemon.children(recursive=True) for word in part.cmdline())
        assert "gcs_server" in running
        assert "log_monitor.py" not in running
        assert ("autoscaler/_private/monitor.py" in running) is jobs  # it reports available resources
        assert ("dashboard/dashboard.py" in running) is jobs
        assert ("--minimal" in running) is not jobs
        assert (dashboard is not None) is jobs
    finally:
        stop_cluster(directory)


def test_dashboard_that_does_not_start_raises_an_error_and_ends_the_cluster(tmp_path, monkeypatch):
    code = "import os, sys\nif any('dashboard/dashboard.py' in word for word in sys.orig_argv): os._exit(3)"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    directory = Path(new_directory())
    with directory_lock(directory):
        start_daemon(directory, ClusterOptions(num_cpus=1, parent_pid=os.getpid()), uuid.uuid4().hex * 2)
    try:
        cluster = ManagedCluster(directory, "ephemeral")
        assert cluster.wait_until_ready().address
        with pytest.raises(ClusterError, match=r"the local Ray cluster did not start: .*dashboard"):
            cluster.dashboard()
        with ControlClient(directory) as control:
            assert control.wait_until_closed(patience(15))
        assert not directory.exists()
    finally:
        stop_cluster(directory)


def test_describe_names_the_cluster_that_will_be_used(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert describe() == "ephemeral, started when first needed"
    assert describe("10.0.0.1:6379") == "10.0.0.1:6379 (given)"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert describe() == "10.0.0.2:6379 (RAY_ADDRESS)"


def test_action_that_ends_in_another_thread_does_not_change_temporary_variables(monkeypatch):
    name = "RAY_API_SERVER_ADDRESS"
    monkeypatch.delenv(name, raising=False)
    inside, may_end = threading.Event(), threading.Event()

    @action
    def waits(params, context):
        inside.set()
        assert may_end.wait(patience(10))

    thread = threading.Thread(target=LocalExecutor(logger=NullLogger()).execute, args=(waits,))
    thread.start()
    assert inside.wait(patience(10))
    with without_dashboard_variable("http://here"):
        may_end.set()
        thread.join(0.3)
        assert os.environ[name] == "http://here"
    thread.join(patience(10))
    assert name not in os.environ


def test_private_names_of_ray_exist():
    import inspect

    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private import node, parameter, ray_constants, services, worker
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.core.generated.gcs_pb2 import GcsNodeInfo
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoReply, InternalKVGetReply, InternalKVGetRequest
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub, NodeInfoGcsServiceStub
    from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    assert InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER).key
    assert InternalKVGetReply().value == b""
    assert ClusterInfoRequest(type=ClusterInfoType.PING)
    with init_grpc_channel("127.0.0.1:1") as channel:
        assert callable(InternalKVGcsServiceStub(channel).InternalKVGet)
        assert callable(NodeInfoGcsServiceStub(channel).GetAllNodeInfo)
        assert callable(RayletDriverStub(channel).ClusterInfo)
    info = GcsNodeInfo(state=GcsNodeInfo.ALIVE, resources_total={"CPU": 1.0})
    assert GetAllNodeInfoReply(node_info_list=[info]).node_info_list[0].resources_total == {"CPU": 1.0}
    assert isinstance(get_auth_headers_if_auth_enabled({}), dict)
    settings = {"dashboard_agent_listen_port", "include_log_monitor", "no_monitor"}
    assert settings <= set(inspect.signature(parameter.RayParams).parameters)
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in LOOPBACK_ENV
    assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services.get_node_ip_address)
    assert "_memory" in inspect.getsource(ray.init)
    assert "= start_ray_process(\n" in inspect.getsource(services.start_api_server)
    assert "self.start_api_server(\n" in inspect.getsource(node.Node.start_head_processes)
    assert "webui=self._webui_url" in inspect.getsource(node.Node.start_raylet)
    assert isinstance(node.Node.webui_url, property)
    assert "    connect(\n        _global_node,\n" in inspect.getsource(ray.init)
    assert "= start_ray_process(\n" in inspect.getsource(services.start_raylet)
    assert '"--dashboard_agent_command={}"' in inspect.getsource(services.start_raylet)
    assert '"--minimal"' in Path(ray.__file__).with_name("dashboard").joinpath("agent.py").read_text(encoding="utf-8")
    assert "--modules-to-load=" in inspect.getsource(services.start_api_server)
    assert callable(worker.listen_error_messages)
    assert callable(worker.get_dashboard_url)
    assert callable(Config.initialize)
    assert callable(AuthenticationTokenLoader.instance().reset_cache)


WAIT_FOR_A_WORKER = """
import os, signal, threading, time
import psutil
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.loggers import NullLogger

def answer(params, context):
    return 42

answer._is_action = True

def break_it():
    global broken
    time.sleep(1.5)  # until the call waits
    for process in psutil.Process().children(recursive=True):
        if process.name() == "gcs_server":
            process.kill()
    broken = time.monotonic()

with RayActorExecutor(num_cpus=os.cpu_count(), logger=NullLogger()) as busy:
    assert busy.execute(answer) == 42
    with RayActorExecutor(num_cpus=1, logger=NullLogger()) as waiting:
        threading.Thread(target=break_it).start()
        try:
            print("no error:", waiting.execute(answer))
        except ClusterError as error:
            print(time.monotonic() - broken, error)
        busy.close()
        print(waiting.execute(answer))
"""


def test_waiting_for_a_worker_raises_an_error_when_the_cluster_ends_and_the_next_call_starts_a_new_one():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", WAIT_FOR_A_WORKER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(100), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr  # Ray ends the process unless it disconnects in time
    error, answer = done.stdout.splitlines()
    assert float(error.split()[0]) < patience(10)
    assert re.search(r"the cluster at [\d.]+:\d+ failed: it no longer responds$", error)
    assert answer == "42"


MONITOR = """
import os, pathlib, socket, subprocess, sys, time
from synapse_runtime.executors.ray.cluster.daemon import StartupMonitor

killed = pathlib.Path("killed")
monitor = StartupMonitor(killed.touch, socket.socket())
server = subprocess.Popen(["./gcs_server", "60"])
moments = {"before": (), "during": (monitor.start,), "after": (monitor.start, monitor.stop)}
for step in moments[sys.argv[1]]:
    step()
server.kill()
until = time.monotonic() + (10 if sys.argv[1] == "during" else 1)
while not killed.exists() and time.monotonic() < until:
    time.sleep(0.05)
print(killed.exists())
monitor.stop()
server.wait()
"""


@pytest.mark.parametrize(("moment", "ends"), [("before", False), ("during", True), ("after", False)])
def test_starting_cluster_ends_with_the_processes_that_drivers_depend_on(tmp_path, moment, ends):
    # The monitor is a separate process, because the daemon is blocked while Ray connects it.
    shutil.copy(shutil.which("sleep") or "", tmp_path / "gcs_server")
    command = [sys.executable, "-c", MONITOR, moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(30), cwd=tmp_path)
    assert done.stdout == f"{ends}\n", done.stderr


def test_startup_monitor_that_fails_only_ends_itself(tmp_path):
    shutil.copy(shutil.which("sleep") or "", tmp_path / "gcs_server")
    program = MONITOR.replace("killed.touch", "lambda: 1 / 0") + "print('the daemon keeps running')\n"
    command = [sys.executable, "-c", f"try:\n{textwrap.indent(program, '    ')}\nfinally:\n    print('cleaned up')"]
    done = subprocess.run([*command, "during"], capture_output=True, text=True, timeout=patience(30), cwd=tmp_path)
    assert done.stdout == "False\nthe daemon keeps running\ncleaned up\n"
    assert "ZeroDivisionError" in done.stderr

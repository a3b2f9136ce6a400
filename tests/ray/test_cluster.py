"""Which cluster is used, who has access to it, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
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
from urllib.parse import urlsplit

import psutil
import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.executors.ray.cluster import control_socket, daemon
from synapse_runtime.executors.ray.cluster.control_socket import (
    LOOPBACK_ENV,
    SOCKET_NAME,
    ClusterOptions,
    ControlClient,
    ControlClosed,
    directory_lock,
    start_daemon,
    stop_cluster,
)
from synapse_runtime.executors.ray.cluster.ephemeral import EphemeralCluster
from synapse_runtime.executors.ray.cluster.handle import ManagedCluster
from synapse_runtime.executors.ray.cluster.resolve import (
    dashboard_of,
    describe,
    find_cluster,
    without_dashboard_variable,
)
from synapse_runtime.executors.ray.cluster.session_scope import current_spec, new_directory
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


# Ctrl-C is tested with the command: tests/cli/test_run_ray.py.
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)],
    ids=lambda number: number.name,
)
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
    if jobs:  # on a busy machine it may take so long until an agent listens; the raylet itself waits for 15 s
        is_agent = "any('agent/main.py' in word or 'dashboard/agent.py' in word for word in sys.orig_argv)"
        (short_temp_dir / "sitecustomize.py").write_text(f"import sys, time\nif {is_agent}: time.sleep(17)\n")
        monkeypatch.setenv("PYTHONPATH", str(short_temp_dir))
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


FROM_TWO_THREADS = """
    import ray  # which need not be imported by the executors first
    import sys, threading, time
    from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
    from synapse_runtime.loggers import NullLogger

    def call(executor_class, number, delay):
        time.sleep(delay)
        results.append(executor_class(plugin=sys.argv[1], logger=NullLogger()).execute("echo", {"value": number}))

    results = []
    # The last one comes while the cluster is starting.
    calls = [(RayJobsApiExecutor, 1, 0), (RayJobsApiExecutor, 2, 0), (RayActorExecutor, 3, 0), (RayActorExecutor, 4, 2)]
    threads = [threading.Thread(target=call, args=arguments) for arguments in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sorted(results))
"""


def test_threads_share_the_start_of_a_cluster_and_nothing_is_left_when_their_process_ends(short_temp_dir):
    process = Process(FROM_TWO_THREADS, short_temp_dir)
    output, _ = process.process.communicate(timeout=patience(90))
    assert output == "[1, 2, 3, 4]\n"
    assert process.leaves_nothing_within(10)


def test_cluster_is_restarted_for_jobs_only_when_no_call_uses_it():
    cluster = EphemeralCluster()
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def call() -> None:
        with cluster.used_by_call() as use:
            use.is_running = True
            inside.set()
            assert leave.wait(patience(10))
            order.append("call has ended")

    def restart() -> None:
        with cluster.used_by_call(), cluster._restarting():
            order.append("restarted")

    threads = [threading.Thread(target=call), *(threading.Thread(target=restart) for _ in range(3))]
    threads[0].start()
    assert inside.wait(patience(10))
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.3)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(patience(10))
    assert order == ["call has ended", *["restarted"] * 3]


def test_call_within_a_call_cannot_have_the_cluster_restarted():
    cluster = EphemeralCluster()
    with cluster.used_by_call() as use:
        use.is_running = True
        with pytest.raises(ClusterError, match="started without the Jobs API and is used by the call that waits for"):
            cluster._restarting().__enter__()


class SlowDaemon:
    """Answers requests on a control socket, each a moment later."""

    def __init__(self, directory: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / SOCKET_NAME))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:  # a client may have gone
            for line in lines:
                time.sleep(0.3)
                connection.sendall(json.dumps({"answers": json.loads(line)["request"]}).encode() + b"\n")

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def slow_daemon(short_temp_dir: Path) -> Iterator[Path]:
    daemon = SlowDaemon(short_temp_dir)
    yield short_temp_dir
    daemon.close()


def test_threads_that_send_requests_get_their_own_answers(slow_daemon):
    control = ControlClient(slow_daemon)
    answers: dict[str, object] = {}

    def ask(name: str) -> None:
        answers[name] = control.request(name, timeout=patience(10))["answers"]

    threads = [threading.Thread(target=ask, args=(f"request {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: name for name in (f"request {number}" for number in range(4))}
    control.close()


def test_late_answer_is_not_taken_for_that_of_the_next_request(slow_daemon):
    control = ControlClient(slow_daemon)
    with pytest.raises(TimeoutError):
        control.request("first", timeout=0.05)
    with pytest.raises(ControlClosed):
        control.request("second", timeout=patience(5))


def test_start_may_take_longer_on_a_busy_machine_and_the_error_names_its_load(monkeypatch, slow_daemon):
    cpus = os.cpu_count() or 1
    for load, seconds in ((0.5, 90), (4.0 * cpus, 360), (100.0 * cpus, 450)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert control_socket.start_seconds() == seconds
    monkeypatch.setattr(control_socket, "_START_SECONDS", 0.05)
    monkeypatch.setattr(control_socket, "_MAX_START_SECONDS", 0.05)
    text = rf"not ready within 0 s \(load average {100.0 * cpus:.1f} on {cpus} CPUs, [\d.]+ of [\d.]+ GB of memory"
    with pytest.raises(ClusterError, match=text):
        ManagedCluster(slow_daemon, "ephemeral").wait_until_ready()


def test_cluster_that_cannot_be_watched_ends(short_temp_dir, monkeypatch, capsys):
    cluster = daemon.ClusterDaemon(short_temp_dir, ClusterOptions(parent_pid=os.getpid()))
    ended: list[bool] = []
    monkeypatch.setattr(cluster, "_should_stop", lambda: 1 / 0)
    monkeypatch.setattr(cluster, "_kill_everything", lambda: ended.append(True))
    cluster._watch()
    assert ended == [True]
    stderr = capsys.readouterr().err
    assert "ZeroDivisionError" in stderr
    assert "the cluster shuts down because it cannot be watched" in stderr


@pytest.mark.parametrize("has_waitid", [True, False])
def test_ended_child_process_of_a_daemon_is_noticed(monkeypatch, has_waitid):
    if not has_waitid:
        monkeypatch.delattr(os, "waitid")
    code = (
        "import os, sys\n"
        "if sys.argv[1] == 'False': del os.waitid\n"
        "from synapse_runtime.executors.ray.cluster.daemon import _child_exited\n"
        "import subprocess, time\n"
        "running = subprocess.Popen(['sleep', '60'])\n"
        "before = _child_exited()\n"
        "running.kill()\n"
        "until = time.monotonic() + 10\n"
        "while not _child_exited() and time.monotonic() < until: time.sleep(0.05)\n"
        "print(before, _child_exited())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(has_waitid)], capture_output=True, text=True, check=False)
    assert done.stdout == "False True\n", done.stderr


def ask_as_another_user(ports: list[int]) -> dict[str, str]:
    """Send HTTP requests to ports of this machine, without a token, and return the beginnings of their answers."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            answers = {f"{port}{path}": _answer(port, path) for port in ports for path in ("/", "/metrics")}
            os.write(write, json.dumps(answers).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answered:
        found: dict[str, str] = json.loads(answered.read())
    os.waitpid(child, 0)
    return found


def _answer(port: int, path: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(200).decode("latin-1")
    except OSError as error:
        return f"refused: {error}"


def test_no_port_of_a_cluster_answers_without_a_token(worker, job):
    # Both modes use the run's cluster, so all of its processes run.
    RayActorExecutor(worker=worker, plugin=PLUGIN, logger=NullLogger()).execute("echo")
    job.execute("echo")
    directory = str(current_spec.get().path)
    ports = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(directory):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
                        ports[connection.laddr.port] = process.name()
    assert len(ports) >= 6
    dashboard = urlsplit(dashboard_of(find_cluster())).port
    for port, answer in ask_as_another_user(list(ports)).items():
        status = answer.partition("\r\n")[0]
        if port == f"{dashboard}/":  # Ray's page that asks for the token, the same for everybody
            continue
        # Ports of gRPC answer with a frame of HTTP/2, and their methods require the token.
        assert not answer.startswith("HTTP/") or re.search(" 40[14] ", status), (
            port,
            ports[int(port.partition("/")[0])],
            status,
        )


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


# Whoever can connect to Ray's control service can end it with one empty call: docs/upstream.md.
STRANGER = """
import os, sys
import grpc

if os.getuid() == 0:
    os.setuid(65534)
channel = grpc.insecure_channel(sys.argv[1])
try:
    list(channel.stream_stream("/ray.rpc.syncer.RaySyncer/StartSync")(iter([]), timeout=3))
except grpc.RpcError as error:
    print(error.code())
"""
WAIT_FOR_A_WORKER = """
import os, subprocess, sys, threading, time
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
    servers = [one for one in psutil.Process().children(recursive=True) if one.name() == "gcs_server"]
    command = [sys.executable, "-c", sys.argv[1], busy.backend.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as stranger:
        _, running = psutil.wait_procs(servers, timeout=10)
        for process in running:  # this version of Ray refuses the call
            process.kill()
        broken = time.monotonic()

with RayActorExecutor(num_cpus=os.cpu_count(), logger=NullLogger()) as busy:
    assert busy.execute(answer) == 42
    with RayActorExecutor(num_cpus=1, logger=NullLogger()) as waiting:
        breaking = threading.Thread(target=break_it)
        breaking.start()
        try:
            print("no error:", waiting.execute(answer))
        except ClusterError as error:
            failed = time.monotonic()
            breaking.join()
            print(failed - broken, error)
        busy.close()
        print(waiting.execute(answer))
"""


def test_waiting_for_a_worker_raises_an_error_when_the_cluster_ends_and_the_next_call_starts_a_new_one():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", WAIT_FOR_A_WORKER, STRANGER]
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


def test_cluster_whose_raylet_has_ended_is_not_waited_for(tmp_path):
    shutil.copy(shutil.which("true"), tmp_path / "raylet")
    code = (
        "import subprocess, sys\n"
        "from synapse_runtime.executors.ray.cluster.head_node import _get_node\n"
        "def get_node(address, node_id): raise RuntimeError('no node yet')\n"
        "process = subprocess.Popen([sys.argv[1]])\n"
        "_get_node(get_node, '127.0.0.1:1', 'node')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "raylet")], capture_output=True, text=True, timeout=patience(30)
    )
    assert done.stderr.splitlines()[-1] == "RuntimeError: no node yet"

"""`synapse cluster …`: the warm cluster is found, protected, cleaned up, and shuts down when idle."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.executors.ray.cluster.control_socket import ControlClient, processes_of
from synapse_runtime.executors.ray.cluster.persistent import state_file, status_or_problem
from tests.cli.processes import COMMAND, Synapse, command_of, interrupt, processes_with, synapse_in
from tests.patience import patience, within

# Jobs outlive clusters, so their key is kept.
JOB_KEY = "job-key"


@pytest.fixture
def synapse(plugin_dir: Path, tmp_path: Path) -> Iterator[Synapse]:
    """The command with its own state directory; its warm cluster is shut down after the test."""
    with synapse_in(plugin_dir, XDG_STATE_HOME=str(tmp_path / "state")) as command:
        yield command
        command("cluster", "down")
        assert command.leftovers() == []


@pytest.fixture(scope="module")
def warm(plugin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """The command with a warm cluster shared by the tests of this module.

    It outlives the command that has started it, that command's terminal, and Ctrl-C there.
    """
    state = tmp_path_factory.mktemp("state")
    with synapse_in(plugin_dir, XDG_STATE_HOME=str(state)) as command:
        options = ("--cpus", "2", "--gpus", "3", "--memory", "2GiB")
        with command.on_terminal("cluster", "up", *options, command=()) as child:
            child.expect("daemon +process ([0-9]+)", timeout=patience(240))
        assert facts(command)["pid"] == int(child.match[1])
        yield command
        down = command("cluster", "down")
        assert (down.status, down.stderr) == (0, "the warm cluster was shut down\n")
        assert command.leftovers() == []


def facts(synapse: Synapse) -> dict:
    done = synapse("cluster", "status", "--json")
    assert done.status == 0, done.stderr
    return done.result


def findings(synapse: Synapse, **env: str) -> list[dict]:
    return synapse("doctor", "--json", **env).result["findings"]


def servers(synapse: Synapse) -> list[int]:
    return [pid for pid in processes_with(synapse.mark) if "gcs_server" in command_of(pid)]


def state_of(synapse: Synapse) -> Path:
    (file,) = Path(synapse.env["XDG_STATE_HOME"], "synapse-clusters").glob("*.json")
    return file


def test_outlives_the_command_that_started_it_and_its_terminal(warm):
    assert len(servers(warm)) == 1


def test_status_shows_the_cluster(warm):
    found = facts(warm)

    assert found["address"].startswith("127.0.0.1:")
    assert (found["resources"]["CPU"], found["resources"]["GPU"], found["resources"]["memory"]) == (2, 3, 2 * 2**30)
    assert found["idle_seconds"] == 1800
    assert found["users"] == []
    text = warm("cluster", "status").stdout
    assert f"address    {found['address']}\n" in text
    assert "resources  2 CPU, 3 GPU, 2.1 GB memory\n" in text
    assert "shutdown   after 0:30:00 without use\n" in text


def test_doctor_shows_it(warm):
    (found,) = [one for one in findings(warm) if one["what"] == "warm cluster"]
    assert found["state"] == "ok"
    assert found["text"] == "running; CPU 2, GPU 3, memory 2.1GB; idle"
    assert facts(warm)["directory"] not in warm("doctor").stdout  # it is not a leftover


@pytest.mark.parametrize("form", ["{address}", "{dashboard}"])
def test_doctor_shows_versions_and_resources_of_a_cluster_at_an_address(warm, form):
    with ControlClient(Path(facts(warm)["directory"])) as client:
        there = client.request("dashboard")
    variables = {"RAY_ADDRESS": form.format(**there), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": there["token"]}

    found = {one["what"]: (one["state"], one["text"]) for one in findings(warm, **variables)}
    assert found["resources"] == ("ok", "1 node: CPU 2, GPU 3, memory 2.1GB")
    state, text = found["versions"]
    assert state == "ok"
    assert re.fullmatch(r"(Ray \S+ and Python \S+) on the cluster, \1 here", text)
    assert found["token"] == ("ok", "from RAY_AUTH_TOKEN")
    assert ("task mode" in found) == (form == "{dashboard}")

    wrong = findings(warm, **variables | {"RAY_AUTH_TOKEN": "0" * 64})
    (problem,) = [one["text"] for one in wrong if one["state"] == "problem"]
    assert problem == f"the cluster at {variables['RAY_ADDRESS']} rejects the token from RAY_AUTH_TOKEN"


def test_up_twice_changes_nothing(warm):
    before = facts(warm)["pid"]

    again = warm("cluster", "up")
    assert again.status == 0
    assert again.stderr == "a warm cluster is already running\n"
    assert f"daemon     process {before}\n" in again.stdout

    assert warm("cluster", "up", "--json").result["pid"] == before

    more = warm("cluster", "up", "--gpus", "4")
    assert more.status == 3
    expected = "the running cluster does not fit: it has 3 GPUs, 4 requested; run `synapse cluster down` first\n"
    assert more.stderr.endswith(expected)
    assert len(servers(warm)) == 1


@pytest.mark.parametrize("mode", ["task", "job"])
def test_plugin_run_finds_it(warm, mode):
    done = warm.run("infer", "--mode", mode, "--params", '{"number": 1}', "--gpus", "3")

    assert done.status == 0, done.stderr
    assert f"cluster: warm, {facts(warm)['address']}" in done.stderr
    assert done.shown_result == {"number": 1}
    assert len(servers(warm)) == 1


def test_detached_job_runs_on_it(warm):
    submitted = warm.run("infer", "--mode", "job", "--detach", "--json", "--params", '{"number": 2}')
    assert submitted.status == 0, submitted.stderr
    job_id = submitted.result["id"]

    assert warm.job("result", job_id, "--json").result == {"number": 2}
    assert job_id in warm.job("list").stdout
    assert warm.job("delete", job_id).status == 0


def test_impossible_request_fails_at_once(warm):
    done = warm.run("infer", "--mode", "task", "--gpus", "4")

    assert done.status == 3
    assert "requested num_gpus=4, but the cluster has 3 GPUs in total" in done.stderr
    assert done.seconds < patience(10)


def test_logs_lists_and_prints_log_files(warm):
    listed = warm("cluster", "logs").stdout
    assert listed.splitlines()[0].endswith("/cluster.log")
    assert "/gcs_server.out\n" in listed

    data = warm("cluster", "logs", "--json").result
    assert Path(data[0]["path"]).name == "cluster.log"
    assert sum(file["bytes"] for file in data) > 0
    assert "gcs_server" in warm("cluster", "logs", "gcs_server.o").stdout
    one = warm("cluster", "logs", "gcs_server.o", "--json").result
    assert one["path"].endswith("/gcs_server.out")
    assert "gcs_server" in one["text"]
    wrong = warm("cluster", "logs", "nothing-like-it")
    assert wrong.status == 3
    assert wrong.stderr == "error: no log file matches 'nothing-like-it'; `synapse cluster logs` lists them\n"


def test_only_its_user_has_access(warm):
    """State file, directory and socket belong to this user; the token is not visible; all ports listen on loopback."""
    found = facts(warm)
    state = state_of(warm)
    directory = Path(json.loads(state.read_text())["directory"])

    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    token = token_of(warm)
    assert token not in state.read_text()
    assert token not in json.dumps(found)
    for path in directory.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in entry.read_bytes()
        except OSError:
            continue
    pids = set(processes_with(warm.mark))
    listening = {address for pid, address in listeners() if pid in pids}
    assert listening
    assert {address.rpartition(":")[0] for address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listeners() -> Iterator[tuple[int, str]]:
    """Yield the processes of this machine that listen on TCP, with their addresses."""
    import psutil

    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid is not None:
            yield connection.pid, f"{connection.laddr.ip}:{connection.laddr.port}"


ANOTHER_USER = """
import encodings.idna, json, os, socket, sys, urllib.error, urllib.request
from ray._raylet import GcsClient

facts, directory = json.loads(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

def show(call):
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))

def submit_job():
    headers = {"Content-Type": "application/json"}
    if "RAY_AUTH_TOKEN" in os.environ:
        headers["Authorization"] = "Bearer " + os.environ["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(facts["dashboard"] + "/api/jobs/", b'{"entrypoint": "true"}', headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status

show(lambda: socket.socket(socket.AF_UNIX).connect(directory + "/control.sock"))
show(lambda: os.listdir(directory))
show(lambda: open(f"/proc/{facts['pid']}/environ").read())
show(submit_job)
show(lambda: len(GcsClient(address=facts["address"]).get_all_node_info()))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_has_no_access(warm):
    found = facts(warm)
    directory = json.loads(state_of(warm).read_text())["directory"]

    def lines(**env: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", ANOTHER_USER, json.dumps(found), directory],
            env=warm.environment(**env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(90),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    *files, jobs_api, ray = lines()
    assert [line.partition(" ")[0] for line in files] == ["PermissionError"] * 3
    assert jobs_api == "HTTPError HTTP Error 401: Unauthorized"
    assert "InvalidAuthToken" in ray
    # With the token the same requests succeed.
    assert lines(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token_of(warm))[3:] == ["200", "1"]


def token_of(synapse: Synapse) -> str:
    """Return the token of the command's cluster, read from the environment of its processes."""
    (token,) = {
        variable.partition(b"=")[2].decode()
        for pid in processes_with(synapse.mark)
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if variable.startswith(b"RAY_AUTH_TOKEN=")
    }
    return token


def test_commands_without_a_warm_cluster_say_so(synapse):
    status = synapse("cluster", "status")
    assert status.status == 3
    assert status.stderr == "there is no warm cluster; `synapse cluster up` starts one\n"
    assert synapse("cluster", "status", "--json").stdout == "null\n"
    down = synapse("cluster", "down", "--json")
    assert (down.status, down.stderr) == (0, "there is no warm cluster\n")
    assert down.result == {"ended": False}
    logs = synapse("cluster", "logs")
    assert (logs.status, logs.stderr) == (3, "error: there is no warm cluster; `synapse cluster up` starts one\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--idle-timeout", "soon"), "expected a time such as 90s, 30m, 2h, or 'never', got 'soon'"),
        (("--idle-timeout", "0"), "expected a time such as 90s, 30m, 2h, or 'never', got '0'"),
        (("--idle-timeout", "9" * 400), "expected a positive number of seconds, at most 31,536,000, got inf"),
        (("--memory", "much"), "memory must be a number of bytes, or text such as '2GB' or '512MiB', not 'much'"),
        (("--cpus", "0"), "greater than or equal to 1"),
    ],
)
def test_invalid_arguments_raise_a_usage_error(synapse, arguments, words):
    done = synapse("cluster", "up", *arguments)
    assert done.status == 2
    assert words in " ".join(done.stderr.split())


IDLE_SECONDS = patience(6)  # starting a command may take as long


def test_shuts_down_when_idle_but_not_while_an_action_or_a_detached_job_runs(synapse):
    assert synapse("cluster", "up", "--idle-timeout", f"{IDLE_SECONDS:g}s").status == 0
    assert len(servers(synapse)) == 1
    with synapse.started("nap", "--mode", "task") as user:
        assert within(20, lambda: facts(synapse)["users"] == [user.pid])
        time.sleep(IDLE_SECONDS + 2)  # longer than it may be idle
        assert len(servers(synapse)) == 1
        interrupt(user)
        user.communicate(timeout=patience(20))
    file = synapse.temp / "go"
    submitted = synapse.run("wait_for", "--mode", "job", "--detach", "--params", json.dumps({"file": str(file)}))
    assert submitted.status == 0, submitted.stderr
    time.sleep(IDLE_SECONDS + 2)  # longer than it may be idle
    assert len(servers(synapse)) == 1
    file.touch()
    assert within(30, lambda: not servers(synapse))
    file.unlink()
    assert within(30, lambda: not synapse.leftovers())  # the daemon deletes its directory last
    assert [path.name for path in Path(synapse.env["XDG_STATE_HOME"], "synapse-clusters").iterdir()] == [JOB_KEY]


@pytest.mark.parametrize("victims", ["daemon", pytest.param("all", marks=pytest.mark.thorough)])
def test_state_file_of_a_dead_cluster_is_deleted(synapse, victims):
    assert synapse("cluster", "up").status == 0
    daemon = facts(synapse)["pid"]
    os.kill(daemon, signal.SIGKILL)
    if victims == "all":
        for pid in processes_with(synapse.mark):
            os.kill(pid, signal.SIGKILL)
    state = state_of(synapse)
    assert state.exists()

    status = synapse("cluster", "status")
    assert status.status == 3
    assert not state.exists()
    assert synapse.leftovers() == []


@pytest.fixture
def state(synapse: Synapse, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the state file, which does not exist, without a cluster."""
    monkeypatch.setenv("XDG_STATE_HOME", synapse.env["XDG_STATE_HOME"])
    state_file().parent.mkdir(mode=0o700, parents=True)
    return state_file()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"directory": "/nowhere/synapse-1"}'])
def test_invalid_state_file_is_deleted(synapse, state, text):
    state.touch(0o600)
    state.write_text(text)

    assert synapse("cluster", "status").status == 3
    assert not state.exists()


def test_state_file_cannot_delete_another_directory(synapse, state, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    state.touch(0o600)
    state.write_text(json.dumps({"pid": 1, "directory": str(precious)}))

    assert synapse("cluster", "status").status == 3
    assert (precious / "file").exists()


def test_state_file_writable_by_others_is_rejected(synapse, state):
    state.touch(0o666)
    state.chmod(0o666)

    for command in ("status", "up", "down"):
        done = synapse("cluster", command)
        assert done.status == 3
        assert f"{state} must belong to this user and be inaccessible to others" in done.stderr
    state.unlink()


@pytest.mark.parametrize(
    "command", [("cluster", "status"), ("cluster", "up"), ("cluster", "down"), ("cluster", "logs"), ("job", "list")]
)
def test_state_directory_that_cannot_be_used_is_an_error(synapse, tmp_path, command):
    (tmp_path / "state").touch()

    done = synapse(*command)

    assert (done.status, done.stdout) == (3, "")
    assert "the state of the warm cluster, cannot be used: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_state_directory_of_another_user_counts_as_no_warm_cluster(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        monkeypatch.setenv("XDG_STATE_HOME", home)
        state_file().parent.mkdir(0o700)
        os.chmod(home, 0o755)
        os.seteuid(65534)
        try:
            found, problem = status_or_problem()
        finally:
            os.seteuid(0)
        assert found is None
        assert problem is not None
        assert "cannot be used: Permission denied; make it accessible to this user, or set XDG_STATE_HOME" in problem


def test_doctor_warns_about_a_state_directory_that_cannot_be_used(synapse, tmp_path):
    (tmp_path / "state").touch()
    (found,) = (one for one in findings(synapse) if one["what"] == "warm cluster")
    assert found["state"] == "warning"
    assert "not used: " in found["text"]


def test_down_returns_when_all_processes_have_exited(synapse):
    assert synapse("cluster", "up").status == 0
    directory = Path(json.loads(state_of(synapse).read_text())["directory"])
    assert any(processes_of(directory))

    down = synapse("cluster", "down")

    assert [command_of(process.pid) for process in processes_of(directory)] == []
    assert (down.status, down.stderr) == (0, "the warm cluster was shut down\n")


def test_down_works_if_the_daemon_hangs(synapse):
    assert synapse("cluster", "up").status == 0
    os.kill(facts(synapse)["pid"], signal.SIGSTOP)

    down = synapse("cluster", "down")

    assert (down.status, down.stderr) == (0, "the warm cluster was shut down\n")
    assert synapse.leftovers() == []


def test_ctrl_c_during_start_leaves_nothing(synapse):
    process = subprocess.Popen(
        [*COMMAND, "cluster", "up"],
        cwd=synapse.cwd,
        env=synapse.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert within(20, lambda: bool(servers(synapse)))
        interrupt(process)
        _, stderr = process.communicate(timeout=patience(30))
    assert process.returncode == 130
    assert stderr == "interrupted\n"
    assert synapse.leftovers() == []
    assert synapse("cluster", "status").status == 3


def test_start_and_stop_mean_up_and_down(synapse: Synapse) -> None:
    listed = synapse("cluster", "--help").stdout
    assert " start " not in listed
    assert "Start the warm cluster" in synapse("cluster", "start", "--help").stdout
    assert synapse("cluster", "stop").status == synapse("cluster", "down").status

"""Rows 30 to 32: crashed workers, crashed clusters, unavailable resources."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synapse_runtime.errors import ClusterError, RemoteError, WorkerCrashed
from synapse_runtime.events import Event
from synapse_runtime.executors.remote.session import RemoteSession
from synapse_runtime.loggers import NullLogger
from tests.parity.modes import as_a_job, on_workers
from tests.parity.test_endurance import server_of
from tests.patience import patience

pytestmark = on_workers


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("exit", "exited with status 7"),
        ("segfault", "was killed by SIGSEGV"),
        ("abort", "was killed by SIGABRT"),
        ("SIGKILL", "was killed by SIGKILL"),
        ("SIGTERM", "was killed by SIGTERM"),
    ],
)
@pytest.mark.synapse(mode=("task", "remote"))
def test_30_crashed_worker_is_reported_with_its_exit_and_replaced(synapse_executor, capfd, how, words):
    check_crash(synapse_executor, capfd, how, words)
    assert synapse_executor.execute("echo", {"value": 1}) == 1


# The supervisor of a job reports how its process has ended, whichever status or signal it is.
@pytest.mark.parametrize(("how", "words"), [("exit", "exited with status 7"), ("segfault", "was killed by SIGSEGV")])
@as_a_job
def test_30_crashed_process_of_a_job_is_reported_with_its_exit(synapse_executor, capfd, how, words):
    check_crash(synapse_executor, capfd, how, words)


def check_crash(synapse_executor, capfd, how, words):
    with pytest.warns(UserWarning, match="warned"):
        run = synapse_executor.run("lab.workers:Crash", {"how": how})
    assert [event.name for event in run.logs] == ["about to die"]
    assert run.metrics == {"train": {"loss": 0.5}}
    assert [record.getMessage() for record in run.records] == ["record 1"]
    assert [str(warning.message) for warning in run.warnings] == ["warned"]
    assert type(run.error) is WorkerCrashed
    assert words in str(run.error)
    assert run.error.__cause__ is not None or run.mode == "remote"
    assert "memory" not in str(run.error)
    assert run.error.details.splitlines()[-50:] == [f"line {number}" for number in range(10, 60)]
    assert capfd.readouterr().out.startswith("line 0\n")
    assert run.pid != os.getpid()
    if how in ("segfault", "abort"):
        note = next(note for note in run.error.__notes__ if note.startswith("Stack of the action:"))
        assert "in die" in note
        assert "synapse_runtime" not in note
        assert "site-packages" not in note


SCRIPT = """
import os, sys
from pathlib import Path
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor

def sizes():
    facts = {name: int(rest.split()[0]) for name, _, rest in
             (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())}
    return facts["MemTotal"], facts["MemAvailable"]

total, available = sizes()
# On a large machine this leaves 4 GB for what other tests start in the meantime.
os.environ["RAY_memory_usage_threshold"] = str((total - available + min(4_000_000, available // 2)) / total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"

def eat(params, context):
    import time
    print("eating", flush=True)
    eaten = []
    for _ in range(200):  # enough even if other tests free memory
        eaten.append(b"x" * 100_000_000)
        time.sleep(0.05)
    return len(eaten)

eat._is_action = True
for mode, executor_class in {"job": RayJobsApiExecutor, "task": RayActorExecutor}.items():
    with executor_class() as executor:
        error = executor.run(eat).error
    text = str(error).splitlines()[0]
    print("\\n>>>", mode, "|", type(error).__name__, "|", text, "|", "low on memory" in str(error.__cause__))
"""


def run_script(directory, text, *arguments):
    """Run a script with its own cluster; return the lines that it marks with `>>>`, by mode, and its output."""
    script = directory / "script.py"
    script.write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(180), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [line.removeprefix(">>> ").partition(" | ") for line in done.stdout.splitlines() if line[:4] == ">>> "]
    return {mode: report for mode, _, report in reports}, done.stdout + done.stderr


@pytest.fixture(scope="module")
def eaten(tmp_path_factory):
    return run_script(tmp_path_factory.mktemp("eaten"), SCRIPT)


def test_30_worker_killed_for_lack_of_memory_is_reported_as_such(eaten, synapse_mode):
    reports, output = eaten
    last = reports[synapse_mode]
    assert last.startswith("WorkerCrashed | "), output
    assert "ran out of memory" in last
    assert last.endswith("| True")
    assert "Memory on the node" not in output


HEADLESS = """
import os, signal, subprocess, sys, threading, time
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor

def nap(params, context):
    import time
    open(params["path"], "w").close()
    time.sleep(60)

def answer(params, context):
    return 42

nap._is_action = answer._is_action = True
def kill_head(part, started):
    global killed
    while not os.path.exists(started):
        time.sleep(0.05)
    mine = family(os.getpid())
    for pid, parent, args in processes():
        if part in args and parent in mine:
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()

def processes():
    command = ["ps", "-ww", "-eo", "pid,ppid,args"]
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[1:]:
        pid, parent, args = line.split(None, 2)
        yield int(pid), int(parent), args

def family(root):
    found = {root}
    pairs = [(pid, parent) for pid, parent, _ in processes()]
    while True:
        more = {pid for pid, parent in pairs if parent in found} - found
        if not more:
            return found
        found |= more

# Each mode kills a different part; the cluster's daemon watches both in every mode.
parts = {"job": (RayJobsApiExecutor, "raylet/raylet"), "task": (RayActorExecutor, "gcs_server")}
for mode, (executor_class, part) in parts.items():
    started = os.path.join(sys.argv[1], mode)
    with executor_class() as executor:
        assert executor.execute(answer) == 42
        threading.Thread(target=kill_head, args=(part, started), daemon=True).start()
        try:
            report = f"no error: {executor.run(nap, {'path': started})}"
        except ClusterError as error:
            report = f"ClusterError after {time.monotonic() - killed}: {error}"
        print("\\n>>>", mode, "|", report, "|", executor.execute(answer))
"""


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    directory = tmp_path_factory.mktemp("headless")
    return run_script(directory, HEADLESS, str(directory))


def test_31_calls_fail_at_once_if_the_cluster_crashes_and_a_new_one_is_started(headless, synapse_mode):
    reports, output = headless
    error, _, answer = reports[synapse_mode].rpartition(" | ")
    assert error.startswith("ClusterError after "), output
    assert float(error.split()[2].rstrip(":")) < patience(10)
    assert answer == "42"


@pytest.mark.parametrize("mode", ["remote"])
def test_31_calls_fail_at_once_if_the_backend_crashes_and_a_new_one_is_started(mode):
    options = {"plugin": Path(__file__).parent, "logger": NullLogger()}
    with contextlib.closing(RemoteSession({"host": None, "token_file": None})) as session:
        with session.executor(mode, {}, fresh=False, strict=True, **options) as executor:
            seen: list[int] = []

            def kill_server(event: Event) -> None:
                seen.extend(event.data["parents"])
                os.kill(server_of(seen), signal.SIGKILL)

            started = time.monotonic()
            with pytest.raises(RemoteError, match="cannot be reached"):
                executor.run("lab.workers:SaysWhere", on_event=kill_server)
            assert time.monotonic() - started < patience(20)
        with session.executor(mode, {}, fresh=False, strict=True, **options) as executor:
            parents = executor.execute("lab.workers:Where")["parents"]
            assert server_of(parents) not in seen


@pytest.mark.synapse(num_gpus=3)
def test_32_unavailable_resources_are_reported_at_once_with_the_available_ones(synapse_executor):
    started = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"requested num_gpus=3, but the cluster has 2 GPUs in total \(CPU \d+, GPU 2\)"
    ):
        synapse_executor.execute("echo", {"value": 1})
    assert time.monotonic() - started < patience(10)

"""Rows 30 to 32: crashed workers, crashed clusters, unavailable resources."""

import os
import subprocess
import sys
import time

import pytest

from synapse_runtime.errors import ClusterError, WorkerCrashed
from tests.parity.modes import on_workers
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
def test_30_crashed_worker_is_reported_with_its_exit_and_replaced(synapse_executor, synapse_mode, capfd, how, words):
    with pytest.warns(UserWarning, match="warned"):
        run = synapse_executor.run("lab.workers:Crash", {"how": how})
    assert [event.name for event in run.logs] == ["about to die"]
    assert run.metrics == {"train": {"loss": 0.5}}
    assert [record.getMessage() for record in run.records] == ["record 1"]
    assert [str(warning.message) for warning in run.warnings] == ["warned"]
    assert type(run.error) is WorkerCrashed
    assert words in str(run.error)
    assert run.error.__cause__ is not None
    assert "memory" not in str(run.error)
    assert run.error.details.splitlines()[-50:] == [f"line {number}" for number in range(10, 60)]
    assert capfd.readouterr().out.startswith("line 0\n")
    assert run.pid != os.getpid()
    if how in ("segfault", "abort"):
        note = next(note for note in run.error.__notes__ if note.startswith("Stack of the action:"))
        assert "in die" in note
        assert "synapse_runtime" not in note
        assert "site-packages" not in note
    if synapse_mode == "task" or how == "exit":  # each job has its own process
        assert synapse_executor.execute("echo", {"value": 1}) == 1


SCRIPT = """
import os, sys
from pathlib import Path
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor

def sizes():
    facts = {name: int(rest.split()[0]) for name, _, rest in
             (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())}
    return facts["MemTotal"], facts["MemAvailable"]

total, available = sizes()
os.environ["RAY_memory_usage_threshold"] = str((total - available + 2_000_000) / total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"

def eat(params, context):
    import time
    print("eating", flush=True)
    eaten = []
    for _ in range(200):  # enough even if other tests free memory
        eaten.append(b"x" * 50_000_000)
        time.sleep(0.05)
    return len(eaten)

eat._is_action = True
executor = {"task": RayActorExecutor, "job": RayJobsApiExecutor}[sys.argv[1]]()
with executor:
    run = executor.run(eat)
print()
print(type(run.error).__name__, "|", str(run.error).splitlines()[0], "|", "low on memory" in str(run.error.__cause__))
"""


def test_30_worker_killed_for_lack_of_memory_is_reported_as_such(synapse_mode, tmp_path):
    script = tmp_path / "eat.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(script), synapse_mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(90), env=environment)
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    assert last.startswith("WorkerCrashed | "), done.stdout + done.stderr
    assert "ran out of memory" in last
    assert last.endswith("| True")
    assert "Memory on the node" not in done.stdout


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
executor = {"task": RayActorExecutor, "job": RayJobsApiExecutor}[sys.argv[1]]()
assert executor.execute(answer) == 42

def kill_head():
    global killed
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.05)
    mine = family(os.getpid())
    for pid, parent, args in processes():
        if sys.argv[2] in args and parent in mine:
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

threading.Thread(target=kill_head, daemon=True).start()
try:
    print("no error:", executor.run(nap, {"path": sys.argv[3]}))
except ClusterError as error:
    print("ClusterError after", time.monotonic() - killed, "|", error)
print(executor.execute(answer))
executor.close()
"""


def test_31_calls_fail_at_once_if_the_cluster_crashes_and_a_new_one_is_started(synapse_mode, tmp_path):
    # Each mode kills a different part; the cluster's daemon watches both in every mode.
    part = {"task": "gcs_server", "job": "raylet/raylet"}[synapse_mode]
    script = tmp_path / "kill_head.py"
    script.write_text(HEADLESS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(script), synapse_mode, part, str(tmp_path / "started")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(110), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    error, answer = done.stdout.splitlines()[-2:]
    assert error.startswith("ClusterError after "), done.stdout
    assert float(error.split()[2]) < patience(10)
    assert answer == "42"


@pytest.mark.synapse(num_gpus=3)
def test_32_unavailable_resources_are_reported_at_once_with_the_available_ones(synapse_executor):
    started = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"requested num_gpus=3, but the cluster has 2 GPUs in total \(CPU \d+, GPU 2\)"
    ):
        synapse_executor.execute("echo", {"value": 1})
    assert time.monotonic() - started < patience(10)

"""Tests that the suite profile assigns time and processes to the test file that caused them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest, suite_profile

BUSY = """
    import subprocess, sys, time

    SPIN = "import time\\nwhile time.process_time() < {}: pass"

    def test_child():
        subprocess.run([sys.executable, "-c", SPIN.format(0.6)], check=True)

    def test_itself():
        until = time.process_time() + 0.4
        while time.process_time() < until:
            pass
    """


def test_time_and_processes_are_assigned_to_their_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", suite_profile.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(suite_profile.__file__, pytester.path / "profile_plugin.py")
    (pytester.path / "forks.py").write_text("cpu_used = [0.0]\n")
    pytester.makepyfile(test_busy=BUSY, test_idle="def test_it(): pass")
    turned_off = [f"-pno:{name}" for name in ("synapse", "randomly", "html", "metadata", "asyncio")]
    for processes in ("0", "2"):
        options = ("-p", "profile_plugin", "--suite-profile=profile.json", f"-n{processes}", *turned_off)
        result = pytester.runpytest_subprocess(*options)
        result.assert_outcomes(passed=3)
        profile = json.loads((pytester.path / "profile.json").read_text())
        busy, idle = profile["files"]["test_busy.py"], profile["files"]["test_idle.py"]
        assert busy["cpu"] >= 0.9
        assert busy["wall"] >= 0.9
        assert busy["python"] == 1
        assert idle["cpu"] < 0.5
        assert idle["python"] == 0
        result.stdout.fnmatch_lines(["*where the time went*", "*wall*cpu*cluster*", "* all", "*  test_busy.py"])


def test_processes_of_other_runs_on_the_machine_are_not_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(suite_profile.RUN, "mine")
    pids = []
    for run in ("mine", "another"):
        # The shell exits, so that they have no relation to this process.
        env = {**os.environ, suite_profile.VARIABLE: f"{run} test_{run}.py"}
        done = subprocess.run(
            ["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"], env=env, capture_output=True, check=True
        )
        pids.append(int(done.stdout))
    watch = suite_profile.ProcessWatch()
    try:
        watch._sample()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert "test_mine.py" in watch.files
    assert "test_another.py" not in watch.files


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["/x/ray/core/src/ray/gcs/gcs_server", "--port=1"], "cluster"),
        ([sys.executable, "-m", "synapse_runtime.executors.ray.job_supervisor", "f"], "job"),
        ([sys.executable, "/x/ray/_private/workers/default_worker.py"], "worker"),
        (["ray::WarmWorker"], "worker"),
        ([sys.executable, "-B", "-m", "pytest", "-q"], "session"),
        ([sys.executable, "-m", "synapse_runtime", "plugin", "run"], "command"),
        ([sys.executable, "/x/bin/synapse", "doctor"], "command"),
        ([sys.executable, "-c", "pass"], "python"),
        ([sys.executable, "-m", "synapse_runtime.executors.ray.cluster.daemon"], ""),
        (["sleep", "1"], ""),
    ],
)
def test_process_kind_is_recognized_by_command_line(command, kind):
    assert suite_profile.kind_of(command) == kind


def test_files_named_by_the_schedule_exist():
    directory = Path(conftest.__file__).parent
    assert [name for name in (*conftest._LONGEST, *conftest._ALONE) if not (directory / name).is_file()] == []

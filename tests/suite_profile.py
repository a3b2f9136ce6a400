"""Profile the test suite: wall and CPU time of each test file, and the processes that it starts.

`pytest --suite-profile=FILE` watches all processes of the run, writes the profile to FILE as JSON, and prints the
slowest files; `make test` does so. A process belongs to the test file that was running when it, or its parent, started.
Other runs on the machine are not counted.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forks

# Inherited by every process that a test starts, to assign its CPU time and kind to the test's file: the id of the run,
# and the file.
VARIABLE = "TEST_FILE_RUNNING"
RUN = "TEST_RUN"  # the id of the run, for the processes of pytest-xdist
KINDS = ("cluster", "session", "command", "job", "worker", "python", "fork")
_INTERVAL = 0.1  # seconds between two samples; no Python process is shorter
# Long-lived processes, such as those of clusters, are sampled once a second, as sampling takes time too.
_YOUNG_SECONDS, _LONG_INTERVAL = 3.0, 1.0
_SHOWN = 15
_ITSELF = "(pytest itself)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--suite-profile", metavar="FILE", help="profile the suite: write all files to FILE, print the slowest"
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--suite-profile")
    if path and not hasattr(config, "workerinput"):
        os.environ[RUN] = uuid.uuid4().hex
        config.pluginmanager.register(SuiteProfile(Path(path)), "suite-profile")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    os.environ[VARIABLE] = f"{os.environ.get(RUN, '')} {item.nodeid.partition('::')[0]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to each report the CPU time and forks of this process since the last report; xdist forwards it."""
    report = yield
    cpu, number = time.process_time() + forks.totals.cpu, forks.totals.number
    report.spent = {"cpu": cpu - _last["cpu"], "fork": number - _last["fork"]}  # type: ignore[attr-defined]
    _last.update(cpu=cpu, fork=number)
    return report


_last: dict[str, float] = {"cpu": time.process_time(), "fork": 0}


class SuiteProfile:
    """Watches the processes of the run from a thread, and collects the durations of its tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wall: defaultdict[str, float] = defaultdict(float)
        # CPU time and number of pytest's own processes and their forks.
        self._cpu: defaultdict[str, float] = defaultdict(float)
        self._forks: defaultdict[str, int] = defaultdict(int)
        self._processes = ProcessWatch()
        self._started = time.monotonic()
        self._cpu_before = _machine_cpu()

    def pytest_sessionstart(self) -> None:
        self._processes.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self._wall[file] += report.duration
        spent = getattr(report, "spent", None) or {"cpu": 0, "fork": 0}
        self._cpu[file] += spent["cpu"]
        self._forks[file] += spent["fork"]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self._processes.stop()
        profile = self.profile()
        self._path.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
        terminalreporter.section("where the time went")
        for line in table(profile):
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"all files: {self._path}")

    def profile(self) -> dict[str, Any]:
        """Return the profile: totals and a row for each test file, in seconds and numbers of processes."""
        # The time in reports was also measured for pytest's own processes, so subtract it there.
        own = self._cpu | {_ITSELF: -sum(self._cpu.values())}
        files = {
            name: {"wall": round(self._wall[name], 2), "cpu": round(own.get(name, 0) + self._processes.cpu_of(name), 2)}
            | {"fork": self._forks[name]}
            | self._processes.kinds_of(name)
            for name in {*self._wall, *self._processes.files}
        }
        total = {
            "wall": round(time.monotonic() - self._started, 2),
            "cpu": round(sum(row["cpu"] for row in files.values()), 2),
            "machine_cpu": round(_machine_cpu() - self._cpu_before, 2),
        } | {kind: sum(row[kind] for row in files.values()) for kind in KINDS}
        return {"total": total, "files": dict(sorted(files.items(), key=lambda item: -item[1]["cpu"]))}


class ProcessWatch:
    """Samples the descendants of this process, and processes with a test file's name in their environment."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._seen: dict[tuple[int, float], _Process] = {}
        self._ignored: set[int] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="suite-profile")

    def start(self) -> None:
        self._ignored = set(psutil.pids()) - {os.getpid()}
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._sample()
        for seen in self._seen.values():
            if not seen.gone:
                seen.measure()

    def cpu_of(self, file: str) -> float:
        """Return the seconds of CPU time that the processes of a test file used."""
        return sum(seen.cpu for seen in self._seen.values() if seen.file == file)

    def kinds_of(self, file: str) -> dict[str, int]:
        """Return the number of processes of each kind that a test file started."""
        counts = Counter(seen.kind for seen in self._seen.values() if seen.file == file)
        return {kind: counts[kind] for kind in KINDS if kind != "fork"}

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        alive: dict[int, _Process] = {seen.process.pid: seen for seen in self._seen.values() if not seen.gone}
        for pid in psutil.pids():
            if pid not in alive and pid not in self._ignored:
                self._add(pid, alive)
        for seen in alive.values():
            if seen.is_due():
                seen.measure()

    def _add(self, pid: int, alive: dict[int, _Process]) -> None:
        try:
            process = psutil.Process(pid)
            parent = alive.get(process.ppid())
            run, _, file = process.environ().get(VARIABLE, "").partition(" ")
            if run != os.environ[RUN]:
                file = parent.file if parent else ""
            if not file and pid != os.getpid() and parent is None:
                self._ignored.add(pid)
                return
            if kind_of(process.cmdline()) == "fork":  # test reports assign forks to their files
                file = _ITSELF
            seen = self._seen[pid, process.create_time()] = _Process(process, file or _ITSELF)
        except (psutil.Error, OSError):
            return
        alive[pid] = seen
        self.files.add(seen.file)


class _Process:
    """A process: its test file, its kind, and the CPU time that it used."""

    def __init__(self, process: psutil.Process, file: str) -> None:
        self.process, self.file = process, file
        self.kind = ""
        self.cpu = 0.0
        self.gone = False
        self._born = time.monotonic()
        self._measured = 0.0

    def is_due(self) -> bool:
        """Whether to measure it now."""
        now = time.monotonic()
        return now - self._born < _YOUNG_SECONDS or now - self._measured >= _LONG_INTERVAL

    def measure(self) -> None:
        self._measured = time.monotonic()
        try:
            times = self.process.cpu_times()
            if self._measured - self._born < 1:  # a fork first has the command line of its parent
                self.kind = kind_of(self.process.cmdline()) or self.kind
        except psutil.Error:
            self.gone = True
            return
        self.cpu = times.user + times.system


def kind_of(command: list[str]) -> str:
    """Return which of KINDS a process is, by its command line; empty if none."""
    line = " ".join(command[:8])
    program = os.path.basename(command[0]) if command else ""
    if program == "gcs_server":
        return "cluster"
    if "tests/forks.py" in line:
        return "fork"
    if "executors.ray.job_supervisor" in line:
        return "job"
    if "default_worker.py" in line or line.startswith("ray::"):
        return "worker"
    if not program.startswith(("python", "synapse", "pytest")):
        return ""
    if "synapse_runtime.executors" in line or "ray/dashboard" in line or "ray/_private" in line:
        return ""  # part of a cluster
    if " -m pytest" in line or "/pytest" in line:
        return "session"
    if " -m synapse_runtime" in line or "bin/synapse" in line:
        return "command"
    return "python"


def table(profile: dict[str, Any]) -> list[str]:
    """Return the rows to print: the total, and the files that used most CPU time."""
    head = f"{'wall':>7} {'cpu':>7} " + " ".join(f"{kind:>8}" for kind in KINDS)
    rows = [("all", profile["total"]), *list(profile["files"].items())[:_SHOWN]]
    return [head] + [
        f"{row['wall']:7.1f} {row['cpu']:7.1f} " + " ".join(f"{row[kind]:8}" for kind in KINDS) + f"  {name}"
        for name, row in rows
    ]


def _machine_cpu() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + times.nice

"""Real pytest sessions in small projects, and their reports, made comparable between modes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.forks import fork_server
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment

_WHERE_IT_RAN = re.compile(r"\bran in (local|task|job|remote) mode\b")
_DIFFERENT_EACH_TIME = (
    (re.compile(r"\b0x[0-9a-f]{6,}"), "0x…"),
    (re.compile(r"<synapse_runtime\.executors\.[\w.]+Executor object"), "<the executor"),
    (re.compile(r"\brun-[0-9a-f]{16}\b"), "run-…"),
    (re.compile(r"Previous line repeated \d+ more times"), "Previous line repeated … more times"),
    (re.compile(r"\bpid[ =:]+\d+"), "pid …"),
    (re.compile(r"\b\d+\.\d+ ?s(econds)?\b"), "… s"),
)
_TEST = re.compile(r"^_{2,} (\S.*\S) _{2,}$")
_SECTION = re.compile(r"^=+ (.+?) =+$")
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED) (\S+)")


@dataclass(frozen=True)
class Session:
    """A finished session.

    Attributes:
        status: Its exit status.
        output: Everything that it printed.
    """

    status: int
    output: str

    def section(self, title: str) -> list[str]:
        """Return the lines below a title such as `FAILURES`."""
        found: list[str] = []
        inside = False
        for line in self.output.splitlines():
            match = _SECTION.match(line)
            if match:
                inside = match[1] == title
            elif inside:
                found.append(line)
        return found

    def reports(self, title: str = "FAILURES") -> dict[str, str]:
        """Return the report of each test in a section, by its id."""
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in self.section(title):
            match = _TEST.match(line)
            if match:
                lines = found[match[1]] = []
            else:
                lines.append(line)
        return {test: "\n".join(lines) for test, lines in found.items()}

    def summary(self) -> dict[str, str]:
        """Return the line of each test in the short summary, by its id without the file."""
        found = {}
        for line in self.section("short test summary info"):
            match = _OUTCOME.match(line)
            if match:
                found[match[2].rpartition("::")[2]] = line
        return found


def comparable(text: str) -> str:
    """Return a report without the line that shows where the action ran and without what differs in every run."""
    text = "\n".join(line for line in text.splitlines() if not _WHERE_IT_RAN.search(line))
    for pattern, replacement in _DIFFERENT_EACH_TIME:
        text = pattern.sub(replacement, text)
    return text


def write(project: Path, files: dict[str, str]) -> Path:
    """Write a project's files; return its directory."""
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return project


def run_pytest(project: Path, *arguments: str, env: dict[str, str], timeout: float = 120) -> Session:
    """Run pytest in a separate process, independent of the session that runs this."""
    done = run_python(project, "-m", "pytest", *arguments, env=env, timeout=timeout)
    return Session(done.returncode, done.stdout)


def run_python(
    directory: Path, *arguments: str, env: dict[str, str], timeout: float = 120, starts_python: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a directory, with standard output and standard error combined.

    Args:
        directory: The working directory.
        *arguments: The arguments of `python`.
        env: Variables to add to an environment that is independent of the session that runs these tests.
        timeout: The program is killed after this many seconds.
        starts_python: Whether to start a new Python; otherwise the program runs in a fork of `tests/forks.py`.
    """
    env = session_environment() | {"COLUMNS": "300"} | env
    if not starts_python:
        return fork_server(env).run(
            ["-B", *arguments], cwd=directory, env=env, timeout=patience(timeout), stderr_to_stdout=True
        )
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(timeout),
    )

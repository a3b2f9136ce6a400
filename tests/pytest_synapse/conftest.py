"""Creates small projects, and runs real pytest sessions in them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from tests.forks import ALONE, fork_server
from tests.patience import patience

_NOT_INHERITED = ("SYNAPSE_", "RAY_", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST", "PYTEST_DISABLE", "COV_CORE")

CONFIG = """\
code: demo
env: {LEVEL: config, SHARED: config}
actions:
  double: {entrypoint: "plugin.actions:Double"}
  show_env: {entrypoint: "plugin.actions:show_env"}
  nap: {entrypoint: "plugin.actions:nap"}
  lock: {entrypoint: "plugin.actions:lock"}
"""

ACTIONS = """\
import os
import threading
import time

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


class DoubleParams(BaseModel):
    number: int = 1


class Double(BaseAction[DoubleParams]):
    def execute(self):
        return 2 * self.params.number


@action
def show_env(params, context):
    return {name: [context.env.get(name), os.environ.get(name)] for name in params["names"]}


@action
def nap(params, context):
    time.sleep(params["seconds"])
    return "slept"


@action
def lock(params, context):
    return {"model": threading.Lock()}
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "other_plugin(name, tested, modes): the entry of a test in docs/compatibility.md"
    )


class Project:
    """A project in a temporary directory with its own `pytest.ini`; runs pytest sessions in it.

    Attributes:
        starts_python: Whether each session starts a new Python, for tests about imports. By default sessions are forks
            of a process that has imported pytest.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.starts_python = False
        self.path = pytester.path
        self.write("pytest.ini", "[pytest]\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file and create its parent directories."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    def ini(self, text: str) -> Path:
        """Write `pytest.ini`."""
        return self.write("pytest.ini", "[pytest]\n" + dedent(text))

    def plugin(self, directory: str = "demo", config: str = CONFIG, actions: str = ACTIONS) -> Path:
        """Write a plugin with a package `plugin` into a subdirectory of the project."""
        self.write(f"{directory}/config.yaml", config)
        self.write(f"{directory}/plugin/__init__.py", "")
        self.write(f"{directory}/plugin/actions.py", actions)
        return self.path / directory

    def test(self, text: str, name: str = "demo/tests/test_it.py") -> Path:
        """Write a test file, by default into the plugin's tests."""
        return self.write(name, "import pytest\n" + dedent(text))

    def pytest(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a separate process, in the current directory, which is the project's."""
        if self.starts_python:
            return self._pytester.runpytest_subprocess(*arguments, timeout=patience(60))
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path}
        command = ["-m", "pytest", f"--basetemp={self.path / 'runpytest'}", *arguments]
        started = time.monotonic()
        done = fork_server(env).run(command, cwd=os.getcwd(), env=env, timeout=patience(60))
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        lines = done.stdout.splitlines(), done.stderr.splitlines()
        return pytest.RunResult(done.returncode, *map(list, lines), time.monotonic() - started)

    def ids(self, *arguments: str) -> list[str]:
        """Return the ids of the tests that pytest collects, without their files."""
        result = self.pytest("--collect-only", "-q", *arguments)
        assert result.ret == pytest.ExitCode.OK
        return [line.partition("::")[2] for line in result.outlines if "::" in line]

    def header(self, *arguments: str) -> str:
        """Return the Synapse line of the session's header."""
        (line,) = (line for line in self.pytest("--collect-only", *arguments).outlines if line.startswith("synapse:"))
        return line

    def usage_error(self, *arguments: str) -> str:
        """Return the text of the usage error with which the session exits."""
        result = self.pytest(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "Traceback" not in result.stderr.str()
        (line,) = (line for line in result.errlines if line.startswith("ERROR: "))
        return line


def session_environment() -> dict[str, str]:
    """Return an environment that is independent of the session that runs these tests."""
    kept = {name: value for name, value in os.environ.items() if not not_inherited(name)}
    return kept | {"PYTEST_ADDOPTS": ALONE}


def not_inherited(variable: str) -> bool:
    """Return whether a variable belongs to the session that runs these tests, not to those that they run."""
    return variable.startswith(_NOT_INHERITED)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project; its sessions are independent of the one that runs this test."""
    for name in filter(not_inherited, os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_ADDOPTS", ALONE)
    return Project(pytester)


@pytest.fixture
def demo(project: Project) -> Project:
    """A project with one plugin, in `demo/`."""
    project.plugin()
    return project

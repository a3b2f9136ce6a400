"""Real processes for tests: the `synapse` command, programs on a terminal, and Ray clusters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect

from synapse_runtime.executors.ray.cluster.control_socket import (
    LOOPBACK_ENV,
    ClusterOptions,
    ControlClient,
    directory_lock,
    start_daemon,
    stop_cluster,
)
from synapse_runtime.executors.ray.cluster.session_scope import new_directory
from tests.forks import fork_server
from tests.patience import patience, within

COMMAND = [sys.executable, "-m", "synapse_runtime"]
SCRIPT = str(Path(sys.executable).with_name("synapse"))
PLUGIN_RUN = ("plugin", "run")
MARK = "SYNAPSE_TEST_MARK"
_NOT_INHERITED = ("RAY_", "SYNAPSE_", "PYTEST_", "COV_CORE_", "COLUMNS", "TMPDIR", "PYTHONBREAKPOINT")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def result(self) -> Any:
        """The output of `--json`."""
        return json.loads(self.stdout)

    @property
    def shown_result(self) -> Any:
        """The result printed below the heading `Result of …`."""
        return json.loads(self.stdout.partition("Result of ")[2].partition("\n")[2])


@dataclass
class Synapse:
    """The `synapse` command in a directory, with its own temporary directory and a marker in its environment."""

    cwd: Path
    temp: Path
    env: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(
        self, *arguments: str, cwd: Path | None = None, command: list[str] | None = None, **env: str
    ) -> Finished:
        """Run the command, or another one, and wait for it. Forks a process that has imported the command already."""
        started = time.monotonic()
        environment = self.environment(**env)
        if command is None and not any(name.startswith("PYTHON") for name in env):  # Python reads these when it starts
            done = fork_server(environment).run(
                ["-m", "synapse_runtime", *arguments], cwd=cwd or self.cwd, env=environment, timeout=patience(90)
            )
        else:
            done = subprocess.run(
                [*(command or COMMAND), *arguments],
                cwd=cwd or self.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patience(90),
            )
        return Finished(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def run(self, *arguments: str, cwd: Path | None = None, **env: str) -> Finished:
        """Run `synapse plugin run …`."""
        return self("plugin", "run", *arguments, cwd=cwd, **env)

    def job(self, *arguments: str, cwd: Path | None = None, **env: str) -> Finished:
        """Run `synapse job …`."""
        return self("job", *arguments, cwd=cwd, **env)

    @contextlib.contextmanager
    def started(
        self, *arguments: str, command: tuple[str, ...] = PLUGIN_RUN, **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start `synapse plugin run …`, or another subcommand, without waiting for it."""
        process = subprocess.Popen(
            [*COMMAND, *command, *arguments],
            cwd=self.cwd,
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        try:
            with process:
                yield process
        finally:
            if process.poll() is None:
                process.kill()

    @contextlib.contextmanager
    def on_terminal(
        self, *arguments: str, command: tuple[str, ...] = PLUGIN_RUN, **env: str
    ) -> Iterator[pexpect.spawn]:
        """Start `synapse plugin run …`, or another subcommand, on a terminal of 100 columns."""
        with terminal([*COMMAND, *command, *arguments], self.cwd, self.environment(**env)) as child:
            yield child

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of the command: that of this process, without variables of this test run."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        return kept | {"TMPDIR": str(self.temp), MARK: self.mark} | self.env | more

    def leftovers(self) -> list[str]:
        """Return the processes of the command, and the files in its temporary directory, that remain after 10 s."""
        found: list[str] = []

        def nothing_is_left() -> bool:
            found[:] = [command_of(pid) for pid in processes_with(self.mark)]
            for directory, directories, files in os.walk(self.temp):  # tolerates files that vanish meanwhile
                found.extend(os.path.join(directory, name) for name in (*directories, *files))
            return not found

        within(10, nothing_is_left)
        return found


def assert_debug_shows_more(debug: Finished, no_debug: Finished) -> None:
    """Check the output of the action `whisper`, which logs and fails with a two-line error, in both debug modes."""
    assert (debug.status, no_debug.status) == (1, 1)
    shown = [line.partition("] ")[2] for line in debug.stdout.splitlines()]
    assert shown == ["DEBUG seen_in detail=1", "DEBUG a debug message", "DEBUG a debug record", "an info record"]
    assert 'raise ValueError("first line' in debug.stderr
    assert debug.stderr.endswith("\nerror: whisper failed: ValueError: first line\n  second line\n")
    assert [line.partition("] ")[2] for line in no_debug.stdout.splitlines()] == ["an info record"]
    errors = [line for line in no_debug.stderr.splitlines() if not line.startswith("cluster: ")]
    assert errors == ["error: whisper failed: ValueError: first line; second line"]


@contextlib.contextmanager
def synapse_in(directory: Path, **env: str) -> Iterator[Synapse]:
    """Yield the command in this directory, with a temporary directory whose path is short."""
    with tempfile.TemporaryDirectory(prefix="s") as temp:
        yield Synapse(directory, Path(temp), env)


@contextlib.contextmanager
def terminal(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[pexpect.spawn]:
    """Run a program on a terminal of 100 columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(cwd),
            env=env | {"TERM": "xterm-256color"},
            dimensions=(40, 100),
            encoding="utf-8",
            timeout=patience(20),
        )
    try:
        yield child
    finally:
        child.close(force=True)


def status_of(child: pexpect.spawn) -> int:
    """Wait until a program on a terminal has exited and return its exit status."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus is not None, f"ended by signal {child.signalstatus}"
    return child.exitstatus


def interrupt(process: subprocess.Popen[str]) -> None:
    """Send SIGINT, as Ctrl-C does."""
    process.send_signal(signal.SIGINT)


def processes_with(mark: str) -> list[int]:
    """Return the processes that have this marker in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def cluster(**resources: int) -> Iterator[dict[str, str]]:
    """Run a Ray cluster with these resources in its own directory, and stop it at the end.

    Yields:
        `address` and `dashboard`, and the environment variables with the token that it requires.
    """
    directory = Path(new_directory())
    with directory_lock(directory):
        start_daemon(directory, ClusterOptions(parent_pid=os.getpid(), **resources), uuid.uuid4().hex * 2)
    try:
        with ControlClient(directory) as client:
            ready = client.request("dashboard", timeout=patience(60))
        # With this variable, Ray's own programs use the loopback address, too.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ready["token"]} | LOOPBACK_ENV
        yield {"address": ready["address"], "dashboard": ready["dashboard"]} | token
    finally:
        stop_cluster(directory)

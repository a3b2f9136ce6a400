"""A server in a child process of this one, which ends with it: see `synapse_runtime.server.embedded`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synapse_runtime.errors import RemoteError

__all__ = ["EmbeddedServer", "serve_embedded"]

_STOP_SECONDS = 20.0
# Variables of the current test; those that make every Python process write its own coverage data; and those with which
# Python ends at the first warning, or prints to its output. The caller's filters of warnings are sent with each call.
_NOT_FOR_SERVER = (
    *("PYTEST_", "COV_CORE_", "COVERAGE_PROCESS_"),
    *("PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE"),
)


@dataclass(frozen=True)
class EmbeddedServer:
    """A server that runs in a child process.

    Attributes:
        host: Its URL.
        token: A token that may do everything.
        pid: Its process.
        data: Its data directory, which is deleted with it.
        process: Its process, which this one has started.
    """

    host: str
    token: str = field(repr=False)
    pid: int
    data: str
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None


@contextlib.contextmanager
def serve_embedded(
    directories: Sequence[Path | str] = (),
    *,
    run_in: str = "worker",
    ray_address: str | None = None,
    concurrency: int = 0,
    runs_directories: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Iterator[EmbeddedServer]:
    """Run a server in a child process while the block runs.

    Args:
        directories: Plugin directories that are read live.
        run_in: Where jobs run: `worker`, `task` or `job`.
        ray_address: The cluster's address, for the last two.
        concurrency: How many jobs run at a time; 0 for as many as there are CPUs.
        runs_directories: Whether a call may name any plugin directory of this machine.
        variables: Its environment; by default that of this process.

    Raises:
        RemoteError: It did not start.
    """
    command = [sys.executable, "-P", "-m", "synapse_runtime.server.embedded", "--run-in", run_in]
    command += ["--concurrency", str(concurrency), *(["--ray-address", ray_address] if ray_address else [])]
    command += ["--parent", str(os.getpid()), *(["--runs-directories"] if runs_directories else [])]
    command += ["--", *(os.fspath(Path(directory).absolute()) for directory in directories)]
    given = os.environ if variables is None else variables
    environment = {name: value for name, value in given.items() if not name.startswith(_NOT_FOR_SERVER)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    data = None
    try:
        line = process.stdout.readline()
        if not line:
            raise RemoteError(f"the embedded server did not start: it exited with status {process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(f"the embedded server did not start: {answer['error']}")
        data = answer["data"]
        yield EmbeddedServer(**answer, process=process)
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if data is not None:  # if it was killed
            shutil.rmtree(data, ignore_errors=True)

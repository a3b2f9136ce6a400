"""Run Python programs in separate processes without waiting for their imports.

A server process imports what programs need once, and forks for each program. A fork runs its program as `python` does:
with its own arguments, environment, working directory and output, and with normal interpreter exit. But `sys.modules`
already contains those imports, and `/proc` shows the server's command line and environment. Therefore tests about
imports, and tests that search `/proc` for a program, start Python directly.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.patience import patience

_HEADER = struct.Struct("!I")
_START_SECONDS = 60.0
# Variables that Python reads at startup, before any of our code runs.
_READ_AT_START = tuple(
    f"PYTHON{name}" for name in ("DEVMODE", "WARNINGS", "HASHSEED", "UNBUFFERED", "HOME", "SAFEPATH", "OPTIMIZE")
)


# pytest plugins that are disabled in the sessions that tests run: one shuffles tests, one starts processes.
_TURNED_OFF = ("anyio", "asyncio", "benchmark", "html", "hypothesispytest", "metadata", "randomly", "rerunfailures")
ALONE = " ".join(f"-pno:{name}" for name in _TURNED_OFF)
_IMPORTED = (
    *(
        "pytest_synapse.fixtures",
        "pytest_synapse.reporting",
        "pytest_synapse.run_reporting",
        "pytest_synapse.module_import",
    ),
    *("synapse_runtime.executors.local", "synapse_runtime.runner", "httpx", "stamina"),
    *("synapse_runtime.cli.app", "synapse_runtime.cli.run"),
)
_IMPORTED_WITH_RAY = (
    *("ray", "ray.job_submission", "numpy", "synapse_runtime.executors.ray"),
    *("synapse_runtime.executors.ray.task", "synapse_runtime.executors.ray.job"),
)


def fork_server(env: Mapping[str, str], *, ray: bool | None = None) -> ForkServer:
    """Return this process's server for programs in this environment; it starts on first use and ends with this process.

    Its forks have imported pytest, the runtime and its command.

    Args:
        env: The environment.
        ray: Whether they have imported Ray, too; by default if the environment names a cluster.
    """
    # Ray reads its settings when it is imported.
    settings = {name: value for name, value in env.items() if name.startswith("RAY_") and name != "RAY_ADDRESS"}
    with _starting:
        return _server(tuple(sorted(settings.items())), bool(env.get("RAY_ADDRESS")) if ray is None else ray)


_starting = threading.Lock()  # `functools.cache` alone might start a server for each of several threads


@functools.cache
def _server(settings: tuple[tuple[str, str], ...], ray: bool) -> ForkServer:
    server = new_server(dict(settings), ray=ray)
    atexit.register(server.close)
    return server


def new_server(settings: Mapping[str, str], *, ray: bool, prefix: Sequence[str] = ()) -> ForkServer:
    """Start a server like those of `fork_server`; the caller closes it."""
    modules = (*_IMPORTED, *(_IMPORTED_WITH_RAY if ray else ()))
    return ForkServer(["-m", "pytest", "--collect-only", "-q", *ALONE.split()], modules, settings, prefix)


class ForkServer:
    """A server process and its forks. It exits together with the process that started it.

    Args:
        warm_up: A program, in the form of `run`, that runs in the server, so that its imports are done in the forks.
        modules: Further modules to import.
        settings: Environment variables of the server, in addition to those of this process.
        prefix: A command that runs the server, such as one that enters namespaces.
    """

    def __init__(
        self, warm_up: Sequence[str], modules: Sequence[str], settings: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        self._ours, theirs = socket.socketpair()
        self._lock = threading.Lock()
        plan = json.dumps({"warm_up": list(warm_up), "modules": list(modules)})
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-B", __file__, str(theirs.fileno()), plan],
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """Stop the server and wait until it has exited."""
        self._ours.close()
        self._process.wait(timeout=patience(30))

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | os.PathLike[str],
        env: Mapping[str, str],
        timeout: float,
        stderr_to_stdout: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program until it exits.

        Args:
            arguments: The arguments of `python`: `-m MODULE …`, `-c CODE …` or `FILE …`.
            cwd: Its working directory.
            env: Its complete environment.
            timeout: Seconds after which it is killed and `subprocess.TimeoutExpired` is raised.
            stderr_to_stdout: Write standard error to standard output.
        """
        for name in _READ_AT_START:
            assert env.get(name) == os.environ.get(name), f"{name} is read when Python starts: start Python directly"
        request = json.dumps({"arguments": list(arguments), "cwd": os.fspath(cwd), "env": dict(env)}).encode()
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            open(os.devnull, "rb") as nothing,
        ):
            outputs = (out.fileno(), out.fileno() if stderr_to_stdout else err.fileno())
            ours, theirs = socket.socketpair()
            with ours:
                with theirs, self._lock:
                    socket.send_fds(
                        self._ours, [_HEADER.pack(len(request))], [nothing.fileno(), *outputs, theirs.fileno()]
                    )
                    self._ours.sendall(request)
                ended = self._wait(ours, arguments, timeout)
            streams = []
            for file in (out, err):
                file.seek(0)
                streams.append(file.read().decode("utf-8", errors="replace"))
        totals.number += 1
        totals.cpu += ended["cpu"]
        return subprocess.CompletedProcess(list(arguments), ended["status"], *streams)

    def _wait(self, connection: socket.socket, arguments: Sequence[str], timeout: float) -> dict[str, Any]:
        connection.settimeout(patience(_START_SECONDS))
        with connection.makefile("r") as replies:
            line = replies.readline()
            if not line:
                raise RuntimeError(f"the fork server exited with status {self._process.wait(timeout=30)}")
            pid = json.loads(line)["pid"]
            connection.settimeout(timeout)
            try:
                ended: dict[str, Any] = json.loads(replies.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout) from None
        return ended


@dataclass
class Totals:
    """The number of this process's forks, and the seconds of CPU time that they used."""

    number: int = 0
    cpu: float = 0.0


totals = Totals()


def serve(connection: socket.socket, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Fork for each request, and return the request in the fork; return None when the client closes the connection."""
    if plan["warm_up"]:
        _warm_up(plan["warm_up"])
    for name in plan["modules"]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that garbage collection in a fork does not write to memory shared with the server
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes that wait for programs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest handles Ctrl-C, and closes the connection
    while True:
        header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 4)
        if len(header) < _HEADER.size:
            return None
        request = json.loads(connection.recv(_HEADER.unpack(header)[0], socket.MSG_WAITALL))
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid:
                _report(pid, descriptors[3])
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(descriptors[3])
            for number, descriptor in enumerate(descriptors[:3]):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return dict(request)
        for descriptor in descriptors:
            os.close(descriptor)


def _warm_up(program: Sequence[str]) -> None:
    """Run a program for its imports, and restore the state of the process."""
    before = os.getcwd(), dict(os.environ), list(sys.path)
    with tempfile.TemporaryDirectory() as empty:
        with contextlib.suppress(SystemExit):
            become({"arguments": list(program), "cwd": empty, "env": dict(os.environ)})
        os.chdir(before[0])
    os.environ.clear()
    os.environ.update(before[1])
    sys.path[:] = before[2]


def _report(pid: int, descriptor: int) -> None:
    """Send the process id, wait for the process, send its exit status, and exit."""
    # The client may have stopped waiting.
    with contextlib.suppress(BrokenPipeError), open(descriptor, "w", buffering=1) as out:
        out.write(json.dumps({"pid": pid}) + "\n")
        _, status, usage = os.wait4(pid, 0)
        out.write(
            json.dumps({"status": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}) + "\n"
        )
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Run the requested program as `python` does."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    tempfile.tempdir = None  # recompute it from TMPDIR
    arguments = request["arguments"]
    if arguments[0] == "-B":
        sys.dont_write_bytecode = True
        arguments = arguments[1:]
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    match arguments:
        case ["-m", module, *rest]:
            sys.path[:0] = [os.getcwd(), *path]
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.path[:0] = ["", *path]
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [file, *rest]:
            sys.path[:0] = [str(Path(file).resolve().parent), *path]
            sys.argv = [file, *rest]
            runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # the directory of this file
    request = serve(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))
    if request is not None:
        become(request)

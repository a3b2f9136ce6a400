"""The processes of runs, as the server sees them: forks of one that has imported what they need."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

_READ_BYTES = 1 << 18
_MESSAGE_BYTES = 64
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.005


class ProcessTemplate:
    """A process that forks those of runs, in an eighth of the time of starting them; see `run_process`.

    It is started when it is needed, and again if it has died.

    Args:
        environment: The environment of runs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def prepare(self) -> None:
        """Start it."""
        with self._lock:
            self._connected()

    def start(self) -> RunProcess:
        """Start the process of a run."""
        stdin, stdout = os.pipe(), os.pipe()
        try:
            with self._lock:
                pid, template = self._fork(stdin[0], stdout[1])
        except BaseException:
            os.close(stdin[1])
            os.close(stdout[0])
            raise
        finally:
            os.close(stdin[0])
            os.close(stdout[1])
        return RunProcess(self, pid, template, stdin[1], stdout[0])

    def poll(self, pid: int, template: int) -> int | None:
        """Return the exit status of a process, None while it runs.

        Its id is not given to another process until then.

        Args:
            pid: Its id.
            template: The id of the process that has forked it.
        """
        with self._lock:
            if self._process is None or self._process.pid != template:
                return None if os.path.exists(f"/proc/{pid}") else -signal.SIGKILL
            try:
                answer = self._request(b"poll %d" % pid)
            except ConnectionError:
                return None if os.path.exists(f"/proc/{pid}") else -signal.SIGKILL
        return None if answer == b"running" else int(answer)

    def close(self) -> None:
        """End it. The processes of runs end with the pipes to them."""
        with self._lock:
            self._end()

    def _fork(self, stdin: int, stdout: int) -> tuple[int, int]:
        for is_last in (False, True):
            channel, process = self._connected()
            try:
                socket.send_fds(channel, [b"fork"], [stdin, stdout])
                return int(self._received(channel)), process.pid
            except ConnectionError:
                self._end()
                if is_last:
                    raise
        raise AssertionError

    def _request(self, message: bytes) -> bytes:
        assert self._channel is not None
        self._channel.send(message)
        return self._received(self._channel)

    def _received(self, channel: socket.socket) -> bytes:
        answer = channel.recv(_MESSAGE_BYTES)
        if not answer:
            raise ConnectionError("the template of run processes has ended")
        return answer

    def _connected(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        if self._process is None or self._channel is None:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with there:
                self._process = subprocess.Popen(
                    # -P: the working directory is not on the import path
                    [sys.executable, "-P", "-m", "synapse_runtime.server.run_process"],
                    stdin=there.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,
                )
            self._channel = here
        return self._channel, self._process

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._channel = None


class RunProcess:
    """The process of one run. It leads a process group of its own.

    Args:
        owner: The template that it is a fork of.
        pid: Its id.
        template: The id of the process that has forked it.
        stdin: The pipe that it reads from.
        stdout: The pipe that it writes to.
    """

    def __init__(self, owner: ProcessTemplate, pid: int, template: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.is_stopped = False
        self._owner = owner
        self._template = template
        self._stdin: int | None = stdin
        self._stdout = stdout
        self._status: int | None = None
        self._lock = threading.Lock()

    def send(self, call: Mapping[str, Any]) -> None:
        """Send the call."""
        view = memoryview(json.dumps(call).encode() + b"\n")
        with self._lock, contextlib.suppress(BrokenPipeError):
            while view and self._stdin is not None:
                view = view[os.write(self._stdin, view) :]

    def stop(self) -> None:
        """Ask it to stop the action. It ends at once if it has no call."""
        with self._lock:
            self.is_stopped = True
            if self._stdin is not None:
                os.close(self._stdin)
                self._stdin = None

    def frames(self, idle_seconds: float) -> Iterator[dict[str, Any] | None]:
        """Yield what it reports, until it has ended; None whenever it has reported nothing for a while."""
        pending: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            is_idle = False
            while True:
                if not selector.select(None if is_idle else idle_seconds):
                    is_idle = True
                    yield None
                    continue
                is_idle = False
                data = os.read(self._stdout, _READ_BYTES)
                if not data:
                    return
                *lines, rest = data.split(b"\n")
                if lines:
                    lines[0] = b"".join(pending) + lines[0]
                    pending.clear()
                pending.append(rest)
                for line in lines:
                    yield json.loads(line)

    def describe_exit(self) -> str:
        """Return how it ended."""
        status = self._wait(_STOP_SECONDS)
        if status is None:
            return "has closed its output"
        return f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def close(self) -> None:
        """Make sure that it has ended, and what is left of its process group."""
        self.stop()
        is_first = self._status is None
        if is_first and self._wait(_STOP_SECONDS) is None:
            self._kill()
            self._wait(_STOP_SECONDS)
        if self._stdout >= 0:
            os.close(self._stdout)
            self._stdout = -1

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _wait(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while self._status is None:
            self._status = self._owner.poll(self.pid, self._template)
            if self._status is not None or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        return self._status

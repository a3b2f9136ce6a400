"""Crashes of a worker: the log that it writes when it exits, and the exit status and stack read from it.

A worker has an unnamed temporary file. The interpreter's fault handler writes to it when a signal kills the process,
and our `os._exit` before it exits. The process that supervises the worker has the same file open, and reads it then.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

# The fault handler's names of the signals that it catches.
_FAULTS = {
    "Segmentation fault": signal.SIGSEGV,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,  # since Python 3.13
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
}
# A frame in which this package enters an action: the action's own frames come before it in the log.
_ENTRY_FRAME = re.compile(
    r'^  File ".*synapse_runtime/(?:action\.py", line \d+ in invoke|core/execution\.py", line \d+ in _await)'
)
# Threads with such frames are Ray's or this package's own, not the action's.
_NOT_ACTION_CODE = re.compile(r'File ".*[/\\](?:synapse_runtime|site-packages[/\\]ray)[/\\]')


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended.

    Attributes:
        status: Its exit status, or the negative number of the signal that killed it.
        stack: Its stack as text, if the process could still write it.
        timed_out: Whether it was killed because its action exceeded its timeout.
        out_of_memory: Whether the kernel's OOM killer killed a process of this machine while it ran.
    """

    status: int
    stack: str = ""
    timed_out: bool = False
    out_of_memory: bool = False

    def describe(self) -> str:
        """Return a description that completes a sentence.

        Example:
            >>> ProcessExit(3).describe()
            'exited with status 3'
            >>> ProcessExit(-9, out_of_memory=True).describe()
            'was killed by SIGKILL: the machine ran out of memory'
        """
        if self.status >= 0:
            return f"exited with status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        reason = ": the machine ran out of memory" if self.out_of_memory and self.status == -signal.SIGKILL else ""
        return f"was killed by {name}{reason}"


class CrashLog:
    """The file in which a worker records how it exits.

    Create it in the process that reads it, and call `install` in the worker; a forked child process shares it.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
        self.descriptor = self._file.fileno()

    def install(self) -> None:
        """Record from now on how this process exits. Must be called in its main thread."""
        owner = os.getpid()
        original_exit: Callable[[int], NoReturn] = getattr(os._exit, "__wrapped__", os._exit)

        def recorded_exit(status: int) -> NoReturn:
            if os.getpid() == owner:  # not in a forked child
                with contextlib.suppress(OSError):
                    os.write(self.descriptor, f"exit {status}\n".encode())
            original_exit(status)

        os._exit = recorded_exit
        faulthandler.disable()
        for number in _FAULTS.values():  # Ray's handlers would print C++ stacks to the action's output
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(file=self.descriptor)
        signal.signal(signal.SIGTERM, self._terminated)

    def reset(self) -> None:
        """Empty the file before the next call."""
        if not os.lseek(self.descriptor, 0, os.SEEK_CUR):
            return
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    def exit_after(self, seconds: float) -> None:
        """Exit after this many seconds, even if the process is stuck in native code, and record its stack."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.descriptor)

    def read(self) -> str:
        """Return the content of the file."""
        return read_crash_log(self.descriptor)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(self.descriptor, f"signal {number}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def read_crash_log(descriptor: int) -> str:
    """Return the content of a worker's crash log."""
    return os.pread(descriptor, 1_000_000, 0).decode("utf-8", errors="replace")


def parse_crash_log(log: str, status: int | None = None, *, out_of_memory: bool = False) -> ProcessExit:
    r"""Return how a process exited.

    Args:
        log: The content of its crash log.
        status: Its exit status, if its parent process knows it.
        out_of_memory: Whether the kernel's OOM killer killed a process of this machine while it ran.

    Example:
        >>> parse_crash_log("exit 3\n").status
        3
        >>> parse_crash_log("").status  # nothing recorded: only SIGKILL does that
        -9
    """
    fault = re.search(r"^Fatal Python error: .*?(" + "|".join(_FAULTS) + ")", log, re.MULTILINE)
    ended = re.findall(r"^(exit|signal) (-?\d+)$", log, re.MULTILINE)
    if log.startswith("Timeout ("):
        return ProcessExit(1 if status is None else status, _stack(log), timed_out=True)
    if status is None and fault:
        status = -_FAULTS[fault[1]]
    elif status is None and ended:
        how, number = ended[-1]
        status = int(number) & 0xFF if how == "exit" else -int(number)
    return ProcessExit(
        -signal.SIGKILL if status is None else status, _stack(log) if fault else "", False, out_of_memory
    )


def kernel_oom_kills() -> int:
    """Return how many processes the kernel's OOM killer has killed on this machine; 0 if that is unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


def _stack(log: str) -> str:
    """Return the action's stacks among those that the fault handler wrote, the failing thread's first."""
    threads: list[list[str]] = []
    cut = False
    for line in log.splitlines():
        if re.match(r"(Current thread|Thread) 0x", line):
            threads.append([line])
            cut = False
        elif threads and line.startswith("  "):
            cut = cut or bool(_ENTRY_FRAME.match(line))
            if not cut:
                threads[-1].append(line)
    actions = [lines for lines in threads if not any(map(_NOT_ACTION_CODE.search, lines))]
    actions.sort(key=lambda lines: not lines[0].startswith("Current"))
    return "\n".join("\n".join(lines) for lines in actions)

"""How a worker died: what it notes down on its way out, and what that means in words.

A worker keeps a file without a name. The interpreter's fault handler writes to it when a signal kills the process,
and `os._exit` does before it ends it. Whoever watches over the worker holds the same file open, and reads it then.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

# The fault handler's own words for the signals that it catches.
_FAULTS = {
    "Segmentation fault": signal.SIGSEGV,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,  # since Python 3.13
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
}
_OUR_LAST = re.compile(
    r'^  File ".*synapse_runtime/(?:action\.py", line \d+ in invoke|core/execution\.py", line \d+ in _await)'
)
# Threads with such frames are Ray's, or those of ours that run beside an action.
_NOT_ACTION_CODE = re.compile(r'File ".*[/\\](?:synapse_runtime|site-packages[/\\]ray)[/\\]')


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended.

    Attributes:
        status: Its exit status, or the number of the signal that killed it, negative.
        stack: Where it was, as text, where the process could still tell.
        timed_out: Whether it was ended at the time limit of its action.
        out_of_memory: Whether the kernel killed a process of this machine for want of memory meanwhile.
    """

    status: int
    stack: str = ""
    timed_out: bool = False
    out_of_memory: bool = False

    def describe(self) -> str:
        """Say it as the end of a sentence.

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
    """The file in which a worker notes how it ends.

    Make it where it is to be read, and call `install` in the worker; a child process made by `fork` shares it.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
        self.descriptor = self._file.fileno()

    def install(self) -> None:
        """Let this process note down how it ends, from now on; to be called in its main thread."""
        owner, exit_at_once = os.getpid(), os._exit

        def noted_exit(status: int) -> NoReturn:
            if os.getpid() == owner:  # not of a child that it has forked
                with contextlib.suppress(OSError):
                    os.write(self.descriptor, f"exit {status}\n".encode())
            exit_at_once(status)

        os._exit = noted_exit
        faulthandler.disable()
        for number in _FAULTS.values():  # Ray's handlers would print stacks of C++ into the action's output
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(file=self.descriptor)
        signal.signal(signal.SIGTERM, self._terminated)

    def reset(self) -> None:
        """Forget what was noted: a next call begins."""
        if not os.lseek(self.descriptor, 0, os.SEEK_CUR):
            return
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    def exit_after(self, seconds: float) -> None:
        """End the process from C after this long, whatever it does then, and note where it was."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.descriptor)

    def read(self) -> str:
        """Return what was noted."""
        return read_crash_log(self.descriptor)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(self.descriptor, f"signal {number}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def read_crash_log(descriptor: int) -> str:
    """Return the content of a worker's file of notes."""
    return os.pread(descriptor, 1_000_000, 0).decode("utf-8", errors="replace")


def parse_crash_log(notes: str, status: int | None = None, *, out_of_memory: bool = False) -> ProcessExit:
    r"""Make out how a process ended.

    Args:
        notes: What it has noted.
        status: Its exit status, where its parent knows that.
        out_of_memory: Whether the kernel has killed for want of memory meanwhile.

    Example:
        >>> parse_crash_log("exit 3\n").status
        3
        >>> parse_crash_log("").status  # not even a last word: only SIGKILL does that
        -9
    """
    fault = re.search(r"^Fatal Python error: .*?(" + "|".join(_FAULTS) + ")", notes, re.MULTILINE)
    ended = re.findall(r"^(exit|signal) (-?\d+)$", notes, re.MULTILINE)
    if notes.startswith("Timeout ("):
        return ProcessExit(1 if status is None else status, _stack(notes), timed_out=True)
    if status is None and fault:
        status = -_FAULTS[fault[1]]
    elif status is None and ended:
        how, number = ended[-1]
        status = int(number) & 0xFF if how == "exit" else -int(number)
    return ProcessExit(
        -signal.SIGKILL if status is None else status, _stack(notes) if fault else "", False, out_of_memory
    )


def kernel_oom_kills() -> int:
    """Return how many processes the kernel of this machine has killed for want of memory; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


def _stack(notes: str) -> str:
    """Return the stacks that the fault handler wrote: the action's own, the one that failed first."""
    threads: list[list[str]] = []
    cut = False
    for line in notes.splitlines():
        if re.match(r"(Current thread|Thread) 0x", line):
            threads.append([line])
            cut = False
        elif threads and line.startswith("  "):
            cut = cut or bool(_OUR_LAST.match(line))
            if not cut:
                threads[-1].append(line)
    actions = [lines for lines in threads if not any(map(_NOT_ACTION_CODE.search, lines))]
    actions.sort(key=lambda lines: not lines[0].startswith("Current"))
    return "\n".join("\n".join(lines) for lines in actions)

"""Processes that an action leaves running in a worker: daemons would outlive the worker unnoticed.

On Linux a worker is the subreaper of its descendants: a process whose parent has exited becomes its child, even if it
has a session of its own. So all of them are found when a call ends. Elsewhere none is found.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
# How long processes have to exit before they are killed.
_EXIT_SECONDS = 1.0
_ENDING_SECONDS = 0.1
_POLL_SECONDS = 0.02
_SHOWN = 5
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
# Kills the processes that it has read, each a pid and its start time, once the worker has closed the pipe by exiting.
# In the background of a shell that has exited, so that it is not a child of the worker.
_WATCHER = r"""
trap '' HUP INT TERM
exec 3<&0
(
    all=
    while read -r one; do all="$all $one"; done
    for one in $all; do
        read -r status 2>/dev/null < "/proc/${one%:*}/stat" || continue
        set -- ${status##*) }
        [ "${20}" = "${one#*:}" ] && kill -9 "${one%:*}" 2>/dev/null
    done
) <&3 &
exit 0
"""


class Process(NamedTuple):
    """A process.

    Attributes:
        pid: Its id.
        parent: The id of its parent.
        session: The id of its session.
        started: When it started, in clock ticks since the boot: with the id, it identifies the process.
        name: The name of its program.
        has_ended: Whether it has ended, and waits for its parent to notice.
    """

    pid: int
    parent: int
    session: int
    started: int
    name: str
    has_ended: bool


class ChildProcesses:
    """The processes that one call leaves running: those that exist when it ends, but did not when it began.

    Those that were started by one that existed belong to an earlier call, or to this package.
    """

    def __init__(self) -> None:
        adopt_orphans()
        self._before = {(one.pid, one.started) for one in descendants()}

    def left(self) -> list[Process]:
        """Return the processes of the call that are still running.

        Those of `multiprocessing` and what they have started are left out: they end with this process.
        """
        deadline = time.monotonic() + _ENDING_SECONDS
        while (left := self._left()) and time.monotonic() < deadline:  # some may be about to exit
            time.sleep(_POLL_SECONDS)
        return left

    def _left(self) -> list[Process]:
        found = descendants()
        _reap(found)
        children, ending = _multiprocessing_children(), set[int]()
        kept: list[Process] = []
        earlier: set[int] = set()
        for one in found:  # parents come first
            if (one.pid, one.started) in self._before or one.parent in earlier:
                earlier.add(one.pid)
                continue
            if one.has_ended:
                continue
            if one.parent in ending or _ends_with_its_parent(one, children):
                ending.add(one.pid)
            else:
                kept.append(one)
        return kept


def descendants() -> list[Process]:
    """Return the descendants of this process, parents before their children; nothing where there is no `/proc`."""
    if not _has_children():
        return []
    by_parent: dict[int, list[Process]] = {}
    for one in _all_processes():
        by_parent.setdefault(one.parent, []).append(one)
    found: list[Process] = []
    waiting = [os.getpid()]
    while waiting:
        children = by_parent.get(waiting.pop(), [])
        found.extend(children)
        waiting.extend(one.pid for one in children)
    return found


def stop(processes: Iterable[Process]) -> None:
    """Terminate processes, and kill those that have not exited a second later."""
    remaining = list(processes)
    for one in remaining:
        _signal(one, signal.SIGTERM)
    deadline = time.monotonic() + _EXIT_SECONDS
    while (remaining := [one for one in remaining if _is_running(one)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for one in remaining:
        _signal(one, signal.SIGKILL)


def stop_with_this_process(processes: Iterable[Process]) -> None:
    """Have processes killed once this process has ended, however it ends."""
    lines = "".join(f"{one.pid}:{one.started}\n" for one in processes)
    with contextlib.suppress(BrokenPipeError):  # somebody has killed the watcher
        os.write(_watcher(os.getpid()), lines.encode())


def describe(processes: Iterable[Process]) -> str:
    """Return the names and ids of processes.

    Example:
        >>> describe([Process(11, 1, 11, 0, "redis", False), Process(12, 1, 11, 0, "sleep", False)])
        'redis (pid 11), sleep (pid 12)'
    """
    names = [f"{one.name} (pid {one.pid})" for one in processes]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


@functools.cache
def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent exits."""
    _set_subreaper(True)


os.register_at_fork(after_in_child=adopt_orphans.cache_clear)  # a child is none


def _set_subreaper(value: bool) -> None:
    prctl(_PR_SET_CHILD_SUBREAPER, int(value))


def prctl(option: int, value: int) -> None:
    """Change an attribute of this process, on Linux; see the manual page of `prctl`."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _has_children() -> bool:
    """Return whether this process has children. Cheap enough for each call."""
    if sys.platform != "linux":
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _all_processes() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        found = _process(entry.name) if entry.name.isdigit() else None
        if found is not None:
            yield found


def _process(pid: str | int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            start, _, rest = file.read().rpartition(")")
    except OSError:  # it has ended
        return None
    state, parent, _, session, *others = rest.split()
    name = start.partition("(")[2]
    return Process(int(pid), int(parent), int(session), int(others[15]), name, state in "ZX")


def _is_running(process: Process) -> bool:
    now = _process(process.pid)
    return now is not None and now.started == process.started and not now.has_ended


def _signal(process: Process, number: int) -> None:
    if _is_running(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _reap(processes: Iterable[Process]) -> None:
    """Reap ended processes that this process has adopted. Those that it has started are up to who started them."""
    here, session = os.getpid(), os.getsid(0)
    for one in processes:
        # One that was started here is in this session, or leads its own.
        if one.has_ended and one.parent == here and one.session not in (session, one.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, os.WNOHANG)


def _ends_with_its_parent(process: Process, children: set[int]) -> bool:
    """Return whether this is a process of `multiprocessing`, whose helpers are known by their command lines."""
    if process.pid in children:
        return True
    try:
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            command = file.read()
    except OSError:  # it has ended
        return True
    return any(name in command for name in _HELPERS)


def _multiprocessing_children() -> set[int]:
    if "multiprocessing" not in sys.modules:
        return set()
    import multiprocessing

    return {one.pid for one in multiprocessing.active_children() if one.pid is not None}


@functools.cache
def _watcher(owner: int) -> int:
    """Start the process that kills others after this one; return the pipe to it.

    Args:
        owner: This process: a forked child needs its own.
    """
    reading, writing = os.pipe()

    def close_in_child() -> None:
        if os.getpid() != owner:
            with contextlib.suppress(OSError):
                os.close(writing)

    _set_subreaper(False)
    try:
        subprocess.run(
            ["/bin/sh", "-c", _WATCHER],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            check=True,
        )
    finally:
        _set_subreaper(True)
        os.close(reading)
    os.register_at_fork(after_in_child=close_in_child)  # the pipe closes when this process ends, not its children
    return writing

"""Actions that get stuck, kill their process, or keep state."""

import asyncio
import ctypes
import logging
import os
import signal
import threading
import time
import warnings
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction

counter = 0


class Stuck(BaseAction):
    """Waits forever, with another thread that it has started."""

    def execute(self):
        self.log("waiting")
        print("before it got stuck", flush=True)
        thread = threading.Thread(target=wait_beside, name="beside", daemon=True)
        thread.start()
        wait_for_ever()


def wait_for_ever():
    while True:
        time.sleep(0.05)


def wait_beside():
    time.sleep(30)


class StuckAsync(BaseAction):
    """Awaits an event that is never set."""

    async def execute(self):
        await never()


async def never():
    await asyncio.Event().wait()


class StuckInC(BaseAction):
    """Blocks in C code with signals blocked, so that Python cannot interrupt it."""

    def execute(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        block_in_c()


class Halt(BaseAction):
    """Suspends its whole process, as a debugger does: not even its fault handler runs."""

    def execute(self):
        os.kill(os.getpid(), signal.SIGSTOP)


def block_in_c():
    ctypes.CDLL(None).sleep(30)


class CrashParams(BaseModel):
    how: str


class Crash(BaseAction[CrashParams]):
    """Prints, then terminates its process."""

    def execute(self):
        for number in range(60):
            print("line", number, flush=True)
        self.set_metrics({"loss": 0.5}, "train")
        logging.getLogger("lab.crash").warning("record %d", 1)
        warnings.warn("warned", stacklevel=1)
        self.log("about to die")
        die(self.params.how)


def die(how):
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), getattr(signal, how))


class Tick(BaseAction):
    """Writes to a file forever."""

    def execute(self):
        path = Path(self.params["path"])
        with path.open("a") as file:
            while True:
                file.write("x")
                file.flush()
                time.sleep(0.02)


class Count(BaseAction):
    """Counts its calls in this process in a module-level variable."""

    def execute(self):
        global counter
        counter += 1
        return counter


def parents(pid):
    """Return the ids of the processes that a process descends from, the nearest first."""
    found = []
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text()
        pid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
        found.append(pid)
    return found


class Where(BaseAction):
    """Returns the pid of its process and the resources that it uses."""

    def execute(self):
        return {
            "pid": os.getpid(),
            "parents": parents(os.getpid()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        }


class SaysWhere(BaseAction):
    """Reports the processes that it descends from, and waits for its end."""

    def execute(self):
        self.ctx.log("here", {"parents": parents(os.getpid())})
        time.sleep(60)

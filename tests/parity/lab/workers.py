"""Actions that get stuck, kill their process, or keep state."""

import asyncio
import ctypes
import os
import signal
import threading
import time
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction

counter = 0


class Stuck(BaseAction):
    """Waits for ever, with a thread of its own beside it."""

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
    """Awaits what never comes."""

    async def execute(self):
        await never()


async def never():
    await asyncio.Event().wait()


class StuckInC(BaseAction):
    """Blocks with signals off, so that nothing of Python's gets through."""

    def execute(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        block_in_c()


class Halt(BaseAction):
    """Stops its whole process, as a debugger does: not even its fault handler goes on."""

    def execute(self):
        os.kill(os.getpid(), signal.SIGSTOP)


def block_in_c():
    ctypes.CDLL(None).sleep(30)


class CrashParams(BaseModel):
    how: str


class Crash(BaseAction[CrashParams]):
    """Prints, then ends its process."""

    def execute(self):
        for number in range(60):
            print("line", number, flush=True)
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
    """Writes to a file for ever."""

    def execute(self):
        path = Path(self.params["path"])
        with path.open("a") as file:
            while True:
                file.write("x")
                file.flush()
                time.sleep(0.02)


class Count(BaseAction):
    """Counts in a module's variable how often it was called in this process."""

    def execute(self):
        global counter
        counter += 1
        return counter


class Where(BaseAction):
    """Tells the process it runs in, and what that holds."""

    def execute(self):
        return {
            "pid": os.getpid(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        }

"""Actions that test a worker."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from synapse_runtime.action import BaseAction


class EchoParams(BaseModel):
    value: Any = None


class EchoAction(BaseAction[EchoParams]):
    def execute(self):
        return self.params.value


class IdentifyAction(BaseAction):
    def execute(self):
        return {
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "job_id": self.ctx.job_id,
            "main_thread": threading.current_thread() is threading.main_thread(),
            "env": {name: os.environ.get(name) for name in ("FROM_CONFIG", "SHARED", "GIVEN")},
        }


class PrintParams(BaseModel):
    lines: list[str] = []
    count: int = 0
    raw: bytes = b""


class PrintAction(BaseAction[PrintParams]):
    def execute(self):
        for number in range(self.params.count):
            print("line", number)
        for line in self.params.lines:
            print(line)
        sys.stdout.flush()
        os.write(1, self.params.raw)
        subprocess.run([sys.executable, "-c", "import sys; print('child', file=sys.stderr)"], check=True)
        return {"printed": self.params.count}


class NarrateParams(BaseModel):
    steps: int = 3
    pause: float = 0.0


class NarrateAction(BaseAction[NarrateParams]):
    def execute(self):
        for step in range(self.params.steps):
            self.ctx.set_progress(step + 1, self.params.steps, "walk")
            self.ctx.set_metrics({"height": step * 10}, "walk")
            self.ctx.log("step", {"n": step}, level="debug")
            self.ctx.log_message("at {n}", "warning", n=step)
            self.logger.info("step %d", step)
            time.sleep(self.params.pause)


class OwnError(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class FailAction(BaseAction):
    def execute(self):
        try:
            {}["missing"]
        except KeyError as error:
            problem = OwnError(code=7)
            problem.add_note("look here")
            raise problem from error


class SleepParams(BaseModel):
    seconds: float = 60.0
    touch: Path | None = None


class SleepAction(BaseAction[SleepParams]):
    def execute(self):
        until = time.monotonic() + self.params.seconds
        while time.monotonic() < until:
            if self.params.touch is not None:
                self.params.touch.write_text(str(time.time()))
            time.sleep(0.05)


class ArrayParams(BaseModel):
    megabytes: int = 1


class ArrayAction(BaseAction[ArrayParams]):
    def execute(self):
        import numpy

        return numpy.arange(self.params.megabytes * 131072, dtype=numpy.float64)


class TalkParams(BaseModel):
    rounds: int = 3
    pause: float = 0.0
    ending: str = ""


class TalkAction(BaseAction[TalkParams]):
    """Logs events and prints in turn, in its own process and in a child process; ends as `ending` says."""

    def execute(self):
        for number in range(self.params.rounds):
            print(f"out {number};", end="")
            self.ctx.log("said", {"n": number})
            subprocess.run(["/bin/sh", "-c", f"printf 'err {number};' >&2"], check=True)
            self.ctx.log("said again", {"n": number})
            print(f"ä{number};", end="")
            time.sleep(self.params.pause)
        if self.params.ending == "kill":
            os.kill(os.getpid(), 9)
        return type(sys.stdout).__name__


class StubbornAction(BaseAction):
    """Logs an event, and then goes on for a minute, whatever interrupts it."""

    def execute(self):
        self.ctx.log("said", {})
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(BaseException):
                time.sleep(until - time.monotonic())


class HeldAction(BaseAction):
    """Returns the resources that its worker holds, by Ray's names."""

    def execute(self):
        import ray

        if not ray.is_initialized():  # in a job, Ray knows the supervisor, not this process
            from ray.util.state import list_actors

            (held,) = (
                actor.required_resources
                for actor in list_actors(detail=True, filters=[("state", "=", "ALIVE")])
                if self.ctx.job_id in (actor.name or "")
            )
            return held
        return ray.get_runtime_context().get_assigned_resources()

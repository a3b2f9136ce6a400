"""Actions that report where they run, and leave files there."""

import logging
import os
import socket
import time
import warnings
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction


class LookParams(BaseModel):
    leave: str = ""


class Look(BaseAction[LookParams]):
    """Reports its host, files and environment, and leaves a file in its working directory."""

    def execute(self):
        import synapse_runtime

        print("looked")
        self.ctx.log("looked", {})
        logging.getLogger("lab").warning("looked")
        warnings.warn("looked", UserWarning, stacklevel=1)
        found = sorted(path.as_posix() for path in Path().rglob("*") if "__pycache__" not in path.parts)
        if self.params.leave:
            Path(self.params.leave).write_text("left")
        return {
            "host": socket.gethostname(),
            "cwd": os.getcwd(),
            "file": __file__,
            "found": found,
            "runtime": synapse_runtime.__file__,
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "env": {name: self.ctx.env.get(name) for name in ("FROM_ENV", "FROM_RUNTIME_ENV")},
        }


class Fail(BaseAction):
    def execute(self):
        raise LookupError("nothing found")


class Hang(BaseAction):
    def execute(self):
        time.sleep(60)


class Crash(BaseAction):
    """Emits everything, waits until it was sent, and kills its process."""

    def execute(self):
        self.ctx.log("before the crash", {})
        self.ctx.set_metrics({"loss": 0.5}, "train")
        logging.getLogger("lab").warning("before the crash")
        warnings.warn("before the crash", UserWarning, stacklevel=1)
        time.sleep(0.5)
        os.kill(os.getpid(), 9)


class UseWheel(BaseAction):
    def execute(self):
        import wheel_package

        return {"host": socket.gethostname(), "value": wheel_package.VALUE}

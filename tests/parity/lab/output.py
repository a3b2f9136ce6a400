"""Actions that print, log and warn."""

import ctypes
import logging
import os
import subprocess
import sys
import warnings

from synapse_runtime.action import BaseAction

logger = logging.getLogger("lab.output")


class Speak(BaseAction):
    """Prints through every output channel, in a known order."""

    def execute(self):
        print("print 1")
        sys.stdout.flush()
        os.write(1, b"descriptor 2\n")
        subprocess.run([sys.executable, "-c", "print('child 3')"], check=True)
        ctypes.CDLL(None).puts(b"c 4")
        ctypes.CDLL(None).fflush(None)
        print("print 5")
        print("error 1", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "import sys; print('child 2', file=sys.stderr)"], check=True)
        return "spoken"


class Log(BaseAction):
    """Logs at all levels, to a library's logger and to its own."""

    def execute(self):
        logger.debug("detail %d", 1)
        logger.info("info %d", 2)
        logger.warning("warning %d", 3)
        logging.getLogger("other.library").info("info of another")
        self.logger.info("own")
        try:
            raise KeyError("lost")
        except KeyError:
            logger.exception("failed")


class Warn(BaseAction):
    """Emits two kinds of warnings."""

    def execute(self):
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
        warnings.warn("careful", UserWarning, stacklevel=1)
        return "warned"


class LogAndPrint(BaseAction):
    """Logs to a logger that has its own handler, like those of many modules."""

    def execute(self):
        own = logging.getLogger("lab.output.printing")
        handler = logging.StreamHandler()
        own.addHandler(handler)
        try:
            own.warning("printed once")
        finally:
            own.removeHandler(handler)


class Medley(BaseAction):
    """Does what the actions above do."""

    def execute(self):
        return [other.execute(self) for other in (Speak, Log, LogAndPrint, Warn)]


class LogBadly(BaseAction):
    """Logs messages that do not fit their arguments."""

    def execute(self):
        for name in self.params["loggers"]:
            logger = self.ctx.logger if name == "ctx" else logging.getLogger("lib")
            logger.log(logging.INFO if name == "ctx" else logging.WARNING, "%d items", "three")
        return "done"

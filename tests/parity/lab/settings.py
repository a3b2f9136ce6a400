"""Actions that change all settings of the process that are put back after a call, and that report them."""

import decimal
import locale
import logging
import logging.config
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from datetime import datetime
from typing import Any

from synapse_runtime.decorators import action

NAMES = ("lab", "lab.audit", "lab.new")


def _nothing(*_: object) -> None: ...


@action
def report(params: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return the settings."""
    umask = os.umask(0o077)
    os.umask(umask)
    loggers = [logging.getLogger(name) for name in ("", *NAMES[:2])]
    if NAMES[2] in logging.root.manager.loggerDict:
        loggers.append(logging.getLogger(NAMES[2]))
    return {
        "loggers": [
            (one.name, one.level, one.propagate, one.disabled, list(map(repr, one.filters))) for one in loggers[:3]
        ],
        "handlers": [sorted(type(handler).__qualname__ for handler in one.handlers) for one in loggers[:3]],
        "new": [(one.level, one.propagate, one.handlers) for one in loggers[3:]] in ([], [(0, True, [])]),
        "record": logging.getLogRecordFactory() is logging.LogRecord,
        "enabled": [logging.getLogger(name).isEnabledFor(logging.ERROR) for name in NAMES[:2]],
        "filters": list(map(str, warnings.filters)),
        "hooks": [id(hook) for hook in (sys.excepthook, threading.excepthook)],
        "show": getattr(warnings.showwarning, "__qualname__", "partial"),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "argv": list(sys.argv),
        "stdout": type(sys.stdout).__name__,
        "limits": (sys.getrecursionlimit(), socket.getdefaulttimeout(), decimal.getcontext().prec, umask),
        "locale": locale.setlocale(locale.LC_ALL),
    }


@action
def disturb(params: dict[str, Any], context: Any) -> None:
    """Change them, by the functions that libraries commonly use."""
    logging.captureWarnings(capture=True)
    logging.getLogger("lab.audit").addFilter(_nothing)
    logging.getLogger("lab.audit").propagate = False
    logging.getLogger("lab.new").setLevel("ERROR")
    logging.getLogger("lab.new").addHandler(logging.NullHandler())
    logging.setLogRecordFactory(lambda *args, **kwargs: logging.LogRecord(*args, **kwargs))
    logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.excepthook = threading.excepthook = _nothing
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _nothing)
    sys.argv[:] = ["changed"]
    sys.stdout = sys.__stderr__
    sys.setrecursionlimit(5000)
    socket.setdefaulttimeout(7)
    decimal.getcontext().prec = 3
    os.umask(0o123)
    locale.setlocale(locale.LC_ALL, "C")
    if params.get("fail"):
        raise ValueError("on purpose")


@action
def says(params: dict[str, Any], context: Any) -> None:
    """Log and warn."""
    logging.getLogger("lab.audit").warning("from the action")
    warnings.warn("from the action", UserWarning, stacklevel=1)


@action
def uses_variables(params, context):
    if params:
        os.environ.update(params)
        time.tzset()
        tempfile.tempdir = None
    return datetime.fromtimestamp(1704067200).hour, tempfile.gettempdir()


@action
def hash_and_flags(params, context):
    return hash("synapse"), sys.flags.optimize

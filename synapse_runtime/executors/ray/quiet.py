"""Ray's own warnings and log records, kept away from the user's: a test suite that checks them is not about Ray."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

# Those loggers of Ray, and below it, that speak on the way of a job.
_RAY_LOGGERS = (
    "ray",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "urllib3",
    "urllib3.connectionpool",
    "asyncio",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's own warnings and log records away from the user's: a test suite that checks them is not about Ray."""
    with no_log_records():
        _deafness.begin()
        try:
            yield
        finally:
            _deafness.end()


class _Silence:
    """Keeps log records of Ray away while somebody wants that; the last to leave puts the levels back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._levels: list[tuple[logging.Logger, int]] = []

    def begin(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._levels = [(logger, logger.level) for logger in map(logging.getLogger, _RAY_LOGGERS)]
                for logger, _ in self._levels:
                    logger.setLevel(logging.ERROR)

    def end(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                for logger, level in self._levels:
                    logger.setLevel(level)


_silence = _Silence()


class _Deafness:
    """Ignores warnings while somebody wants that, in whichever threads; the last to leave puts the filters back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._filters = contextlib.ExitStack()

    def begin(self) -> None:
        with self._lock:
            if not self._wanted:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._wanted += 1

    def end(self) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                self._filters.close()


_deafness = _Deafness()


@contextlib.contextmanager
def no_log_records() -> Iterator[None]:
    """Keep Ray's log records away; unlike `quiet`, also while other threads run, and in several at once."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()

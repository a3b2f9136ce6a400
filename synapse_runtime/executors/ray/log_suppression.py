"""Suppress Ray's own warnings and log records in one thread, so that tests that check warnings or logs do not see them.

Logger levels and warning filters belong to the whole process, and other threads may use and change them at the same
time. So records and warnings are suppressed by filters that apply only to the threads inside these contexts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

from synapse_runtime.core.threads import SharedContext

# The loggers of Ray, and of the libraries that it uses, that log while a job is submitted and followed.
_NOISY = ("ray", "urllib3", "asyncio")


class _Suppressed(threading.local):
    """How many contexts the current thread is in."""

    records = 0
    warnings = 0


_suppressed = _Suppressed()


def _passes(record: logging.LogRecord) -> bool:
    return not _suppressed.records or record.levelno >= logging.ERROR


class _FilteredLoggers:
    """Adds the filter to the noisy loggers, once; it does nothing outside these contexts."""

    def __init__(self) -> None:
        self._known = -1

    def update(self) -> None:
        registered = logging.root.manager.loggerDict
        if len(registered) == self._known:
            return
        for name in _NOISY:
            logging.getLogger(name)
        self._known = len(registered)
        for name, logger in list(registered.items()):
            if isinstance(logger, logging.Logger) and name.partition(".")[0] in _NOISY:
                logger.addFilter(_passes)  # does nothing if it is there already


_loggers = _FilteredLoggers()


@contextlib.contextmanager
def suppress_log_records() -> Iterator[None]:
    """Suppress log records below `ERROR` of Ray and its libraries, in the current thread."""
    _loggers.update()
    _suppressed.records += 1
    try:
        yield
    finally:
        _suppressed.records -= 1


class _AnyInSuppressedThread(type):
    """Makes each warning an instance of a category in threads whose warnings are suppressed, and none elsewhere."""

    def __subclasscheck__(cls, other: type) -> bool:
        return _suppressed.warnings > 0 or other is cls


class _SuppressedWarning(Warning, metaclass=_AnyInSuppressedThread):
    pass


@contextlib.contextmanager
def _ignored() -> Iterator[None]:
    warnings.simplefilter("ignore", category=_SuppressedWarning)
    ours = warnings.filters[0]
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # other code has set the filters since
            warnings.filters.remove(ours)  # type: ignore[attr-defined]


_ignore_warnings = SharedContext(_ignored)


@contextlib.contextmanager
def suppress_ray_output() -> Iterator[None]:
    """Suppress Ray's own warnings and log records, in the current thread."""
    with suppress_log_records(), _ignore_warnings():
        _suppressed.warnings += 1
        try:
            yield
        finally:
            _suppressed.warnings -= 1

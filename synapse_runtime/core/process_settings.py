"""Settings of the process that an action may change, such as logging and hooks, and that are as before after it.

What a module of the plugin changes when it is imported stays, as the module stays imported.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import logging
import operator
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from synapse_runtime.core.interrupts import shielded

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
_handler_of: Callable[[int], Any] = _signal.getsignal
_SYS_NAMES = ("excepthook", "unraisablehook", "argv", "stdin", "stdout", "stderr")
_of_logger: Callable[[logging.Logger], tuple[Any, ...]] = operator.attrgetter(
    "level", "propagate", "disabled", "handlers", "filters"
)
_of_sys: Callable[[Any], tuple[Any, ...]] = operator.attrgetter(*_SYS_NAMES)


class _Loggers:
    """The state of all loggers at one moment."""

    __slots__ = ("_factory", "_lists", "_loggers", "_plain")

    def __init__(self) -> None:
        self._loggers = _all_loggers()
        states = list(map(_of_logger, self._loggers))
        self._plain = states
        self._lists = [(h, tuple(h), f, tuple(f)) if h or f else None for _, _, _, h, f in states]
        self._factory = (logging.getLogRecordFactory(), logging.root.manager.disable)

    def restore(self) -> None:
        """Restore it; a logger that is new gets the state of new loggers."""
        is_level_changed = False
        for logger, now, before, lists in zip(
            self._loggers, map(_of_logger, self._loggers), self._plain, self._lists, strict=True
        ):
            if lists is not None:
                handlers, all_handlers, filters, all_filters = lists
                _restore_list(handlers, all_handlers)
                _restore_list(filters, all_filters)
            elif now[3] or now[4]:
                now[3].clear()
                now[4].clear()
            if now != before or now[3] is not before[3] or now[4] is not before[4]:
                is_level_changed |= now[:3] != before[:3]
                logger.level, logger.propagate, logger.disabled, logger.handlers, logger.filters = before
        if len(logging.root.manager.loggerDict) + 1 != len(self._loggers):
            is_level_changed |= self._reset_new()
        factory, disabled = self._factory
        if logging.getLogRecordFactory() is not factory:
            logging.setLogRecordFactory(factory)
        if is_level_changed or logging.root.manager.disable != disabled:
            logging.disable(disabled)  # clears the caches of all loggers too

    def _reset_new(self) -> bool:
        known = set(map(id, self._loggers))
        is_changed = False
        for logger in _all_loggers():
            if id(logger) not in known and isinstance(logger, logging.Logger) and _of_logger(logger) != _NEW:
                logger.level, logger.propagate, logger.disabled = _NEW[:3]
                logger.handlers.clear()
                logger.filters.clear()
                is_changed = True
        return is_changed


_NEW: tuple[Any, ...] = (logging.NOTSET, True, False, [], [])


def _all_loggers() -> list[logging.Logger]:
    """Return the root logger and all others; a logger that only has children has no state, and is left out."""
    known = logging.root.manager.loggerDict
    return [logging.root, *(each for each in known.copy().values() if isinstance(each, logging.Logger))]


def _restore_list(items: list[Any], before: tuple[Any, ...]) -> None:
    if tuple(items) != before:
        items[:] = before


class _Settings:
    """The settings of the process at one moment."""

    def __init__(self) -> None:
        self._loggers = _Loggers()
        self._filters, self._show_warning = list(warnings.filters), warnings.showwarning
        self._capturing = getattr(logging, "_warnings_showwarning", None)
        self._of_sys, self._argv = _of_sys(sys), list(sys.argv)
        self._recursion_limit, self._thread_hook = sys.getrecursionlimit(), threading.excepthook
        self._handlers = list(map(_handler_of, _SIGNALS)) if _is_main_thread() else []
        self._umask = _umask()
        self._others = _other_settings()

    def restore(self) -> None:
        """Restore them."""
        self._loggers.restore()
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        if getattr(logging, "_warnings_showwarning", None) is not self._capturing:
            logging.captureWarnings(capture=self._capturing is not None)
        if warnings.showwarning is not self._show_warning:
            warnings.showwarning = self._show_warning
        if _of_sys(sys) != self._of_sys:
            for name, value in zip(_SYS_NAMES, self._of_sys, strict=True):
                setattr(sys, name, value)
        if sys.argv != self._argv:
            sys.argv[:] = self._argv
        if threading.excepthook is not self._thread_hook:
            threading.excepthook = self._thread_hook
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        os.umask(self._umask)
        if self._handlers and _is_main_thread():
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                if handler is not None and _handler_of(number) is not handler:
                    signal.signal(number, handler)
        for restore in self._others:
            restore()


def _umask() -> int:
    """Return the umask.

    Python can only set it. If there are other threads, that might apply to the files that they create, so it is read.
    """
    if threading.active_count() > 1:
        with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _other_settings() -> list[Callable[[], object]]:
    """Return functions that restore settings of modules that have been imported."""
    restore: list[Callable[[], object]] = []
    if "locale" in sys.modules:
        import locale

        before = locale.setlocale(locale.LC_ALL)
        restore.append(lambda: locale.setlocale(locale.LC_ALL) == before or locale.setlocale(locale.LC_ALL, before))
    if "socket" in sys.modules:
        import socket

        timeout = socket.getdefaulttimeout()
        restore.append(lambda: socket.setdefaulttimeout(timeout))
    if "decimal" in sys.modules:
        import decimal

        context = decimal.getcontext().copy()
        restore.append(lambda: decimal.setcontext(context))
    return restore


class _SettingsRestored:
    """A context after which the settings are as before; of calls that overlap, in threads or nested, after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: _Settings | None = None

    def __enter__(self) -> None:
        is_counted = False
        try:
            with shielded(), self._lock:
                if not self._users:
                    self._before = _Settings()
                self._users, is_counted = self._users + 1, True
        except BaseException:  # an interrupt that the shield has held back, or Ctrl-C
            if is_counted:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with shielded(), self._lock:
            self._users -= 1
            if not self._users and self._before is not None:
                before, self._before = self._before, None
                before.restore()


settings_restored = _SettingsRestored()

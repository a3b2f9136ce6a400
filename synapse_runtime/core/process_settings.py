"""Settings of the process that an action may change, such as logging and hooks, and that are as before after it.

What a module of the plugin changes when it is imported stays, as the module stays imported.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import functools
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
    """The state of all loggers at one moment. There may be hundreds, so what has not changed is compared in C."""

    __slots__ = ("_contents", "_factory", "_loggers", "_states")

    def __init__(self) -> None:
        self._loggers = _all_loggers()
        self._states = list(map(_of_logger, self._loggers))
        self._contents = _contents(self._states)
        self._factory = (logging.getLogRecordFactory(), logging.root.manager.disable)

    def restore(self) -> None:
        """Restore it; a logger that is new gets the state of new loggers."""
        now = list(map(_of_logger, self._loggers))
        is_level_changed = False
        if now != self._states or _contents(now) != self._contents:
            is_level_changed = self._restore_each(now)
        if _all_loggers() is not self._loggers:
            is_level_changed |= self._reset_new()
        factory, disabled = self._factory
        if logging.getLogRecordFactory() is not factory:
            logging.setLogRecordFactory(factory)
        if is_level_changed or logging.root.manager.disable != disabled:
            logging.disable(disabled)  # clears the caches of all loggers too

    def _restore_each(self, states: list[tuple[Any, ...]]) -> bool:
        """Restore the loggers; return whether a level, `propagate` or `disabled` has changed."""
        contents = {id(items): items_before for items, items_before in self._contents}
        is_changed = False
        for logger, now, before in zip(self._loggers, states, self._states, strict=True):
            for items in before[3:]:
                _restore_list(items, contents.get(id(items), ()))
            if now[:3] != before[:3] or now[3] is not before[3] or now[4] is not before[4]:
                is_changed |= now[:3] != before[:3]
                logger.level, logger.propagate, logger.disabled, logger.handlers, logger.filters = before
        return is_changed

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


_LISTS = operator.itemgetter(3), operator.itemgetter(4)  # handlers and filters, in what `_of_logger` returns
_NEW: tuple[Any, ...] = (logging.NOTSET, True, False, [], [])


_known: tuple[list[Any], list[logging.Logger]] = ([], [logging.root])


def _all_loggers() -> list[logging.Logger]:
    """Return the root logger and all others: the same list until there is a new one.

    A logger that only has children has no state, and is left out.
    """
    global _known
    values = list(logging.root.manager.loggerDict.values())
    if values != _known[0]:
        _known = values, [logging.root, *(each for each in values if isinstance(each, logging.Logger))]
    return _known[1]


def _contents(states: list[tuple[Any, ...]]) -> list[tuple[list[Any], tuple[Any, ...]]]:
    """Return the lists of handlers and filters that are not empty, each with its items."""
    return [(items, tuple(items)) for list_of in _LISTS for items in map(list_of, filter(list_of, states))]


def _restore_list(items: list[Any], before: tuple[Any, ...]) -> None:
    if tuple(items) != before:
        items[:] = before


class _Umask:
    """Remembers the umask before its first change by Python code.

    Python can only set it, which would apply to files that other threads create at that moment, and reading it from
    `/proc` takes as long as all else here.
    """

    def __init__(self) -> None:
        self._set = os.umask
        self.before: int | None = None

    def replace(self) -> None:
        """Replace `os.umask`, for the whole process."""

        @functools.wraps(self._set)
        def umask(mask: int, /) -> int:
            before = self._set(mask)
            if self.before is None:
                self.before = before
            return before

        os.umask = umask

    def restore(self) -> None:
        """Set the umask as it was before its first change since `before` was None."""
        if self.before is not None:
            self._set(self.before)
            self.before = None


_umask = _Umask()
_umask.replace()


class _Settings:
    """The settings of the process at one moment."""

    def __init__(self) -> None:
        self._loggers = _Loggers()
        self._filters, self._show_warning = list(warnings.filters), warnings.showwarning
        self._capturing = getattr(logging, "_warnings_showwarning", None)
        self._of_sys, self._argv = _of_sys(sys), list(sys.argv)
        self._recursion_limit, self._thread_hook = sys.getrecursionlimit(), threading.excepthook
        self._handlers = list(map(_handler_of, _SIGNALS)) if _is_main_thread() else []
        _umask.before = None
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
        _umask.restore()
        if self._handlers and _is_main_thread():
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                if handler is not None and _handler_of(number) is not handler:
                    signal.signal(number, handler)
        for restore in self._others:
            restore()


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

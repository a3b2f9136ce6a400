"""Log levels and warning filters of the caller's process, applied in the worker while its action runs."""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# A pickled warning filter: the category as the names of its module and class, patterns as text.
_Filter = tuple[str, str, str, str, str, int]


@dataclass(frozen=True)
class LoggingConfig:
    """Log levels and warning filters of a process. Create one in the caller with `LoggingConfig.current`.

    Attributes:
        levels: The level of each logger that sets one; the root logger's name is empty.
        disabled: The level up to which `logging.disable` silences all loggers.
        filters: The warning filters, as plain data: the worker may not be able to import a filter's category.
    """

    levels: tuple[tuple[str, int], ...] = (("", logging.WARNING),)
    disabled: int = 0
    filters: tuple[_Filter, ...] = ()

    @classmethod
    def current(cls) -> LoggingConfig:
        """Return the current configuration of this process: the same object until it changes."""
        return _cache.current()

    @property
    def decoded_filters(self) -> list[Any]:
        """The warning filters as `warnings.filters` has them: the same objects each time."""
        return _decode_filters(self.filters)

    @contextlib.contextmanager
    def apply(self, show_warning: Callable[..., object]) -> Iterator[None]:
        """Apply the configuration in the block.

        Args:
            show_warning: Called with each warning that the filters let through, as `warnings.showwarning` is.
        """
        disabled = logging.root.manager.disable
        changed = [(logger, logger.level, level) for logger, level in _loggers(self.levels) if logger.level != level]
        for logger, _, level in changed:
            logger.setLevel(level)
        if self.disabled != disabled:  # `disable` iterates over all loggers
            logging.disable(self.disabled)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning  # type: ignore[assignment]
                warnings.resetwarnings()
                warnings.filters.extend(self.decoded_filters)  # type: ignore[attr-defined]
                yield
        finally:
            if logging.root.manager.disable != disabled:
                logging.disable(disabled)
            for logger, before, _ in changed:
                logger.setLevel(before)


class _ConfigCache:
    """The current configuration of this process, computed again only if it has changed.

    A change of any level clears the caches of all loggers, `_logger._cache` too. That is private; a test checks it.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger(__name__)
        self._known = LoggingConfig()
        self._loggers = -1
        self._root_level = -1
        self._filters: list[Any] = []

    def current(self) -> LoggingConfig:
        root, known = logging.root, self._known
        manager, filters = root.manager, warnings.filters
        levels = known.levels
        if (
            not self._logger._cache  # type: ignore[attr-defined]
            or root.level != self._root_level
            or len(manager.loggerDict) != self._loggers
        ):
            self._loggers, self._root_level = len(manager.loggerDict), root.level
            self._logger.isEnabledFor(logging.CRITICAL)  # fills the cache
            levels = _levels()
        encoded = known.filters
        if filters != self._filters:
            self._filters = list(filters)
            encoded = tuple(map(_encode_filter, self._filters))
        if levels is not known.levels or encoded is not known.filters or manager.disable != known.disabled:
            self._known = LoggingConfig(levels, manager.disable, encoded)
        return self._known


_cache = _ConfigCache()


def _levels() -> tuple[tuple[str, int], ...]:
    levels = [("", logging.root.level)]
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels.append((name, logger.level))
    return tuple(levels)


@functools.lru_cache(maxsize=8)
def _loggers(levels: tuple[tuple[str, int], ...]) -> tuple[tuple[logging.Logger, int], ...]:
    return tuple((logging.getLogger(name), level) for name, level in levels)


def _encode_filter(item: Any) -> _Filter:
    action, message, category, module, line = item
    return action, _pattern(message), category.__module__, category.__qualname__, _pattern(module), line


def _pattern(matcher: re.Pattern[str] | str | None) -> str:
    """Return a regular expression: `filterwarnings` compiles patterns, but Python's default filters use plain names."""
    if matcher is None:
        return ""
    return re.escape(matcher) + r"\Z" if isinstance(matcher, str) else matcher.pattern


@functools.lru_cache(maxsize=8)
def _decode_filters(filters: tuple[_Filter, ...]) -> list[Any]:
    """Return filters in the format of `warnings.filters`."""
    return [
        (
            action,
            re.compile(message, re.IGNORECASE) if message else None,
            _category(module_name, name),
            re.compile(module) if module else None,
            line,
        )
        for action, message, module_name, name, module, line in filters
    ]


def _category(module_name: str, name: str) -> type:
    if module_name == builtins.__name__:
        return getattr(builtins, name, Warning)
    return _NamedCategory(name, (Warning,), {"__module__": module_name})


class _NamedCategory(type):
    """Matches a warning category by module and name, without importing it: that may take long or fail."""

    def __subclasscheck__(cls, other: type) -> bool:
        return any(
            base.__module__ == cls.__module__ and base.__qualname__ == cls.__qualname__ for base in other.__mro__
        )

"""What is heard of an action's logging and warnings: decided where the call comes from, in force where it runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from synapse_runtime import transport

_Filter = tuple[str, str, type[Warning], str, int]


@dataclass(frozen=True)
class Audience:
    """What a process listens to: make one where a call comes from with `Audience.here`.

    Attributes:
        levels: The level of each logger that has one of its own; the root logger's name is empty.
        disabled: The level up to which `logging.disable` has silenced all of them.
        filters: The filters of warnings, each pickled: a worker may lack the class that one is about.
    """

    levels: tuple[tuple[str, int], ...] = (("", logging.WARNING),)
    disabled: int = 0
    filters: tuple[bytes, ...] = ()

    @classmethod
    def here(cls) -> Audience:
        """Return what this process listens to at the moment."""
        manager = logging.root.manager
        levels = [("", logging.root.level)]
        for name, logger in list(manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and logger.level:
                levels.append((name, logger.level))
        return cls(tuple(levels), manager.disable, _packed_filters(tuple(warnings.filters)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let this process listen to the same, inside the block."""
        disabled = logging.root.manager.disable
        loggers = [(logging.getLogger(name), level) for name, level in self.levels]
        changed = [(logger, logger.level, level) for logger, level in loggers if logger.level != level]
        for logger, _, level in changed:
            logger.setLevel(level)
        logging.disable(self.disabled)
        try:
            with warnings.catch_warnings():
                warnings.resetwarnings()
                for packed in self.filters:
                    _add_filter(_read_filter(packed))
                yield
        finally:
            logging.disable(disabled)
            for logger, before, _ in changed:
                logger.setLevel(before)


@functools.lru_cache(maxsize=8)
def _packed_filters(filters: tuple[Any, ...]) -> tuple[bytes, ...]:
    packed = []
    for action, message, category, module, line in filters:
        with contextlib.suppress(Exception):  # of a class that cannot travel, which no worker can have either
            packed.append(transport.dumps((action, _pattern(message), category, _pattern(module), line)))
    return tuple(packed)


def _pattern(matcher: re.Pattern[str] | str | None) -> str:
    """Return what `filterwarnings` takes: it makes patterns, Python's own filters have plain names."""
    if matcher is None:
        return ""
    return re.escape(matcher) + r"\Z" if isinstance(matcher, str) else matcher.pattern


@functools.lru_cache(maxsize=256)
def _read_filter(packed: bytes) -> _Filter | None:
    try:
        return cast(_Filter, transport.loads(packed))
    except Exception:  # noqa: BLE001 - about a class that this process cannot import, so it never warns of it
        return None


def _add_filter(item: _Filter | None) -> None:
    if item is not None:
        action, message, category, module, line = item
        how = cast(Literal["default", "error", "ignore", "always", "module", "once"], action)
        warnings.filterwarnings(how, message, category, module, line, append=True)

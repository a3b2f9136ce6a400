"""The clock of a test that has stopped or moved it with freezegun or time-machine, for the worker of its actions."""

from __future__ import annotations

import datetime
import importlib
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from synapse_runtime.core.around import Around

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines

# Modules in a worker whose clocks freezegun must not stop.
_KEPT: Final = ["ray", "grpc"]
_EPOCH: Final = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Clock:
    """A clock that has been stopped or moved.

    Attributes:
        library: The library that has done it.
        nanoseconds: Its time, since the epoch.
        ticks: Whether it goes on from there.
        step: Seconds by which it advances each time it is read.
        offset: Seconds by which local time differs from UTC; of freezegun.
    """

    library: Literal["freezegun", "time_machine"]
    nanoseconds: int
    ticks: bool = False
    step: float = 0.0
    offset: float = 0.0

    @classmethod
    def of_this_process(cls) -> Clock | None:
        """Return the clock of this process; None if it is the real one."""
        freezegun: Any = sys.modules.get("freezegun.api")
        if freezegun is not None and freezegun.freeze_factories:
            return cls._of_freezegun(freezegun)
        time_machine: Any = sys.modules.get("time_machine")
        if time_machine is not None and time_machine.escape_hatch.is_travelling():
            now = time.time_ns()
            return cls("time_machine", now, ticks=time.time_ns() != now)
        return None

    @classmethod
    def _of_freezegun(cls, freezegun: Any) -> Clock:
        factory, offset = freezegun.freeze_factories[-1], freezegun.tz_offsets[-1].total_seconds()
        ticks = isinstance(factory, freezegun.TickingDateTimeFactory)
        now = factory() if ticks else factory.time_to_freeze  # calling it may advance it
        microseconds = (now - _EPOCH) // datetime.timedelta(microseconds=1)
        step = getattr(factory, "step_width", 0.0)
        return cls("freezegun", 1000 * microseconds, ticks, float(step), offset)

    def around(self) -> Around:
        """Return the context manager that sets this clock in a worker."""
        return Around(set_clock, kwargs=asdict(self))


def set_clock(library: str, **clock: Any) -> AbstractContextManager[object]:
    """Return a context manager of the library that sets a clock.

    Args:
        library: As in `Clock`.
        **clock: The other attributes of `Clock`.

    Raises:
        ModuleNotFoundError: The library is not installed here.
    """
    set_to = Clock(library, **clock)  # type: ignore[arg-type]
    module: Any = importlib.import_module(library)
    manager: AbstractContextManager[object]
    if library == "time_machine":
        manager = module.travel(set_to.nanoseconds / 1e9, tick=set_to.ticks)
    else:
        manager = module.freeze_time(
            _EPOCH + datetime.timedelta(microseconds=set_to.nanoseconds // 1000),
            tz_offset=datetime.timedelta(seconds=set_to.offset),
            tick=set_to.ticks,
            auto_tick_seconds=set_to.step,
            ignore=_KEPT,
        )
    return manager

"""The measured actions, and plain functions to compare them with. This file is copied into a plugin."""

from __future__ import annotations

import functools
import time
import tracemalloc
from typing import Any

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.context import RuntimeContext
from synapse_runtime.decorators import action


class EchoParams(BaseModel):
    """The params of `Echo`."""

    number: int = 1


class Echo(BaseAction[EchoParams]):
    """Returns a dict with its param; does nothing else."""

    def execute(self) -> dict[str, int]:
        """Return the number."""
        return {"number": self.params.number}


def plain(params: EchoParams) -> dict[str, int]:
    """Do the same as `Echo`, as a plain function."""
    return {"number": params.number}


class SayParams(BaseModel):
    """The params of `Say`."""

    events: int = 0


class Say(BaseAction[SayParams]):
    """Logs a number of events."""

    def execute(self) -> None:
        """Log the events."""
        log = self.ctx.log
        for number in range(self.params.events):
            log("step", {"number": number})


@functools.cache
def fifty_megabytes() -> Any:
    """Return a NumPy array of 50 MB, the same object each time."""
    import numpy

    return numpy.arange(50_000_000 // 8, dtype="int64")


@action
def array(params: dict[str, Any], context: RuntimeContext) -> Any:
    """Return the array."""
    return fifty_megabytes()


@action
def heap(params: dict[str, Any], context: RuntimeContext) -> int:
    """Return the peak growth of Python's heap since the last call, in bytes; the first call starts measuring."""
    return heap_growth()


def heap_growth() -> int:
    """Return the peak growth of Python's heap since the last call, in bytes; the first call starts measuring."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    now, peak = tracemalloc.get_traced_memory()
    grown = peak - _heap_before.get("bytes", now)
    tracemalloc.reset_peak()
    _heap_before["bytes"] = now
    return grown


_heap_before: dict[str, int] = {}


@action
def take(params: dict[str, Any], context: RuntimeContext) -> int:
    """Return the length of `data`."""
    return len(params["data"])


@action
def give(params: dict[str, Any], context: RuntimeContext) -> bytes:
    """Return `size` bytes."""
    return bytes(params["size"])


@action
def nap(params: dict[str, Any], context: RuntimeContext) -> None:
    """Sleep for `seconds`."""
    time.sleep(params["seconds"])


@action
def stamp(params: dict[str, Any], context: RuntimeContext) -> float:
    """Return the time of the call, in seconds since the epoch."""
    return time.time()

"""The actions that are measured, and the plain functions that they are measured against. Copied into a plugin."""

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
    """What `Echo` takes."""

    number: int = 1


class Echo(BaseAction[EchoParams]):
    """Does nothing: dict in, dict out."""

    def execute(self) -> dict[str, int]:
        """Return the number."""
        return {"number": self.params.number}


def plain(params: EchoParams) -> dict[str, int]:
    """Do what `Echo` does, as a function."""
    return {"number": params.number}


class SayParams(BaseModel):
    """What `Say` takes."""

    events: int = 0


class Say(BaseAction[SayParams]):
    """Says so many things."""

    def execute(self) -> None:
        """Log them."""
        log = self.ctx.log
        for number in range(self.params.events):
            log("step", {"number": number})


@functools.cache
def fifty_megabytes() -> Any:
    """Return an array of numpy, of 50 MB, the same each time."""
    import numpy

    return numpy.arange(50_000_000 // 8, dtype="int64")


@action
def array(params: dict[str, Any], context: RuntimeContext) -> Any:
    """Return the array."""
    return fifty_megabytes()


@action
def heap(params: dict[str, Any], context: RuntimeContext) -> int:
    """Return by how many bytes Python's heap has grown at most since the last call; the first begins to measure."""
    return heap_growth()


def heap_growth() -> int:
    """Return by how many bytes Python's heap has grown at most since the last call; the first begins to measure."""
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
    """Return so many bytes."""
    return bytes(params["size"])


@action
def nap(params: dict[str, Any], context: RuntimeContext) -> None:
    """Sleep so many seconds."""
    time.sleep(params["seconds"])


@action
def stamp(params: dict[str, Any], context: RuntimeContext) -> float:
    """Return when it was called, in seconds since the epoch."""
    return time.time()

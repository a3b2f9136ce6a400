"""Live events and output of a running action: batches that the worker sends to a channel, and the caller fetches.

A watched call is an ordinary call of the worker, and its response contains all events and output, as that of any call
does. While the action runs, a thread of the worker also sends them to the channel, an actor of its own, which the
caller polls while it waits for the response. So nothing is lost with the channel, and no process waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from synapse_runtime.events import Event
from synapse_runtime.executors.base import OnEvent, OnOutput
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output

if TYPE_CHECKING:
    from synapse_runtime.core.execution import ActionRun

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
# How long a caller whose worker has crashed waits for batches that were sent before.
_LAST_SECONDS = 0.2


class EventBatch(NamedTuple):
    """What was said and printed in a while.

    Attributes:
        call: The number of the call.
        number: The number of the batch within the call, from 0.
        content: What was said, packed.
    """

    call: int
    number: int
    content: bytes


def _actor_class() -> type:
    """Return the class of the actors, which goes by value and deals in plain data, as that of the workers."""
    import asyncio

    class ChannelActor:
        """The actor."""

        def __init__(self) -> None:
            self._batches: list[tuple[int, int, bytes]] = []
            self._news = asyncio.Event()

        async def put(self, call: int, number: int, content: bytes) -> None:
            """Take a batch."""
            self._batches.append((call, number, content))
            self._news.set()

        async def take(self) -> list[tuple[int, int, bytes]]:
            """Give the batches that have come, once there are any."""
            await self._news.wait()
            self._news.clear()
            batches, self._batches = self._batches, []
            return batches

    return ChannelActor


class EventChannel:
    """The caller's end of a worker's channel. It takes no resources; it ends with `close` or the caller's process."""

    def __init__(self) -> None:
        import ray

        with suppress_ray_output():
            self.actor: Any = ray.remote(_actor_class()).options(num_cpus=0, max_restarts=0).remote()
        self._pending: Any = None  # which is asked for and has not come; also from one call to the next

    @property
    def is_alive(self) -> bool:
        """Whether it has not been found to be lost."""
        return self.actor is not None

    def wait(self, answer: Any, seconds: float) -> list[EventBatch] | None:
        """Wait for so many seconds for batches, or for an answer; return None when that has come."""
        import ray

        self._request_batches()
        ready, _ = ray.wait([answer] if self._pending is None else [answer, self._pending], timeout=seconds)
        return None if answer in ready else self._received(ready)

    def drain(self) -> Iterator[EventBatch]:
        """Yield the batches that a worker has left which has died."""
        import ray

        while self.is_alive:
            self._request_batches()
            ready, _ = ray.wait([self._pending], timeout=_LAST_SECONDS)
            if not ready:
                return
            yield from self._received(ready)

    def close(self) -> None:
        """End it."""
        import ray

        if self.is_alive:
            ray.kill(self.actor)
            self.actor = self._pending = None

    def _request_batches(self) -> None:
        if self._pending is None and self.is_alive:
            self._pending = self.actor.take.remote()

    def _received(self, ready: list[Any]) -> list[EventBatch]:
        import ray
        from ray.exceptions import RayError

        if self._pending not in ready:
            return []
        news, self._pending = self._pending, None
        try:
            return [EventBatch(*batch) for batch in ray.get(news)]
        except RayError:  # it is lost, and what it had comes with the answer
            self.actor = None
            return []


class LiveEvents:
    """Hands on what one call says and prints: from batches while it runs, and the rest when its run is back.

    Args:
        call: The number of the call; batches of others, which come late, are passed over.
        on_event: Called with each event.
        on_output: Called with each piece of output: its stream and its text.
        read: Reads the content of a batch.
    """

    def __init__(
        self,
        call: int,
        on_event: OnEvent | None,
        on_output: OnOutput | None,
        read: Callable[[bytes], list[tuple[Any, ...]]],
    ) -> None:
        self.call = call
        self._on_event = on_event
        self._on_output = on_output
        self._read = read
        self._early: dict[int, EventBatch] = {}
        self._next = 0
        self.events: list[Event] = []
        self._printed = {"stdout": 0, "stderr": 0}

    def handle(self, batches: Iterable[EventBatch]) -> None:
        """Hand on what is in batches, in the order that they were written in."""
        for batch in batches:
            if batch.call == self.call:
                self._early[batch.number] = batch
        while (ready := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for said in self._read(ready.content):
                if len(said) == 2:
                    self._print(*said)
                else:
                    self._emit(Event(*said))

    def finish(self, run: ActionRun) -> None:
        """Hand on what a run says and has printed that has not been yet."""
        if run.captured is None:
            return
        text = {"stdout": run.captured.stdout, "stderr": run.captured.stderr}
        position = {"stdout": 0, "stderr": 0}
        for events_before, stream, length in run.captured.output_positions:
            self._emit_all(run.events[:events_before])
            position[stream] += length
            self._print(stream, text[stream][self._printed[stream] : position[stream]])
        self._emit_all(run.events)
        for stream, whole in text.items():
            self._print(stream, whole[self._printed[stream] :])

    def _emit_all(self, events: list[Event]) -> None:
        new = events[len(self.events) :]
        self.events += new
        if self._on_event is not None:
            for event in new:
                self._on_event(event)

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def _print(self, stream: str, text: str) -> None:
        self._printed[stream] += len(text)
        if text and self._on_output is not None:
            self._on_output(stream, text)

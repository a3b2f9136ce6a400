"""Live events and output of a running action: batches that the worker sends to a channel, and the caller fetches.

A watched call is an ordinary call of the worker, and its response contains all events and output, like that of any
call. While the action runs, a thread of the worker also sends them to the channel, a separate actor, which the caller
polls while it waits for the response. So losing the channel loses no data, and no process waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from synapse_runtime.core.interrupts import shielded
from synapse_runtime.events import Event
from synapse_runtime.executors.base import OnEvent, OnOutput
from synapse_runtime.executors.ray.log_suppression import suppress_ray_output
from synapse_runtime.executors.streaming import LOG

if TYPE_CHECKING:
    from synapse_runtime.core.execution import ActionRun
    from synapse_runtime.core.log_capture import LogEntry

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
# How long a caller whose worker has crashed waits for batches that it sent before.
_DRAIN_SECONDS = 0.2


class EventBatch(NamedTuple):
    """Events and output since the previous batch.

    Attributes:
        call: The number of the call.
        number: The number of the batch within the call, from 0.
        content: The serialized events and output.
    """

    call: int
    number: int
    content: bytes


def _actor_class() -> type:
    """Return the actor class. Like that of workers, it is pickled by value and exchanges plain data only."""
    import asyncio

    class ChannelActor:
        """The actor."""

        def __init__(self) -> None:
            self._batches: list[tuple[int, int, bytes]] = []
            self._has_batches = asyncio.Event()
            self._stopped = self._latest = -1
            self._changed = asyncio.Condition()

        async def is_started(self) -> None:
            """Return when the channel has started."""

        async def put(self, call: int, number: int, content: bytes) -> None:
            """Store a batch."""
            self._batches.append((call, number, content))
            self._has_batches.set()

        async def stop(self, call: int) -> None:
            """Have `wait_for_stop` of this call return True, and that of earlier calls False."""
            async with self._changed:
                self._stopped = max(self._stopped, call)
                self._changed.notify_all()

        async def wait_for_stop(self, call: int) -> bool:
            """Wait until the caller stops this call, and return True; return False if there is a later call."""
            async with self._changed:
                self._latest = max(self._latest, call)
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._stopped >= call or self._latest > call)
                return self._stopped == call

        async def take(self) -> list[tuple[int, int, bytes]]:
            """Wait until there are batches; return and remove them."""
            await self._has_batches.wait()
            self._has_batches.clear()
            batches, self._batches = self._batches, []
            return batches

    return ChannelActor


class EventChannel:
    """The caller's end of a worker's channel. It holds no resources, and ends with `close` or the caller's process."""

    def __init__(self) -> None:
        import ray

        with suppress_ray_output():
            self.actor: Any = ray.remote(_actor_class()).options(num_cpus=0, max_restarts=0).remote()
        self._pending: Any = None  # the outstanding `take`, which may last from one call to the next

    @property
    def is_alive(self) -> bool:
        """Whether the channel is usable, as far as is known."""
        return self.actor is not None

    def wait(self, response: Any, seconds: float) -> list[EventBatch] | None:
        """Wait up to `seconds` for batches or the response; return the batches, or None once the response is ready."""
        import ray

        with shielded() as interrupts:  # an interrupt between two statements would lose batches of the next call
            self._request_batches()
            refs = [response] if self._pending is None else [response, self._pending]
            ready, _ = interrupts.call_interruptibly(lambda: ray.wait(refs, timeout=seconds))
            return None if response in ready else self._received(ready)

    def drain(self) -> Iterator[EventBatch]:
        """Yield the remaining batches of a worker that has died."""
        import ray

        while self.is_alive:
            self._request_batches()
            ready, _ = ray.wait([self._pending], timeout=_DRAIN_SECONDS)
            if not ready:
                return
            yield from self._received(ready)

    def stop(self, call: int) -> None:
        """Ask the worker to stop the action of a call."""
        if self.is_alive:
            self.actor.stop.remote(call)

    def close(self) -> None:
        """Stop the actor."""
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
        batches, self._pending = self._pending, None
        try:
            return [EventBatch(*batch) for batch in ray.get(batches)]
        except RayError:  # the channel is lost; its content arrives with the response
            self.actor = None
            return []


class LiveEvents:
    """Passes the events and output of one call to callbacks: from batches while it runs, and the rest from its run.

    Args:
        call: The number of the call; late batches of other calls are ignored.
        on_event: Called with each event.
        on_output: Called with each piece of output: its stream and its text.
        read: Decodes the content of a batch.

    Attributes:
        events: The events that were passed on.
        logs: The log records and warnings that came with them; they are not passed on.
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
        self._pending: dict[int, EventBatch] = {}  # by their numbers
        self._next = 0
        self.events: list[Event] = []
        self.logs: list[LogEntry] = []
        self._failure: BaseException | None = None
        self._printed = {"stdout": 0, "stderr": 0}

    def caused(self, error: BaseException) -> bool:
        """Return whether a callback has raised an error, or an event loop has interrupted this thread because of it."""
        return error is self._failure or getattr(self._on_event or self._on_output, "has_failed", False)

    def handle(self, batches: Iterable[EventBatch]) -> None:
        """Pass on the content of batches, in the order in which they were written."""
        for batch in batches:
            if batch.call == self.call:
                self._pending[batch.number] = batch
        while (ready := self._pending.pop(self._next, None)) is not None:
            self._next += 1
            for item in self._read(ready.content):
                if len(item) > 2:
                    self._emit(Event(*item))
                elif item[0] == LOG:
                    self.logs.append(item[1])
                else:
                    self._print(*item)

    def finish(self, run: ActionRun) -> None:
        """Pass on the events and output of a run that have not been passed on yet."""
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
        for event in events[len(self.events) :]:
            self._emit(event)

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._call(self._on_event, event)

    def _print(self, stream: str, text: str) -> None:
        self._printed[stream] += len(text)
        if text and self._on_output is not None:
            self._call(self._on_output, stream, text)

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except BaseException as error:
            self._failure = error
            raise

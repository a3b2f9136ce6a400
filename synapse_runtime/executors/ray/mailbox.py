"""What a running action says and prints, on its way to a caller who watches: by a mailbox beside the worker.

A watched call is an ordinary call of the worker, and its answer brings everything home, as that of any call does. What
the action says meanwhile goes to the mailbox, an actor of its own, from a thread of the worker. The caller looks there
while it waits for the answer. So nothing that the mailbox loses is lost, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from synapse_runtime.events import Event
from synapse_runtime.executors.base import OnEvent, OnOutput
from synapse_runtime.executors.ray.quiet import quiet

if TYPE_CHECKING:
    from synapse_runtime.execution import ActionRun

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
# How long a caller whose worker has died waits for letters that are on their way.
_LAST_SECONDS = 0.2


class Letter(NamedTuple):
    """What was said and printed in a while.

    Attributes:
        call: The number of the call.
        number: Which one of this call's letters it is, from 0.
        content: What was said, packed.
    """

    call: int
    number: int
    content: bytes


def _actor_class() -> type:
    """Return the class of the actors, which goes by value and deals in plain data, as that of the workers."""
    import asyncio

    class Mailbox:
        """The actor."""

        def __init__(self) -> None:
            self._letters: list[tuple[int, int, bytes]] = []
            self._news = asyncio.Event()

        async def put(self, call: int, number: int, content: bytes) -> None:
            """Take a letter."""
            self._letters.append((call, number, content))
            self._news.set()

        async def take(self) -> list[tuple[int, int, bytes]]:
            """Give the letters that have come, once there are any."""
            await self._news.wait()
            self._news.clear()
            letters, self._letters = self._letters, []
            return letters

    return Mailbox


class Mailbox:
    """The mailbox of a worker, at its caller's. It takes no resources; it ends with `close` or the caller's process."""

    def __init__(self) -> None:
        import ray

        with quiet():
            self.actor: Any = ray.remote(_actor_class()).options(num_cpus=0, max_restarts=0).remote()
        self._news: Any = None  # which is asked for and has not come; also from one call to the next

    @property
    def is_there(self) -> bool:
        """Whether it has not been found to be lost."""
        return self.actor is not None

    def wait(self, answer: Any, seconds: float) -> list[Letter] | None:
        """Wait for so many seconds for letters, or for an answer; return None when that has come."""
        import ray

        self._ask()
        ready, _ = ray.wait([answer] if self._news is None else [answer, self._news], timeout=seconds)
        return None if answer in ready else self._taken(ready)

    def rest(self) -> Iterator[Letter]:
        """Yield the letters that a worker has left which has died."""
        import ray

        while self.is_there:
            self._ask()
            ready, _ = ray.wait([self._news], timeout=_LAST_SECONDS)
            if not ready:
                return
            yield from self._taken(ready)

    def close(self) -> None:
        """End it."""
        import ray

        if self.is_there:
            ray.kill(self.actor)
            self.actor = self._news = None

    def _ask(self) -> None:
        if self._news is None and self.is_there:
            self._news = self.actor.take.remote()

    def _taken(self, ready: list[Any]) -> list[Letter]:
        import ray
        from ray.exceptions import RayError

        if self._news not in ready:
            return []
        news, self._news = self._news, None
        try:
            return [Letter(*letter) for letter in ray.get(news)]
        except RayError:  # it is lost, and what it had comes with the answer
            self.actor = None
            return []


class Listener:
    """Hands on what one call says and prints: from letters while it runs, and the rest when its run is back.

    Args:
        call: The number of the call; letters of others, which come late, are passed over.
        on_event: Called with each event.
        on_output: Called with each piece of output: its stream and its text.
        read: Reads the content of a letter.
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
        self._early: dict[int, Letter] = {}
        self._next = 0
        self.events: list[Event] = []
        self._printed = {"stdout": 0, "stderr": 0}

    def take(self, letters: Iterable[Letter]) -> None:
        """Hand on what is in letters, in the order that they were written in."""
        for letter in letters:
            if letter.call == self.call:
                self._early[letter.number] = letter
        while (ready := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for said in self._read(ready.content):
                if len(said) == 2:
                    self._print(*said)
                else:
                    self._tell(Event(*said))

    def finish(self, run: ActionRun) -> None:
        """Hand on what a run says and has printed that has not been yet."""
        if run.captured is None:
            return
        text = {"stdout": run.captured.stdout, "stderr": run.captured.stderr}
        position = {"stdout": 0, "stderr": 0}
        for events_before, stream, length in run.captured.interjections:
            self._tell_all(run.events[:events_before])
            position[stream] += length
            self._print(stream, text[stream][self._printed[stream] : position[stream]])
        self._tell_all(run.events)
        for stream, whole in text.items():
            self._print(stream, whole[self._printed[stream] :])

    def _tell_all(self, events: list[Event]) -> None:
        new = events[len(self.events) :]
        self.events += new
        if self._on_event is not None:
            for event in new:
                self._on_event(event)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def _print(self, stream: str, text: str) -> None:
        self._printed[stream] += len(text)
        if text and self._on_output is not None:
            self._on_output(stream, text)

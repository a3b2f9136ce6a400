"""The event loop of a thread: actions run on one of their own, and leave that of the thread as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to completion on a new event loop, in a thread that runs none.

    Unlike `asyncio.run`, this neither replaces nor removes the loop that the thread has set.
    """
    import asyncio

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


@contextlib.contextmanager
def event_loop_restored() -> Iterator[None]:
    """Restore the event loop of the current thread, which `asyncio.run` in an action removes.

    asyncio returns the loop only together with a warning or an error, or creates one, so its own state is copied. If
    there was none, an open loop that the action leaves stays, so that the next action or the test can close it.
    """
    before = dict(_loop_state())
    try:
        yield
    finally:
        state = _loop_state()
        left = state.get("_loop")
        stays = before.get("_loop") is None and left is not None and not left.is_closed()
        if state != before and not stays:
            state.clear()
            state.update(before)


def _loop_state() -> dict[str, Any]:
    """Return the current thread's state in asyncio's event loop policy; empty if asyncio has not been used."""
    events = sys.modules.get("asyncio.events")
    policy = getattr(events, "_event_loop_policy", None)
    return getattr(getattr(policy, "_local", None), "__dict__", {})

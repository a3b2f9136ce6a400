"""Actions that use event loops of asyncio in the common ways."""

import asyncio
import warnings
from typing import Any

from synapse_runtime.decorators import action


@action
async def awaits(params: dict[str, Any], context: Any) -> str:
    """Await, and start a process, which needs a loop that watches child processes."""
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    assert asyncio.get_event_loop() is asyncio.get_running_loop()
    return "awaited"


@action
def runs(params: dict[str, Any], context: Any) -> str:
    """Run a coroutine as a program does."""
    return asyncio.run(asyncio.sleep(0, "run"))


@action
def gets_loop(params: dict[str, Any], context: Any) -> str:
    """Run a coroutine as older libraries do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loop = asyncio.get_event_loop()
    return loop.run_until_complete(asyncio.sleep(0, "got the loop"))

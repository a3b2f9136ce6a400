"""Deadlines of tests: each wait is for a condition, and its deadline is multiplied by `SYNAPSE_TEST_PATIENCE`.

The variable is a factor, 1 by default. Set it to 3 on a machine that is busy or three times slower than usual. It does
not slow down passing tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_FACTOR = float(os.environ.get("SYNAPSE_TEST_PATIENCE", "1"))


def patience(seconds: float) -> float:
    """Return a timeout or maximum duration in seconds, scaled for this machine."""
    return seconds * _FACTOR


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true, for at most this many seconds, scaled; return whether it is."""
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True

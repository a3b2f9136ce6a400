"""How long tests wait: each wait is for a condition, and its deadline grows with `SYNAPSE_TEST_PATIENCE`.

The variable is a factor, 1 by default. On a machine three times slower than the one that a deadline was chosen on, or a
busy one, it is 3. A passing test takes no longer for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_FACTOR = float(os.environ.get("SYNAPSE_TEST_PATIENCE", "1"))


def patience(seconds: float) -> float:
    """Return a deadline, or a longest duration, in seconds as long as this machine may take."""
    return seconds * _FACTOR


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, for so many seconds times the patience; return whether it does."""
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True

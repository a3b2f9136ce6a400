"""Switch the garbage collector off while a command imports modules: it would find nothing and take 10 % of the time."""

from __future__ import annotations

import gc


def pause() -> None:
    """Disable garbage collection."""
    gc.disable()


def resume() -> None:
    """Enable garbage collection for objects created from now on; those that exist already are never scanned."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

"""The garbage collector, which is of no use while a command imports what it needs, and takes a tenth of that time."""

from __future__ import annotations

import gc


def pause() -> None:
    """Keep it away: what is imported stays."""
    gc.disable()


def resume() -> None:
    """Let it do its work again, on what comes from now on; it passes over what has been imported, at the end too."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

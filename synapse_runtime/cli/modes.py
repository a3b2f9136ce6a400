"""The modes that a command line may name."""

from __future__ import annotations

from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import nearest

MODES = ("local", "task", "job")


def mode_names(incomplete: str) -> list[str]:
    """Return the modes that a word may become."""
    return [mode for mode in MODES if mode.startswith(incomplete)]


def checked_mode(given: str) -> str:
    """Return a mode in its right spelling.

    Raises:
        typer.BadParameter: There is none of that name, or it is not available yet; suggests the nearest.

    Example:
        >>> checked_mode(" Task")
        'task'
    """
    mode = given.strip().lower()
    if mode == "remote":
        raise usage_error("running through a Synapse backend is not available yet; choose local, task or job", "--mode")
    if mode not in MODES:
        guess = nearest(mode, (*MODES, "remote"))
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise usage_error(f"there is no mode {given!r}.{hint} Choose local, task or job.", "--mode")
    return mode

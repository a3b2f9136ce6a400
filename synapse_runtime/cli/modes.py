"""The modes that a command line may name."""

from __future__ import annotations

from collections.abc import Iterable

from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.modes import MODES, UnknownModeError, find_mode


def mode_names(incomplete: str) -> list[str]:
    """Return the modes whose names start with a word."""
    return [mode for mode in MODES if mode.startswith(incomplete)]


def describe_modes(names: Iterable[str]) -> str:
    """Return the names of modes as text for messages.

    Example:
        >>> describe_modes(["local"]), describe_modes(["local", "task", "job"])
        ('local mode', 'local, task and job mode')
    """
    *others, last = names
    return f"{', '.join(others)} and {last} mode" if others else f"{last} mode"


def checked_mode(given: str) -> str:
    """Return the name of a mode, whatever its case, alias or surrounding spaces.

    Raises:
        typer.BadParameter: There is no such mode; suggests the nearest.

    Example:
        >>> checked_mode(" Task")
        'task'
    """
    try:
        return find_mode(given.strip().lower()).name
    except UnknownModeError as error:
        raise usage_error(str(error), "--mode") from None

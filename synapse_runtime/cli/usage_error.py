"""A command line that is refused: the error that typer shows, with the command's usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def usage_error(text: str, option: str | None = None) -> typer.BadParameter:
    """Return the error, to be raised.

    Args:
        text: What is wrong, and what is wanted instead.
        option: The option that is at fault.
    """
    import typer  # takes longer than to run an action

    return typer.BadParameter(text, param_hint=option)

"""The error for an invalid command line, which typer shows with the command's usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def require_json(*, full: bool, as_json: bool) -> None:
    """Raise `typer.BadParameter` for `--full` without `--json`."""
    if full and not as_json:
        raise usage_error("it is for JSON: add --json", "--full")


def usage_error(text: str, option: str | None = None) -> typer.BadParameter:
    """Return the error, for the caller to raise.

    Args:
        text: What is wrong, and what is expected.
        option: The invalid option.
    """
    import typer  # here, because importing it takes longer than running an action

    return typer.BadParameter(text, param_hint=option)

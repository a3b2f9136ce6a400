"""The error for an invalid command line, which typer shows with the command's usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synapse_runtime.core.timeouts import expected_seconds

if TYPE_CHECKING:
    import typer


def require_json(*, full: bool, as_json: bool) -> None:
    """Raise `typer.BadParameter` for `--full` without `--json`."""
    if full and not as_json:
        raise usage_error("requires --json", "--full")


def require_seconds(value: float | None, option: str, *, or_zero: bool = False) -> None:
    """Raise `typer.BadParameter` if a timeout is not a positive number of seconds, at most a year.

    Args:
        value: The timeout; None if it was not given.
        option: The option.
        or_zero: Whether it may be 0.
    """
    expected = None if value is None else expected_seconds(value, or_zero=or_zero)
    if expected is not None:
        raise usage_error(f"expected {expected}, got {value:g}", option)


def usage_error(text: str, option: str | None = None) -> typer.BadParameter:
    """Return the error, for the caller to raise.

    Args:
        text: What is wrong, and what is expected.
        option: The invalid option.
    """
    import typer  # here, because importing it takes longer than running an action

    return typer.BadParameter(text, param_hint=option)

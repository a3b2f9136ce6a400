"""Tokens on the command line, without typer."""

from __future__ import annotations

import sys
from pathlib import Path

from synapse_runtime.cli.usage_error import usage_error

_MAX_TOKEN = 10_000


def given_token(token: str | None, file: Path | None) -> str | None:
    """Return the access token that a command line gives, by itself or in a file; None if it gives none.

    Raises:
        typer.BadParameter: It gives two, or the file cannot be read.
    """
    if file is None:
        return token
    if token is not None:
        raise usage_error("cannot be used with --token", "--token-file")
    try:
        text = sys.stdin.read(_MAX_TOKEN) if str(file) == "-" else _start_of(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise usage_error(f"cannot read {str(file)!r}: {reason}", "--token-file") from None
    if not text.strip():
        raise usage_error(f"{str(file)!r} is empty", "--token-file")
    return text.strip()


def _start_of(file: Path) -> str:
    with file.open(encoding="utf-8") as stream:
        return stream.read(_MAX_TOKEN)

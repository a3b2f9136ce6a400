"""Parse common command lines of `synapse plugin run` without typer, whose import takes longer than that of an action.

Everything else is left to typer: unknown, misspelt or incomplete options, numbers, `--help`, and reporting usage
errors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

COMMAND: Final = ("plugin", "run")

_TEXTS: Final = {
    "--plugin": "plugin",
    "-p": "plugin",
    "--params": "params",
    "--mode": "mode",
    "-m": "mode",
    "--ray-address": "ray_address",
    "--memory": "memory",
    "--host": "host",
    "--token": "token",
    "-t": "token",
    "--tenant": "tenant",
    "--agent": "agent",
    "--version": "version",
    "--input": "input_",
    "-i": "input_",
    "--infer-path": "infer_path",
    "--lang": "language",
    "-l": "language",
}
_PATHS: Final = {"--path": "path", "--env-file": "env_file", "--token-file": "token_file"}
_REPEATED: Final = {"--param": "param", "--env": "env", "--resource": "resource"}
_FLAGS: Final = {
    "--json": ("as_json", True),
    "--full": ("full", True),
    "--detach": ("detach", True),
    "--debug": ("debug", True),
    "--no-debug": ("debug", False),
    "--strict": ("strict", True),
    "--debug-sdk": ("debug_sdk", True),
    "--insecure": ("insecure", True),
    "--publish": ("publish", True),
    "--no-publish": ("publish", False),
}


def read(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of a command line as keyword arguments of `run_action`; None if typer has to parse it.

    Args:
        arguments: The arguments after `synapse plugin run`.

    Example:
        >>> read(["train", "--mode=local", "--param", "epochs=5", "--json"])
        {'action': 'train', 'mode': 'local', 'param': ['epochs=5'], 'as_json': True}
        >>> read(["train", "--bogus"])
    """
    given: dict[str, Any] = {}
    remaining = list(reversed(arguments))
    while remaining:
        word = remaining.pop()
        if not word.startswith("-"):
            if "action" in given:
                return None
            given["action"] = word
        elif word in _FLAGS:
            name, is_on = _FLAGS[word]
            given[name] = is_on
        else:
            option, equals, value = word.partition("=")
            if equals and not option.startswith("--"):
                return None
            if not equals:
                if not remaining or (remaining[-1].startswith("-") and remaining[-1] != "-"):
                    return None
                value = remaining.pop()
            if option in _TEXTS:
                given[_TEXTS[option]] = value
            elif option in _PATHS:
                given[_PATHS[option]] = Path(value)
            elif option in _REPEATED:
                given.setdefault(_REPEATED[option], []).append(value)
            else:
                return None
    return given if "action" in given and _is_text(arguments) else None


def run(arguments: Sequence[str]) -> int | None:
    """Run the command and return its exit status; None if typer has to run it."""
    if tuple(arguments[:2]) != COMMAND or "_SYNAPSE_COMPLETE" in os.environ:
        return None
    given = read(arguments[2:])
    if given is None:
        return None
    from synapse_runtime.cli.run_action import run_action

    try:
        run_action(**given)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except _usage_errors() as error:
        from synapse_runtime.cli.app import run as run_by_typer

        return run_by_typer(arguments, usage_error=error)
    return 0


def _is_text(arguments: Sequence[str]) -> bool:
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return True


def _usage_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that typer reports; called only after an exception, because it imports typer."""
    import typer

    return typer.BadParameter, typer.Abort, KeyboardInterrupt, EOFError

"""Findings of `synapse doctor`: what was looked at, how it is, and the fix where it is not well."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from synapse_runtime.environment import HiddenValues

State = Literal["ok", "warning", "problem"]

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY", re.IGNORECASE)
_NAMES_A_PLACE = ("_PATH", "_FILE", "_DIR")
_SHORTEST_SECRET = 6
_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `ok`, `warning` (it works, or may, but not as one would think) or `problem` (it does not work).
        what: What was looked at, in a word or two.
        text: How it is.
        fix: What mends it, in one line; empty where nothing needs to be.
    """

    state: State
    what: str
    text: str
    fix: str = ""


# Looks at one topic. What it raises is told as a finding of its own.
Check = Callable[[], Iterable[Finding]]


def ok(what: str, text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding("ok", what, text)


def warning(what: str, text: str, fix: str) -> Finding:
    """Return a finding that one should know of."""
    return Finding("warning", what, text, fix)


def problem(what: str, text: str, fix: str) -> Finding:
    """Return a finding that keeps something from working."""
    return Finding("problem", what, text, fix)


def without_secrets(text: str, variables: Mapping[str, str] = os.environ) -> str:
    """Return a text without passwords in URLs, and without the values of variables that look like secrets.

    Args:
        text: Any text.
        variables: The environment.

    Example:
        >>> without_secrets("http://me:pass@host/ refuses abc123xyz", {"API_TOKEN": "abc123xyz"})
        'http://…@host/ refuses <API_TOKEN>'
    """
    secrets = {
        name: value
        for name, value in variables.items()
        if _SECRET_NAME.search(name) and not name.endswith(_NAMES_A_PLACE)
    }
    return _USER_IN_URL.sub("…", HiddenValues(secrets, _SHORTEST_SECRET).out_of(text))

"""Findings of `synapse doctor`: what was checked, its state, and the fix for a problem."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from synapse_runtime.redaction import HiddenValues, secret_variables

State = Literal["ok", "warning", "problem"]

_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")


@dataclass(frozen=True)
class Finding:
    """The result of checking one thing.

    Attributes:
        state: `ok`, `warning` (works, or may work, but not as expected) or `problem` (does not work).
        what: What was checked, in a word or two.
        text: What was found.
        fix: How to fix it, in one line; empty if there is nothing to fix.
    """

    state: State
    what: str
    text: str
    fix: str = ""


# Yields the findings about one topic. An exception becomes another finding.
Check = Callable[[], Iterable[Finding]]


def ok(what: str, text: str) -> Finding:
    """Return a finding without a problem."""
    return Finding("ok", what, text)


def warning(what: str, text: str, fix: str) -> Finding:
    """Return a finding about something that works, or may work, but not as expected."""
    return Finding("warning", what, text, fix)


def problem(what: str, text: str, fix: str) -> Finding:
    """Return a finding about something that does not work."""
    return Finding("problem", what, text, fix)


def without_secrets(text: str, variables: Mapping[str, str] = os.environ) -> str:
    """Mask passwords in URLs, and the values of variables whose names look like secrets.

    Args:
        text: Any text.
        variables: Environment variables.

    Example:
        >>> without_secrets("http://me:pass@host/ refuses abc123xyz", {"API_TOKEN": "abc123xyz"})
        'http://…@host/ refuses <API_TOKEN>'
    """
    return _USER_IN_URL.sub("…", HiddenValues({}, secrets=secret_variables(variables).items()).out_of(text))

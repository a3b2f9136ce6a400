"""Redacts secrets in the reports of tests that run actions: in tracebacks, messages and captured output."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import pytest

from synapse_runtime.environment import PluginEnvironment
from synapse_runtime.redaction import HiddenValues, Secrets, masked_names

# The last one that was created: computing one takes a millisecond, and most tests have the same secrets.
_last: tuple[tuple[tuple[str, str], ...], HiddenValues] = ((), HiddenValues({}))


class TestSecrets:
    """The secrets of one test's calls."""

    __test__ = False

    def __init__(self) -> None:
        self._secrets: dict[tuple[str, str], None] = {}
        self._masked: dict[tuple[str, str], None] = {}

    def add(self, env: Mapping[str, Any], params: Any) -> None:
        """Add the secrets of a call.

        Args:
            env: Its environment variables.
            params: Its params.
        """
        names = masked_names()
        self._add(Secrets.of_variables(PluginEnvironment(env).as_strings(), names))
        with contextlib.suppress(Exception):  # reading attributes of params may run any code
            self._add(Secrets.of_params(params, names))

    def _add(self, found: Secrets) -> None:
        self._secrets |= dict.fromkeys(found.secrets)
        self._masked |= dict.fromkeys(found.masked)

    def redact(self, report: pytest.TestReport) -> None:
        """Redact a report in place; `capsys` and exceptions themselves keep what they have."""
        if report.longrepr is None and not report.sections:
            return
        hidden = self._hidden_values()
        report.longrepr = _redacted(report.longrepr, hidden)
        report.sections = [(title, hidden.out_of(text)) for title, text in report.sections]

    def _hidden_values(self) -> HiddenValues:
        global _last
        inherited = Secrets.of_variables(dict(os.environ), masked_names())
        secrets, masked = (*inherited.secrets, *self._secrets), (*inherited.masked, *self._masked)
        key = (*secrets, ("", ""), *masked)
        if _last[0] != key:
            _last = key, HiddenValues({}, secrets=secrets, masked=masked)
        return _last[1]


def _redacted(value: Any, hidden: HiddenValues) -> Any:
    """Return a part of a report without secrets; pytest's own parts are dataclasses, which are changed in place."""
    if isinstance(value, str):
        return hidden.out_of(value)
    if isinstance(value, list):
        value[:] = [_redacted(item, hidden) for item in value]
    elif isinstance(value, tuple):
        return tuple(_redacted(item, hidden) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            setattr(value, field.name, _redacted(getattr(value, field.name), hidden))
    return value

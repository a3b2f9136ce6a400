"""The environment variables that this process has changed since its session of tests began.

Workers get them with each call, whereas what was in the environment before never leaves this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from synapse_runtime.environment import READ_AT_START, Variables

__tracebackhide__ = True  # in every function here: reports show function arguments, and values may be secrets

# Names and new values; None for a variable that has been deleted.
ChangedVariables = tuple[tuple[str, str | None], ...]

# Variables of the tools that run the tests, which have others in each process.
_OWN_PREFIXES: Final = ("PYTEST_", "RAY_", "COV_CORE_", "COVERAGE_", "__")


class _Session:
    """A session of tests.

    Args:
        before: The variables at its beginning.
        changed_elsewhere: As in `start_session`.
    """

    def __init__(self, before: Mapping[str, str], changed_elsewhere: frozenset[str]) -> None:
        self.before = before
        self._changed_elsewhere = changed_elsewhere
        self._now: Variables | None = None
        self._changed: ChangedVariables = ()

    def changed(self) -> ChangedVariables:
        """Return what has changed since."""
        if self._now is None or not self._now.is_current():
            self._now = Variables()
            self._changed = self._compare(self.before, self._now.to_dict())
        return self._changed

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str]) -> ChangedVariables:
        names = {name for name in {*before, *now} if now.get(name) != before.get(name)} | self._changed_elsewhere
        return tuple((name, now.get(name)) for name in sorted(names) if not name.startswith(_OWN_PREFIXES))


_sessions: list[_Session] = []


def start_session(before: Mapping[str, str], changed_elsewhere: Iterable[str] = ()) -> Callable[[], None]:
    """Send what changes in the environment from now on to workers.

    Args:
        before: The variables when the session began.
        changed_elsewhere: Names of variables that the process which started this one had changed in its session.

    Returns:
        A function that ends this.
    """
    session = _Session(before, frozenset(changed_elsewhere))
    _sessions.append(session)
    return lambda: _sessions.remove(session)


def changed_variables() -> ChangedVariables:
    """Return the variables that have changed since the session began; empty if there is none."""
    return _sessions[-1].changed() if _sessions else ()


def inherited_environment() -> dict[str, str]:
    """Return the variables for a process that outlives a test: those of this process, as the session found them.

    What tests change is sent with each call. Variables that take effect only in a new process are as they are now.
    """
    variables = dict(os.environ)
    before = _sessions[-1].before if _sessions else {}
    for name, _ in changed_variables():
        if name in READ_AT_START or name == "PYTHONPATH":
            continue
        variables.pop(name, None)
        if name in before:
            variables[name] = before[name]
    return variables

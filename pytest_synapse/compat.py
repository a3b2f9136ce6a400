"""What other plugins need to know of ours. Nothing is imported here that the session has not imported itself."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_synapse.modes import CHOSEN


def allow_function_scoped_fixtures(item: pytest.Item) -> None:
    """Keep hypothesis from two false alarms about a test of `@given`.

    Its examples may share our fixtures, though of function scope: no call leaves anything in an executor. The check
    stays on where the test takes a fixture of function scope that is not ours. And a method that runs once in each mode
    has an instance in each, which is no flakiness.
    """
    test: Any = getattr(item, "obj", None)
    if not getattr(test, "is_hypothesis_test", False):
        return
    from hypothesis import HealthCheck, settings

    alarms = set()
    if _takes_only_ours(item):
        alarms.add(HealthCheck.function_scoped_fixture)
    if "synapse_mode" in getattr(getattr(item, "callspec", None), "params", ()) or _is_of_one_mode(item):
        alarms.add(HealthCheck.differing_executors)
    # Hypothesis has no public way to change the settings of a test that is made; its own plugin does it like this.
    # tests/pytest_synapse/test_other_plugins.py watches it.
    test = getattr(test, "__func__", test)
    own: Any = getattr(test, "_hypothesis_internal_use_settings", settings.default)
    test._hypothesis_internal_use_settings = settings(own, suppress_health_check={*own.suppress_health_check, *alarms})


def _takes_only_ours(item: pytest.Item) -> bool:
    """Tell whether the fixtures of function scope that a test takes by name are ours; pytest has no public way."""
    info = item._fixtureinfo  # type: ignore[attr-defined]
    taken = [info.name2fixturedefs[name][-1] for name in info.argnames if name in info.name2fixturedefs]
    return {each.func.__module__ for each in taken if each.scope == "function"} == {"pytest_synapse.fixtures"}


def _is_of_one_mode(item: pytest.Item) -> bool:
    return item.parent is not None and CHOSEN in item.parent.stash

"""Compatibility with other pytest plugins. Imports nothing that the session has not imported already."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_synapse.modes import CLASS_MODE_KEY


def allow_function_scoped_fixtures(item: pytest.Item) -> None:
    """Suppress two hypothesis health checks that are false positives for a test with `@given`.

    `function_scoped_fixture`: the examples may share our fixtures, because a call leaves no state in an executor. The
    check stays active if the test requests a function-scoped fixture of another plugin or of the user.
    `differing_executors`: a method that runs once in each mode has one instance per mode, which is not flaky.
    """
    test: Any = getattr(item, "obj", None)
    if not getattr(test, "is_hypothesis_test", False):
        return
    from hypothesis import HealthCheck, settings

    suppressed = set()
    if _requests_only_our_fixtures(item):
        suppressed.add(HealthCheck.function_scoped_fixture)
    if "synapse_mode" in getattr(getattr(item, "callspec", None), "params", ()) or _has_class_per_mode(item):
        suppressed.add(HealthCheck.differing_executors)
    # Hypothesis has no public API to change the settings of an existing test; its own pytest plugin does the same.
    # tests/pytest_synapse/test_other_plugins.py notices if this stops working.
    test = getattr(test, "__func__", test)
    own: Any = getattr(test, "_hypothesis_internal_use_settings", settings.default)
    test._hypothesis_internal_use_settings = settings(
        own, suppress_health_check={*own.suppress_health_check, *suppressed}
    )


def _requests_only_our_fixtures(item: pytest.Item) -> bool:
    """Return whether all function-scoped fixtures that a test requests by name are ours; pytest has no public API."""
    info = item._fixtureinfo  # type: ignore[attr-defined]
    requested = [info.name2fixturedefs[name][-1] for name in info.argnames if name in info.name2fixturedefs]
    return {each.func.__module__ for each in requested if each.scope == "function"} == {"pytest_synapse.fixtures"}


def _has_class_per_mode(item: pytest.Item) -> bool:
    return item.parent is not None and CLASS_MODE_KEY in item.parent.stash

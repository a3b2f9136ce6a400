"""The environment of a test's actions: what the `plugin_env` fixture returns, and what of it executors get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from synapse_runtime.environment import PluginEnvironment, Variables


class _LayeredEnvironment(PluginEnvironment):
    """What the fixture returns: this process's variables, and `overrides` from config file and marker.

    The variables of the process can be read, but are never sent with a call.
    """

    __slots__ = ("overrides",)

    overrides: Mapping[str, Any]


_RETURNED = pytest.StashKey[_LayeredEnvironment]()


def layered_environment(item: pytest.Item, config: Mapping[str, Any], marker: Mapping[str, Any]) -> PluginEnvironment:
    """Return the environment that actions get: this process's variables, overridden by config, then by marker."""
    overrides = {**config, **marker}
    env = _LayeredEnvironment.over(Variables(), overrides)
    env.overrides = overrides
    item.stash[_RETURNED] = env
    return env


def plugin_env_of(item: pytest.Item, plugin_env: Mapping[str, Any] | None, marker: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that a test adds to the environment of the process that its actions run in.

    Args:
        item: The test.
        plugin_env: What the fixture returned: our own environment, or, if a user overrides the fixture, a mapping of
            variables, which may be derived from it.
        marker: The marker's `env`.
    """
    ours = item.stash.get(_RETURNED, None)
    if plugin_env is ours is not None:
        return {**ours.overrides, **marker}
    given = dict(plugin_env or {})
    if ours is not None:
        # Where it was derived from ours, its inherited variables are left out: those with the same value object. Python
        # keeps one object for each character, so single characters alone tell nothing.
        same = [name for name in given.keys() & ours.keys() - ours.overrides.keys() if given[name] is ours[name]]
        if any(len(given[name]) > 1 for name in same):
            for name in same:
                del given[name]
    return {**given, **marker}

"""The environment of a test's actions: what the `plugin_env` fixture shows, and what of it is given to executors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from synapse_runtime.environment import PluginEnvironment


class _LayeredEnvironment(PluginEnvironment):
    """All layers, to look at. Not to be given on: only the marker's layer is the test's own."""

    __slots__ = ()


def layered(config: Mapping[str, Any], marker: Mapping[str, Any]) -> PluginEnvironment:
    """Return the environment that actions will see: variables of this process, under config, under marker."""
    return _LayeredEnvironment({**os.environ, **config, **marker})


def given(plugin_env: Any, marker: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a test gives over the config file's env.

    Args:
        plugin_env: What the fixture returned: our own, or, where a user overrides it, a mapping of variables.
        marker: The marker's `env`.
    """
    if isinstance(plugin_env, _LayeredEnvironment) or plugin_env is None:
        return dict(marker)
    return {**plugin_env, **marker}

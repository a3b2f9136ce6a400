"""The environment of a test's actions: what the `plugin_env` fixture returns, and what of it executors get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_runtime.environment import PluginEnvironment, Variables


class _Inherited(str):
    """A value from this process's own environment. Tests can read it, but it is never sent with a call."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class _InheritedVariables(Variables):
    __slots__ = ()

    def to_dict(self) -> dict[str, str]:
        return {name: _Inherited(value) for name, value in super().to_dict().items()}


class _Layered(PluginEnvironment):
    """What the fixture returns: this process's variables, overridden by `given`, those of config file and marker."""

    __slots__ = ("given",)

    given: Mapping[str, Any]


def layer_over(config: Mapping[str, Any], marker: Mapping[str, Any]) -> PluginEnvironment:
    """Return the environment that actions get: this process's variables, overridden by config, then by marker."""
    given = {**config, **marker}
    env = _Layered.over(_InheritedVariables(), given)
    env.given = given
    return env


def plugin_env_of(plugin_env: Mapping[str, Any] | None, marker: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that a test adds to the environment of the process that its actions run in.

    Args:
        plugin_env: What the fixture returned: our own environment, or, if a user overrides the fixture, a mapping of
            variables, which may be derived from it.
        marker: The marker's `env`.
    """
    if type(plugin_env) is _Layered:
        return {**plugin_env.given, **marker}
    own = {name: value for name, value in (plugin_env or {}).items() if not isinstance(value, _Inherited)}
    return {**own, **marker}

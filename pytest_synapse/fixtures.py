"""The fixtures. They import the runtime when a test asks for one, not before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_synapse.modes import marked, modes_of
from pytest_synapse.session import SynapseSession

if TYPE_CHECKING:
    from synapse_runtime.environment import PluginEnvironment
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.plugins.plugin import Plugin


@pytest.fixture
def synapse_mode(request: pytest.FixtureRequest) -> str:
    """The mode this test runs in: 'local', 'task' or 'job'.

    Set by @pytest.mark.synapse(mode=...), --synapse-mode, the ini option synapse_mode or SYNAPSE_MODE. A test that
    behaves differently in different modes can ask for it; most never need to.
    """
    if hasattr(request, "param"):
        return str(request.param)
    return modes_of(request.node, request.config)[0]


@pytest.fixture
def synapse_plugin(request: pytest.FixtureRequest) -> Plugin:
    """The plugin under test: its root directory, manifest and action names.

    Named by --synapse-plugin or the ini option synapse_plugin, else the nearest config.yaml above the test file.
    """
    plugin = _plugin(request)
    if plugin is None:
        pytest.fail(
            f"no plugin found: there is no plugin's config.yaml at or above {request.path.parent}; "
            "name one with --synapse-plugin or the ini option synapse_plugin",
            pytrace=False,
        )
    return plugin


@pytest.fixture
def plugin_env(request: pytest.FixtureRequest) -> PluginEnvironment:
    """The environment that the actions of this test get, with typed getters: plugin_env.get_int('BATCH_SIZE').

    Layers, the later wins: this process's variables, 'env' of config.yaml, env= of @pytest.mark.synapse. Override it
    in a conftest or test class to give variables to many tests: return a dict, the marker's env= still wins over it.
    """
    from pytest_synapse.env_fixture import layer_over

    plugin = _plugin(request)
    return layer_over({} if plugin is None else plugin.manifest.env, marked(request.node).get("env", {}))


@pytest.fixture
def synapse_executor(request: pytest.FixtureRequest, synapse_mode: str, plugin_env: Any) -> Iterator[Executor]:
    """Runs actions, in the mode that was chosen for this test.

    synapse_executor.execute(action, params) returns the action's result, or raises ValidationError where the params
    do not fit and ExecutionError where the action failed, with its own exception as __cause__.
    synapse_executor.run(action, params) returns the ActionRun: result or error, events, metrics, output, duration.
    An action is a class, an @action function, an entrypoint 'module:Name', or an action's name in the plugin.
    """
    from pytest_synapse.env_fixture import plugin_env_of
    from pytest_synapse.run_reporting import observe

    env = plugin_env_of(plugin_env, marked(request.node).get("env", {}))
    session = SynapseSession.of(request.config)
    item = request.node
    with (
        session.executor(item, synapse_mode, env, _plugin(request)) as executor,
        observe(item, executor, session.slowest()),
    ):
        yield executor


def _plugin(request: pytest.FixtureRequest) -> Plugin | None:
    from synapse_runtime.errors import PluginError

    try:
        return SynapseSession.of(request.config).plugin_for(request.path)
    except PluginError as error:
        problem = str(error)
    pytest.fail(f"the plugin of this test cannot be used: {problem}", pytrace=False)

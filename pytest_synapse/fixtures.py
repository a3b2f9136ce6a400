"""The fixtures. They import the runtime when a test requests one, not earlier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_synapse.modes import marker_kwargs, modes_of
from pytest_synapse.session import SynapseSession

if TYPE_CHECKING:
    from pytest_synapse.backend import SynapseBackend
    from synapse_runtime.environment import PluginEnvironment
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.plugins.plugin import Plugin


@pytest.fixture
def synapse_mode(request: pytest.FixtureRequest) -> str:
    """The mode this test runs in: 'local', 'task', 'job' or 'remote'.

    Set by @pytest.mark.synapse(mode=...), --synapse-mode, the ini option synapse_mode or SYNAPSE_MODE. A test that
    behaves differently in different modes can request it; most tests do not need it.
    """
    if hasattr(request, "param"):
        return str(request.param)
    return modes_of(request.node, request.config)[0]


@pytest.fixture
def synapse_plugin(request: pytest.FixtureRequest) -> Plugin:
    """The plugin under test: its root directory, manifest and action names.

    Set by --synapse-plugin or the ini option synapse_plugin. Default: the nearest config.yaml above the test file.
    """
    plugin = _plugin(request)
    if plugin is None:
        pytest.fail(
            f"no plugin found: no plugin's config.yaml in {request.path.parent} or a directory above it; "
            "pass --synapse-plugin or set the ini option synapse_plugin",
            pytrace=False,
        )
    return plugin


@pytest.fixture
def plugin_env(request: pytest.FixtureRequest) -> PluginEnvironment:
    """The environment of this test's actions, with typed getters: plugin_env.get_int('BATCH_SIZE').

    Merges this process's variables, 'env' of config.yaml, env= of @pytest.mark.synapse; later ones win. To set
    variables for many tests, override it in a conftest or test class and return a dict; the marker's env= still wins.
    """
    from pytest_synapse.env_fixture import layered_environment

    plugin = _plugin(request)
    config = {} if plugin is None else plugin.manifest.env
    return layered_environment(request.node, config, marker_kwargs(request.node).get("env", {}))


@pytest.fixture
def synapse_executor(request: pytest.FixtureRequest, synapse_mode: str, plugin_env: Any) -> Iterator[Executor]:
    """Runs actions in the mode of this test.

    synapse_executor.execute(action, params) returns the action's result. It raises ValidationError if the params are
    invalid, and ExecutionError if the action failed, with the action's own exception as __cause__.
    synapse_executor.run(action, params) returns the ActionRun: result or error, events, metrics, output, duration.
    An action is a class, an @action function, an entrypoint 'module:Name', or an action's name in the plugin.
    """
    from pytest_synapse.env_fixture import plugin_env_of
    from pytest_synapse.run_reporting import observe
    from synapse_runtime.errors import RemoteError

    env = plugin_env_of(request.node, plugin_env, marker_kwargs(request.node).get("env", {}))
    session = SynapseSession.of(request.config)
    item = request.node
    if "synapse_backend" in request.fixturenames and synapse_mode != "remote":  # whose jobs have tokens of their own
        backend = request.getfixturevalue("synapse_backend")
        env = {"SYNAPSE_HOST": backend.host, "SYNAPSE_ACCESS_TOKEN": backend.token, **env}
    with contextlib.ExitStack() as stack:
        problem = ""
        try:
            executor = stack.enter_context(session.executor(item, synapse_mode, env, _plugin(request)))
        except RemoteError as error:
            problem = str(error)
        if problem:
            pytest.fail(problem, pytrace=False)
        strict = session.is_remote_strict()
        stack.enter_context(observe(item, executor, session.slowest(), skips_refused=not strict))
        yield executor


@pytest.fixture
def synapse_backend(request: pytest.FixtureRequest) -> SynapseBackend:
    """The backend of remote mode: its host, an access token, and a client; in every mode.

    For tests of code that talks to a backend; `ctx.client` of an action is a client of it too.
    Unless --synapse-host names one, it is started for this run.
    """
    from synapse_runtime.errors import RemoteError

    try:
        return SynapseSession.of(request.config).backend()
    except RemoteError as error:
        problem = str(error)
    pytest.fail(problem, pytrace=False)


def _plugin(request: pytest.FixtureRequest) -> Plugin | None:
    from synapse_runtime.errors import PluginError

    try:
        return SynapseSession.of(request.config).plugin_for(request.path)
    except PluginError as error:
        problem = str(error)
    pytest.fail(f"{_plugin_source(request.config)}: {problem}", pytrace=False)


def _plugin_source(config: pytest.Config) -> str:
    if config.getoption("synapse_plugin"):
        return "--synapse-plugin"
    if config.getini("synapse_plugin"):
        return f"synapse_plugin in {config.inipath}"
    return "cannot load the plugin of this test"

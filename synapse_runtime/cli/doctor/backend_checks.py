"""Checks of `synapse doctor` for the backend that remote mode would use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from synapse_runtime.cli.doctor.findings import Finding, ok, problem, warning
from synapse_runtime.errors import ConfigError, RemoteError

_INSTALL = "pip install 'pytest-synapse-harness[remote]'"
_LOGIN = "run `synapse login`"


def login() -> Iterator[Finding]:
    """Check the host, the credentials and the agent, if remote mode is set up, by one request."""
    from synapse_runtime.executors.remote.config import config_file, resolve_settings

    problems: list[str] = []
    try:
        settings = resolve_settings(on_problem=problems.append)
    except (ConfigError, RemoteError) as error:
        yield problem("login", str(error), f"correct it, or {_LOGIN}")
        return
    for text in problems:
        yield warning("login", text, f"chmod 600 {config_file()}")
    if settings.access_token is None and settings.user_token is None:
        yield ok("login", "not logged in; required for remote mode")
        return
    if importlib.util.find_spec("httpx") is None or importlib.util.find_spec("stamina") is None:
        yield problem("login", "remote mode needs httpx and stamina, which are not installed", _INSTALL)
        return
    from synapse_runtime.executors.remote.backend import Backend
    from synapse_runtime.executors.remote.transport import Timeouts, Transport

    try:
        settings.require_credentials()
        backend = Backend(Transport(settings, timeouts=Timeouts(connect=3.0, read=4.0, retry=0.1)))
        agents = backend.agents()
    except RemoteError as error:
        yield problem("login", f"{error} (host from {settings.sources.get('host')})", _LOGIN)
        return
    yield ok("login", f"{settings.host} accepts the token of {settings.token_source}")
    connected = [agent.name for agent in agents if agent.is_connected]
    selected = [agent for agent in agents if settings.agent in (str(agent.id), agent.name)]
    if settings.agent is not None and not selected:
        yield problem("agent", f"{settings.host} has no agent {settings.agent}", "run `synapse agent select`")
    elif selected and not selected[0].is_connected:
        yield warning("agent", f"{selected[0].name} is not connected, so jobs wait for it", "start the agent")
    elif selected:
        yield ok("agent", f"{selected[0].name}, connected")
    elif len(connected) != 1:
        found = ", ".join(connected) or "none"
        yield warning("agent", f"not selected; connected agents: {found}", "run `synapse agent select`")
    else:
        yield ok("agent", f"{connected[0]}, the only connected one")

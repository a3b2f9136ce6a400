"""`synapse login`, `logout` and `whoami`: the credentials in `~/.synapse/config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, to_json
from synapse_runtime.cli.options import AsJson
from synapse_runtime.cli.remote import Host, Insecure, Tenant, Token, TokenFile, connect, is_terminal, settings_from
from synapse_runtime.cli.tokens import given_token
from synapse_runtime.cli.usage_error import usage_error
from synapse_runtime.errors import RemoteError

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.config import Settings

# Everything in the file that belongs to a login.
_KEYS = ("access_token", "user_token", "tenant", "agent")


@dataclass(frozen=True)
class _Identity:
    """What `whoami` shows."""

    host: str
    host_from: str
    token: str
    token_from: str
    tenant: str | None
    agent: str | None
    runtime: bool


def login(
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Use the server of this user that is running on this machine; with --host, the one there."
        ),
    ] = False,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Check an access token and store it, with the host, in ~/.synapse/config.json.

    Prompts for what is not given.
    """
    from synapse_runtime.executors.remote import config

    with exit_on_errors():
        given = given_token(token, token_file)
        if local:
            if given is not None:
                raise usage_error("cannot be used with --token or --token-file", "--local")
            host, given = _local_server(host)
        before = config.read_file()
        if host is None:
            default = settings_from(None, None, None, None).host
            if not is_terminal():
                raise usage_error("required without a terminal", "--host")
            host = str(typer.prompt("Host", default=default, err=True))
        if given is None:
            if not is_terminal():
                raise usage_error("required without a terminal", "--token-file")
            given = str(typer.prompt("Access token", hide_input=True, err=True))
        settings = config.resolve_settings(host, given)
        backend = connect(settings, insecure=insecure)
        agents = backend.agents()
        changes: dict[str, Any] = {"host": settings.host, "access_token": given.strip()}
        if before.get("host") not in (None, settings.host):
            changes["agent"] = None  # which is one of the other host
        path = config.update_file(changes)
        if "user_token" in before:
            print_note(f"{path} has a user token, too, which is used instead; `synapse logout` removes both")
        connected = [agent.name for agent in agents if agent.is_connected]
        if as_json:
            print_line(to_json({"host": settings.host, "file": path, "agents": connected}))
        else:
            print_line(f"Logged in to {settings.host}; saved in {path}.")
            print_line(f"Connected agents: {', '.join(connected) or 'none'}")


def logout(as_json: AsJson = False) -> None:
    """Remove the credentials and the agent from ~/.synapse/config.json.

    The host is kept. The token stays valid: revoke it at the backend if it is no longer needed.
    """
    from synapse_runtime.executors.remote import config

    with exit_on_errors():
        before = config.read_file()
        removed = [key for key in _KEYS if key in before]
        if removed:
            config.update_file(dict.fromkeys(removed))
        if as_json:
            print_line(to_json({"removed": removed}))
        else:
            print_line(f"Removed from {config.config_file()}: {', '.join(removed)}." if removed else "Not logged in.")


def whoami(
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show which backend and credentials are used, and where they are from, after checking them.

    Exit status: 0 the backend accepts them; 3 it does not, or cannot be reached.
    """
    with exit_on_errors():
        settings = settings_from(host, token, token_file, tenant)
        backend = connect(settings, insecure=insecure)
        backend.agents()
        identity = _identity(settings, runtime=backend.has_runtime)
        if as_json:
            print_line(to_json(identity))
            return
        print_line(f"host    {identity.host} ({identity.host_from})")
        print_line(f"token   {identity.token} ({identity.token_from}), valid")
        print_line(f"tenant  {identity.tenant or 'not set'}")
        print_line(f"agent   {identity.agent or 'not set'}")
        print_line(f"server  {'with /runtime/' if identity.runtime else 'plain'}")


def _identity(settings: Settings, *, runtime: bool) -> _Identity:
    return _Identity(
        host=settings.host,
        host_from=settings.sources.get("host", ""),
        token="user token" if settings.user_token is not None else "access token",
        token_from=settings.token_source,
        tenant=settings.tenant,
        agent=settings.agent,
        runtime=runtime,
    )


def _local_server(host: str | None) -> tuple[str, str]:
    """Return the host and token of the newest running server of this user on this machine, or of the one at a host."""
    from synapse_runtime.executors.remote.config import checked_host, local_servers, servers_directory

    running = local_servers()
    servers = running if host is None else [server for server in running if server.host == checked_host(host)]
    if not servers:
        where = "on this machine" if host is None else f"at {host}"
        others = ", ".join(server.host for server in running)
        hint = f"; running are {others}" if others else f" (looked in {servers_directory()})"
        raise RemoteError(f"no server of this user is running {where}{hint}")
    if len(servers) > 1:
        others = ", ".join(server.host for server in servers[1:])
        print_note(f"several servers are running; using the newest, {servers[0].host}, not {others}")
    return servers[0].host, servers[0].token.reveal()

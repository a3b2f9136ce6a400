"""`synapse agent …`: the agents of a backend, and which of them runs this user's jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, show_table, to_json
from synapse_runtime.cli.options import AsJson
from synapse_runtime.cli.remote import Host, Insecure, Tenant, Token, TokenFile, connect, is_terminal, settings_from
from synapse_runtime.errors import RemoteError

if TYPE_CHECKING:
    from synapse_runtime.executors.remote.backend import Agent, Backend

app = typer.Typer(
    help="List, select and show the agents of a Synapse backend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _agent() -> None:
    """List, select and show the agents of a Synapse backend."""


@app.command("list")
def list_agents(
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """List the agents; an asterisk marks the selected one."""
    with exit_on_errors():
        settings = settings_from(host, token, token_file, tenant)
        agents = connect(settings, insecure=insecure).agents()
        selected = settings.agent
        if as_json:
            print_line(to_json([_as_data(agent) | {"selected": _is(agent, selected)} for agent in agents]))
        elif agents:
            rows = [
                ("*" if _is(agent, selected) else "", str(agent.id), agent.name, agent.status, agent.url or "")
                for agent in agents
            ]
            show_table(("", "ID", "NAME", "STATUS", "URL"), rows)
        else:
            print_note("this backend has no agents")


@app.command()
def select(
    name: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="Id or name. Prompts on a terminal if several are connected.")
    ] = None,
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    tenant: Tenant = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Select the agent that runs this user's jobs, and store it in ~/.synapse/config.json."""
    from synapse_runtime.executors.remote.config import update_file

    with exit_on_errors():
        backend = connect(settings_from(host, token, token_file, tenant), insecure=insecure)
        agent = _choose(backend, name)
        found = {"id": agent.id, "name": agent.name, "url": agent.url, "token": agent.token}
        path = update_file({"agent": {key: value for key, value in found.items() if value}})
        if as_json:
            print_line(to_json(_as_data(agent)))
        else:
            print_line(f"Selected {agent.name} (id {agent.id}); saved in {path}.")
        if not agent.is_connected:
            print_note(f"{agent.name} is not connected now, so jobs wait for it")


@app.command()
def show(as_json: AsJson = False) -> None:
    """Show the selected agent."""
    from synapse_runtime.executors.remote.config import read_file

    with exit_on_errors():
        agent = read_file().get("agent")
        if not isinstance(agent, dict):
            raise RemoteError("no agent is selected: run `synapse agent select`")
        shown = {key: agent.get(key) for key in ("id", "name", "url")}
        if as_json:
            print_line(to_json(shown))
        else:
            for key, value in shown.items():
                print_line(f"{key:<5}{'not set' if value is None else value}")


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the selected agent from ~/.synapse/config.json."""
    from synapse_runtime.executors.remote.config import read_file, update_file

    with exit_on_errors():
        is_set = "agent" in read_file()
        if is_set and not yes and is_terminal():
            typer.confirm("Remove the selected agent?", default=True, abort=True, err=True)
        if is_set:
            update_file({"agent": None})
        if as_json:
            print_line(to_json({"cleared": is_set}))
        else:
            print_line("Removed the selected agent." if is_set else "No agent is selected.")


def _choose(backend: Backend, name: str | None) -> Agent:
    if name is None and is_terminal():
        agents = backend.agents()
        if sum(agent.is_connected for agent in agents) != 1 and agents:
            rows = [(str(agent.id), agent.name, agent.status) for agent in agents]
            show_table(("ID", "NAME", "STATUS"), rows)
            name = str(typer.prompt("Agent (id or name)", err=True)).strip()
    return backend.find_agent(name)


def _as_data(agent: Agent) -> dict[str, Any]:
    return {"id": agent.id, "name": agent.name, "status": agent.status, "url": agent.url}


def _is(agent: Agent, selected: str | None) -> bool:
    return selected in (str(agent.id), agent.name)

"""The command tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from synapse_runtime import __version__
from synapse_runtime.cli.lazy import LazyCommand, LazyGroup


class _Commands(LazyGroup):
    lazy_commands = (
        LazyCommand(
            "doctor",
            "doctor.command:doctor",
            "Check the installation, plugin, cluster, backend and machine.",
        ),
        LazyCommand("plugin", "plugin:app", "Create, check, inspect, test and run plugins."),
        LazyCommand("job", "job:app", "List, inspect, stop and delete jobs."),
        LazyCommand("login", "login:login", "Check an access token and store it"),
        LazyCommand("logout", "login:logout", "Remove the credentials and the agent"),
        LazyCommand("whoami", "login:whoami", "Show which backend and credentials are used"),
        LazyCommand("agent", "agent:app", "List, select and show the agents of a Synapse backend."),
        LazyCommand("cluster", "cluster:app", "", "Start, inspect and stop the warm cluster of this machine."),
        LazyCommand("serve", "serve:serve", "Run a Synapse backend on this machine until Ctrl-C."),
    )


app = typer.Typer(
    cls=_Commands,
    name="synapse",
    help="Run the actions of Synapse plugins: in this process, on a Ray actor, as a Ray job, or through a Synapse "
    "backend.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"synapse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Define the options of `synapse` itself."""


def run(arguments: Sequence[str] | None = None, *, usage_error: BaseException | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: The command line. Default: that of this process.
        usage_error: The error to report instead of running the command, if the command line is already known to be
            invalid.
    """
    try:
        app(args=arguments, obj=usage_error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0

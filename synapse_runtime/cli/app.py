"""The command tree."""

from __future__ import annotations

from typing import Annotated

import typer

from synapse_runtime import __version__
from synapse_runtime.cli import cluster, job, plugin
from synapse_runtime.cli.doctor import doctor

app = typer.Typer(
    name="synapse",
    help="Run the actions of Synapse plugins: in this process, on a Ray actor, or as a Ray job.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(plugin.app, name="plugin")
app.add_typer(job.app, name="job")
app.add_typer(cluster.app, name="cluster", short_help="Keep a cluster warm on this machine.")
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"synapse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """The options of `synapse` itself."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        app(args=arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0

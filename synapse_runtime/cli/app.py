"""The command tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from synapse_runtime import __version__
from synapse_runtime.cli.lazy import LazyCommand, LazyGroup


class _Commands(LazyGroup):
    later = (
        LazyCommand(
            "doctor",
            "doctor:doctor",
            "Tell what is installed, which cluster would be used, what is wrong and the fix.",
        ),
        LazyCommand("plugin", "plugin:app", "Make, check, look at, test and run plugins."),
        LazyCommand("job", "job:app", "Look after jobs."),
        LazyCommand("cluster", "cluster:app", "", "Keep a cluster warm on this machine."),
    )


app = typer.Typer(
    cls=_Commands,
    name="synapse",
    help="Run the actions of Synapse plugins: in this process, on a Ray actor, or as a Ray job.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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


def run(arguments: Sequence[str] | None = None, *, refusal: BaseException | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: The command line; that of this process by default.
        refusal: Why the command refuses it, if it is known already: then that is told, and nothing else is done.
    """
    try:
        app(args=arguments, obj=refusal)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0

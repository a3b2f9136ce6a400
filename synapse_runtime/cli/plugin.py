"""`synapse plugin …`: what one does with a plugin."""

from __future__ import annotations

import typer

from synapse_runtime.cli.lazy import LazyCommand, LazyGroup

_ABOUT = "Make, check, look at, test and run plugins."


class _Commands(LazyGroup):
    later = (
        LazyCommand("create", "create:create", "Make a new plugin, with actions and tests to begin with."),
        LazyCommand("check", "check:check", "", "Tell all that is wrong with a plugin."),
        LazyCommand("update-config", "check:update_config", "", "Bring the code's actions into the config file."),
        LazyCommand("list", "show:list_plugins", "List the plugins in a directory and below it."),
        LazyCommand("actions", "show:list_actions", "List a plugin's actions and what params they take."),
        LazyCommand("schema", "show:schema", "Print the JSON Schema of an action's params."),
        LazyCommand("test", "testing:app", "", "Run pytest over a plugin's tests."),
        LazyCommand("run", "run:run", "Run an action of a plugin and print its result."),
    )


app = typer.Typer(cls=_Commands, help=_ABOUT, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback(help=_ABOUT)
def _plugin() -> None:
    """Hold the commands together."""

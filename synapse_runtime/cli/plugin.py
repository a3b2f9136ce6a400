"""`synapse plugin …`: what one does with a plugin."""

from __future__ import annotations

import typer

from synapse_runtime.cli.later import Later, LaterGroup

_ABOUT = "Make, check, look at, test and run plugins."


class _Commands(LaterGroup):
    later = (
        Later("create", "create:create", "Make a new plugin, with actions and tests to begin with."),
        Later("check", "check:check", "", "Tell all that is wrong with a plugin."),
        Later("update-config", "check:update_config", "", "Bring the code's actions into the config file."),
        Later("list", "show:list_plugins", "List the plugins in a directory and below it."),
        Later("actions", "show:list_actions", "List a plugin's actions and what params they take."),
        Later("schema", "show:schema", "Print the JSON Schema of an action's params."),
        Later("test", "testing:app", "", "Run pytest over a plugin's tests."),
        Later("run", "run:run", "Run an action of a plugin and print its result."),
    )


app = typer.Typer(cls=_Commands, help=_ABOUT, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback(help=_ABOUT)
def _plugin() -> None:
    """Hold the commands together."""

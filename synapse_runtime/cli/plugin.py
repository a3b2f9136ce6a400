"""`synapse plugin …`: commands that work on a plugin."""

from __future__ import annotations

import typer

from synapse_runtime.cli.lazy import LazyCommand, LazyGroup

_ABOUT = "Create, check, inspect, test and run plugins."


class _Commands(LazyGroup):
    lazy_commands = (
        LazyCommand("create", "create:create", "Create a plugin with example actions and tests."),
        LazyCommand("check", "check:check", "", "Check a plugin for problems."),
        LazyCommand("update-config", "check:update_config", "", "Write the code's actions into the config file."),
        LazyCommand("list", "show:list_plugins", "List the plugins in a directory and below it."),
        LazyCommand("actions", "show:list_actions", "List a plugin's actions and their params."),
        LazyCommand("schema", "show:schema", "Print the JSON Schema of an action's params."),
        LazyCommand("test", "testing:app", "", "Run a plugin's tests with pytest."),
        LazyCommand("publish", "publish:publish", "Upload a plugin to a Synapse backend as a release."),
        LazyCommand("run", "run:run", "Run an action of a plugin and print its result."),
    )


app = typer.Typer(cls=_Commands, help=_ABOUT, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback(help=_ABOUT)
def _plugin() -> None:
    """Group the commands."""

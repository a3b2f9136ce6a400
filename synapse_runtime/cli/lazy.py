"""Commands that are imported only when they are run, so that other commands and `--help` start fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from synapse_runtime.cli import collector


class LazyCommand(TyperCommand):
    """Placeholder for a command, or a group of commands, in the list of its group.

    Args:
        name: The command's name.
        target: A function or a `typer.Typer` in this package, as `module:name`.
        help: The start of the command's own help.
        short_help: The text in the list of commands, if it differs from `help`.
    """

    def __init__(self, name: str, target: str, help: str, short_help: str | None = None) -> None:
        super().__init__(name, help=help, short_help=short_help, rich_markup_mode=None)
        self._target = target

    def load(self) -> Any:
        """Import the command and return it."""
        module, _, attribute = self._target.partition(":")
        app = getattr(importlib.import_module(f"synapse_runtime.cli.{module}"), attribute)
        if not isinstance(app, typer.Typer):
            function, app = app, typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(self.name)(function)
        command = get_command(app)
        if not isinstance(command, LazyGroup):
            command.callback = _after_imports(command.callback)
        return command


class LazyGroup(TyperGroup):
    """A group whose commands are imported only when they are run.

    Attributes:
        lazy_commands: Its commands, in the order in which they are listed.
    """

    lazy_commands: ClassVar[tuple[LazyCommand, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {str(command.name): command for command in self.lazy_commands}

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find and import the command that the arguments name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _after_imports(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    def resume_and_call(*args: Any, **kwargs: Any) -> Any:
        collector.resume()
        return None if callback is None else callback(*args, **kwargs)

    return resume_and_call

"""Commands that are imported when they are used: to list them, or to use another, takes none of their time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from synapse_runtime.cli import collector


class LazyCommand(TyperCommand):
    """Stands for a command, or a group of commands, in the list of its group.

    Args:
        name: The command's name.
        place: Where it is: `module:name`, of a function or a `typer.Typer`, in this package.
        help: What the command's own help begins with.
        short_help: What is listed instead.
    """

    def __init__(self, name: str, place: str, help: str, short_help: str | None = None) -> None:
        super().__init__(name, help=help, short_help=short_help, rich_markup_mode=None)
        self._place = place

    def load(self) -> Any:
        """Import the command and return it."""
        module, _, attribute = self._place.partition(":")
        app = getattr(importlib.import_module(f"synapse_runtime.cli.{module}"), attribute)
        if not isinstance(app, typer.Typer):
            function, app = app, typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(self.name)(function)
        command = get_command(app)
        if not isinstance(command, LazyGroup):
            command.callback = _after_imports(command.callback)
        return command


class LazyGroup(TyperGroup):
    """A group that knows its commands by name alone.

    Attributes:
        later: Its commands, in the order in which they are listed.
    """

    later: ClassVar[tuple[LazyCommand, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {str(command.name): command for command in self.later}

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find the command that a command line means: itself, not what stands for it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _after_imports(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    def begin(*args: Any, **kwargs: Any) -> Any:
        collector.resume()
        return None if callback is None else callback(*args, **kwargs)

    return begin

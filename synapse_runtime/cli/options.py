"""Options shared by several commands, and their shell completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synapse_runtime.errors import ConfigError


def action_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete an action name; returns names and descriptions.

    A shell calls this on each press of the Tab key, so the config file is read without validating it. If the file is
    broken there are no completions; the command itself reports the problem.
    """
    return [(name, about) for name, about in _actions_at(ctx.params.get("path")) if name.startswith(incomplete)]


def category_names(incomplete: str) -> list[str]:
    """Complete a category."""
    from synapse_runtime.enums import PluginCategory

    return [category.value for category in PluginCategory if category.startswith(incomplete)]


ActionName = Annotated[
    str, typer.Argument(metavar="ACTION", help="Action name, such as train.", autocompletion=action_names)
]
PluginPath = Annotated[
    Path,
    typer.Option(
        "--path",
        help="Plugin directory. Default: the nearest plugin at or above the current directory.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _actions_at(path: Path | str | None) -> list[tuple[str, str]]:
    from synapse_runtime.plugins import yaml_reader
    from synapse_runtime.plugins.discovery import find_config_above

    start = Path.cwd() if path is None else Path(path)
    config = start if start.is_file() else find_config_above(start.absolute())
    if config is None:
        return []
    try:
        content = yaml_reader.parse(yaml_reader.read_text(config)).data
    except ConfigError:
        return []
    actions = content.get("actions") if isinstance(content, dict) else None
    if isinstance(actions, list):
        actions = {spec.get("name"): spec for spec in actions if isinstance(spec, dict)}
    if not isinstance(actions, dict):
        return []
    return [(name, _about(spec)) for name, spec in actions.items() if isinstance(name, str)]


def _about(spec: object) -> str:
    description = spec.get("description") if isinstance(spec, dict) else None
    return " ".join(description.split()) if isinstance(description, str) else ""

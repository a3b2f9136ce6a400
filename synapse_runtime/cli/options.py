"""Options that several commands share, and what completes them in a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synapse_runtime.errors import ConfigError


def action_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the actions that a word may become, with what they do. A shell asks on each press of the Tab key.

    So the config file is read as it is, without our model of it, and where it is broken there are none: what is wrong
    with it is told by the command itself.
    """
    return [(name, about) for name, about in _actions_at(ctx.params.get("path")) if name.startswith(incomplete)]


def category_names(incomplete: str) -> list[str]:
    """Return the categories that a word may become."""
    from synapse_runtime.enums import PluginCategory

    return [category.value for category in PluginCategory if category.startswith(incomplete)]


ActionName = Annotated[
    str, typer.Argument(metavar="ACTION", help="The action, such as train.", autocompletion=action_names)
]
PluginPath = Annotated[Path, typer.Option("--path", help="The plugin's directory. Default: around here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def _actions_at(path: Path | str | None) -> list[tuple[str, str]]:
    from synapse_runtime.plugins import yaml_reader
    from synapse_runtime.plugins.discovery import config_file_in, find_config_above

    place = Path.cwd() if path is None else Path(path)
    config = place if place.is_file() else config_file_in(place) or find_config_above(place.absolute())
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

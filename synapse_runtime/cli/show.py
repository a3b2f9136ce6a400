"""`synapse plugin list`, `actions` and `schema`: show plugins, their actions and their params."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synapse_runtime.cli.console import (
    exit_on_errors,
    only_results_on_stdout,
    print_line,
    print_note,
    printable,
    report_config_problems,
    show_table,
    to_json,
)
from synapse_runtime.cli.options import ActionName, AsJson, PluginPath
from synapse_runtime.cli.plugin_lookup import find_plugin, import_action
from synapse_runtime.errors import ConfigError, ExecutionError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synapse_runtime.cli.param_docs import Param
    from synapse_runtime.plugins.plugin import Plugin

# Directories of third-party or generated code.
_SKIPPED = frozenset({"node_modules", "site-packages", "__pycache__"})


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin on disk, or a problem of its config file.

    Attributes:
        code: Its unique id.
        name: Its display name.
        version: Its version.
        actions: The names of its actions.
        path: Its directory.
        problem: Why it cannot be read; the other fields are then empty.
    """

    path: Path
    code: str = ""
    name: str = ""
    version: str = ""
    actions: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class ShownAction:
    """An action, as `synapse plugin actions` shows it.

    Attributes:
        name: Its name.
        method: How it runs in production.
        entrypoint: Its entrypoint.
        description: Its description, in one line.
        params: Its params; None if it has no params model, or cannot be imported.
        problem: Why it cannot be imported.
    """

    name: str
    method: str
    entrypoint: str
    description: str
    params: list[Param] | None = None
    problem: str | None = None


def list_plugins(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIRECTORY", help="Directory to search, with all directories below.", show_default=False
        ),
    ] = Path("."),
    as_json: AsJson = False,
) -> None:
    """List the plugins in a directory and below it.

    Hidden directories, virtual environments, node_modules and installed packages are skipped. A plugin that cannot be
    read is listed with its problem.
    """
    with exit_on_errors():
        if not directory.is_dir():
            raise ConfigError("no such directory", path=directory)
        found = [_read(path) for path in _plugin_directories(directory)]
        if as_json:
            print_line(to_json(found))
            return
        if not found:
            print_note(f"no plugins in {directory.absolute()} or below; create one with `synapse plugin create`")
            return
        headings = ["CODE", "NAME", "VERSION", "ACTIONS", "PATH"]
        rows = [
            [one.code, one.name, one.version, ", ".join(one.actions), _relative(one.path, directory)] for one in found
        ]
        if any(one.problem for one in found):
            headings.append("PROBLEM")
            rows = [[*row, one.problem or ""] for row, one in zip(rows, found, strict=True)]
        show_table(headings, rows)


def list_actions(path: PluginPath = Path("."), as_json: AsJson = False) -> None:
    """List a plugin's actions and their params.

    An action that cannot be imported is listed with the reason. The exit status is 0 even then; `synapse plugin check`
    exits with 1.
    """
    with exit_on_errors():
        with only_results_on_stdout():  # modules may print when they are imported
            plugin = find_plugin(path)
            report_config_problems(plugin.manifest)
            actions = [_shown(plugin, name) for name in plugin.action_names]
        if as_json:
            print_line(to_json(actions))
        elif not actions:
            print_note(f"plugin {plugin.manifest.code} has no actions")
        else:
            for number, action in enumerate(actions):
                _show_action(action, is_first=number == 0)


def schema(
    action: ActionName,
    path: PluginPath = Path("."),
    result: Annotated[bool, typer.Option("--result", help="Print the schema of the action's result instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on one line.")] = False,
) -> None:
    """Print the JSON Schema of an action's params.

    Exit status 1 if the action has no such model, or cannot be imported.
    """
    with exit_on_errors():
        from synapse_runtime.action import params_model_of, result_model_of

        with only_results_on_stdout():
            target = import_action(find_plugin(path), action)
        model = result_model_of(target) if result else params_model_of(target)
        if model is None:
            text = "no result model: it may return anything" if result else "no params model: it accepts any params"
            print_line(f"error: {action} has {text}", err=True, fg="red")
            raise typer.Exit(1)
        print_line(to_json(_schema_of(model, result=result), indent=None if as_json else 2))


def _plugin_directories(top: Path) -> Iterator[Path]:
    """Yield the directories that have a plugin's config file, each once, even if links lead to it."""
    from synapse_runtime.plugins.discovery import is_plugin

    seen: set[tuple[int, int]] = set()
    for root, directories, files in os.walk(top, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            directories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        path = Path(root)
        if "pyvenv.cfg" in files and path != top:
            directories.clear()
            continue
        directories[:] = sorted(name for name in directories if name not in _SKIPPED and not name.startswith("."))
        if is_plugin(path):
            yield path


def _read(path: Path) -> FoundPlugin:
    from synapse_runtime.plugins.plugin import Plugin

    try:
        plugin = Plugin.load(path)
    except ConfigError as error:
        return FoundPlugin(path.absolute(), problem=str(error))
    manifest = plugin.manifest
    return FoundPlugin(path.absolute(), manifest.code, manifest.name, manifest.version, plugin.action_names)


def _relative(path: Path, directory: Path) -> str:
    return os.path.relpath(path, directory.absolute())


def _shown(plugin: Plugin, name: str) -> ShownAction:
    from synapse_runtime.action import params_model_of
    from synapse_runtime.cli.param_docs import params_of

    spec = plugin.manifest.actions[name]
    about = (name, spec.method, spec.entrypoint, spec.description)
    try:
        model = params_model_of(import_action(plugin, name))
    except (ConfigError, ExecutionError) as error:
        return ShownAction(*about, problem=str(error))
    return ShownAction(*about, params=None if model is None else params_of(model))


def _show_action(action: ShownAction, *, is_first: bool) -> None:
    if not is_first:
        print_line()
    about = f"{action.name}  ({action.method}, {action.entrypoint or 'no entrypoint'})"
    print_line(printable(about), bold=True)
    if action.description:
        print_line(printable(action.description))
    if action.problem is not None:
        print_line(printable(f"problem: {action.problem}"), fg="red")
    elif action.params is None:
        print_line("No params model: it accepts any params.")
    elif not action.params:
        print_line("No params.")
    else:
        rows = [(param.name, param.type, param.shown_default, param.help) for param in action.params]
        show_table(("PARAM", "TYPE", "DEFAULT", "HELP"), rows)


def _schema_of(model: type[BaseModel], *, result: bool) -> dict[str, Any]:
    from pydantic.errors import PydanticUserError

    try:
        return model.model_json_schema(mode="serialization" if result else "validation")
    except PydanticUserError as error:
        raise ConfigError(f"{model.__name__} has no JSON Schema: {error.message}") from error

"""`synapse plugin create`: a new plugin, with tests that pass in every mode."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from synapse_runtime.cli.console import exit_on_errors, note, to_json
from synapse_runtime.cli.options import AsJson, category_names
from synapse_runtime.errors import ConfigError, nearest

if TYPE_CHECKING:
    from synapse_runtime.cli.scaffold import NewPlugin
    from synapse_runtime.enums import PluginCategory

_DEFAULT_CATEGORY = "custom"

T = TypeVar("T")


def create(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIRECTORY", help="Where to make it. Default: its code, here.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="Its unique id, such as my-plugin. Default: made from the name, or from DIRECTORY.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Its name for people. Default: the code.")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="CATEGORY",
            help="What it is for: neural_net, export, upload, smart_tool, post_annotation, pre_annotation, "
            "data_validation, or custom.",
            autocompletion=category_names,
        ),
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            "-a",
            metavar="ACTION",
            help="An action that it begins with; may be repeated. Default: those of the category.",
        ),
    ] = None,
    sdk: Annotated[
        bool, typer.Option("--sdk", help="Write the actions against `synapse_sdk.plugins`, for the platform.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: what is not given is as by default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new plugin, with actions and tests to begin with.

    On a terminal it asks for what is not given. What is in the directory already is never written over.
    """
    from synapse_runtime.cli import scaffold

    code = None if code is None else _checked("--code", scaffold.checked_code, code)
    name = None if name is None else _checked("--name", scaffold.checked_name, name)
    kind = None if category is None else _checked("--category", _category, category)
    actions = tuple(_checked("--action", scaffold.checked_action, given) for given in action or [])
    suggested = scaffold.code_from(name or "") or scaffold.code_from(directory.absolute().name if directory else "")
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    with exit_on_errors():
        if not (yes or asks or (code and kind)):
            raise ConfigError(
                "nobody can be asked here: give --code and --category, or --yes for defaults (see --help); "
                "--name, --action and DIRECTORY as you like"
            )
        code = code or (_ask("Code", scaffold.checked_code, suggested) if asks else suggested)
        if code is None:
            raise ConfigError("no code can be made of what was given: give --code, such as my-plugin")
        name_of_code = code.replace("-", " ").replace("_", " ").capitalize()
        name = name or (_ask("Name", scaffold.checked_name, name_of_code) if asks else name_of_code)
        kind = kind or (_ask_category() if asks else _category(_DEFAULT_CATEGORY))
        usual = scaffold.DEFAULT_ACTIONS[kind]
        actions = actions or (_ask("Actions", _actions, " ".join(usual)) if asks else usual)
        target = directory or Path(code)
        if asks and not typer.confirm(f"Make it in {target}?", default=True, err=True):
            raise typer.Abort
        plugin = scaffold.NewPlugin(code, name, kind, tuple(dict.fromkeys(actions)), sdk)
        files = plugin.files()
        scaffold.write(files, target)
    if as_json:
        made = {"code": code, "path": target.absolute(), "actions": plugin.actions, "files": list(files)}
        typer.echo(to_json(made))
    else:
        _show(plugin, target, list(files))


def _show(plugin: NewPlugin, target: Path, files: list[str]) -> None:
    typer.echo(f"Plugin {plugin.code} is in {target}:")
    for path in files:
        typer.echo(f"  {path}")
    steps = ["synapse plugin check", "synapse plugin test", f"synapse plugin run {plugin.example}"]
    if target.absolute() != Path.cwd():
        steps.insert(0, shlex.join(["cd", str(target)]))
    note("next:")
    for step in steps:
        note(f"  {step}")


def _ask_category() -> PluginCategory:
    from synapse_runtime.cli.scaffold import DEFAULT_ACTIONS

    note("Categories, and the actions that they begin with:")
    for category, actions in DEFAULT_ACTIONS.items():
        note(f"  {category:<16} {', '.join(actions)}")
    return _ask("Category", _category, _DEFAULT_CATEGORY)


def _ask(question: str, check: Callable[[str], T], default: str | None) -> T:
    def checked(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None  # the question comes again

    answer: T = typer.prompt(question, default=default, value_proc=checked, err=True)
    return answer


def _checked(option: str, check: Callable[[str], T], text: str) -> T:
    try:
        return check(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _category(text: str) -> PluginCategory:
    from synapse_runtime.enums import PluginCategory

    known = [category.value for category in PluginCategory]
    wanted = text.strip().lower().replace("-", "_")
    if wanted not in known:
        guess = nearest(wanted, known)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ValueError(f"there is no category {text!r}.{hint} There are: {', '.join(known)}.")
    return PluginCategory(wanted)


def _actions(text: str) -> tuple[str, ...]:
    from synapse_runtime.cli.scaffold import checked_action

    names = tuple(map(checked_action, text.replace(",", " ").split()))
    if not names:
        raise ValueError("a plugin begins with at least one action, such as run")
    return names

"""`synapse plugin create`: create a plugin with tests that pass in every mode."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, to_json
from synapse_runtime.cli.options import AsJson, category_names
from synapse_runtime.errors import ConfigError, nearest

if TYPE_CHECKING:
    from synapse_runtime.cli.scaffold import NewPlugin
    from synapse_runtime.enums import PluginCategory

_DEFAULT_CATEGORY = "custom"

T = TypeVar("T")


def create(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIRECTORY", help="Directory of the plugin. Default: ./CODE.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="Unique id, such as my-plugin. Default: derived from the name, or from DIRECTORY.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Display name. Default: derived from the code.")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="CATEGORY",
            help="One of neural_net, export, upload, smart_tool, post_annotation, pre_annotation, "
            "data_validation and custom.",
            autocompletion=category_names,
        ),
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            "-a",
            metavar="ACTION",
            help="Action to create; may be repeated. Default: those of the category.",
        ),
    ] = None,
    sdk: Annotated[
        bool, typer.Option("--sdk", help="Import from `synapse_sdk.plugins` in the actions, as on the platform.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not prompt; use defaults.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a plugin with example actions and tests.

    Prompts for missing values on a terminal. Existing files are never overwritten.
    """
    from synapse_runtime.cli import scaffold

    code = None if code is None else _checked("--code", scaffold.checked_code, code)
    name = None if name is None else _checked("--name", scaffold.checked_name, name)
    kind = None if category is None else _checked("--category", _category, category)
    actions = tuple(_checked("--action", scaffold.checked_action, given) for given in action or [])
    suggested = scaffold.code_from(name or "") or scaffold.code_from(directory.absolute().name if directory else "")
    can_prompt = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    with exit_on_errors():
        if not (yes or can_prompt or (code and kind)):
            raise ConfigError(
                "not a terminal, cannot prompt: pass --code and --category, or --yes for the defaults; "
                "--name, --action and DIRECTORY are optional"
            )
        code = code or (_prompt("Code", scaffold.checked_code, suggested) if can_prompt else suggested)
        if code is None:
            raise ConfigError(
                "no plugin code can be derived from the name or the directory: pass --code, such as my-plugin"
            )
        name_of_code = code.replace("-", " ").replace("_", " ").capitalize()
        name = name or (_prompt("Name", scaffold.checked_name, name_of_code) if can_prompt else name_of_code)
        kind = kind or (_prompt_category() if can_prompt else _category(_DEFAULT_CATEGORY))
        defaults = scaffold.DEFAULT_ACTIONS[kind]
        actions = actions or (_prompt("Actions", _actions, " ".join(defaults)) if can_prompt else defaults)
        target = directory or Path(code)
        if can_prompt and not typer.confirm(f"Create it in {target}?", default=True, err=True):
            raise typer.Abort
        plugin = scaffold.NewPlugin(code, name, kind, tuple(dict.fromkeys(actions)), sdk)
        files = plugin.files()
        scaffold.write(files, target)
    if as_json:
        created = {"code": code, "path": target.absolute(), "actions": plugin.actions, "files": list(files)}
        print_line(to_json(created))
    else:
        _show(plugin, target, list(files))


def _show(plugin: NewPlugin, target: Path, files: list[str]) -> None:
    print_line(f"Created plugin {plugin.code} in {target}:")
    for path in files:
        print_line(f"  {path}")
    steps = ["synapse plugin check", "synapse plugin test", f"synapse plugin run {plugin.example}"]
    if target.absolute() != Path.cwd():
        steps.insert(0, shlex.join(["cd", str(target)]))
    print_note("Next steps:")
    for step in steps:
        print_note(f"  {step}")


def _prompt_category() -> PluginCategory:
    from synapse_runtime.cli.scaffold import DEFAULT_ACTIONS

    print_note("Categories and their default actions:")
    for category, actions in DEFAULT_ACTIONS.items():
        print_note(f"  {category:<16} {', '.join(actions)}")
    return _prompt("Category", _category, _DEFAULT_CATEGORY)


def _prompt(question: str, check: Callable[[str], T], default: str | None) -> T:
    def checked(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None  # typer prompts again

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
    given = text.strip().lower().replace("-", "_")
    if given not in known:
        guess = nearest(given, known)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ValueError(f"unknown category {text!r}.{hint} Available: {', '.join(known)}.")
    return PluginCategory(given)


def _actions(text: str) -> tuple[str, ...]:
    from synapse_runtime.cli.scaffold import checked_action

    names = tuple(map(checked_action, text.replace(",", " ").split()))
    if not names:
        raise ValueError("a plugin needs at least one action, such as run")
    return names

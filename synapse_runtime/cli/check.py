"""`synapse plugin check` and `synapse plugin update-config`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synapse_runtime.cli.console import exit_on_errors, print_line, print_note, printable, to_json
from synapse_runtime.cli.usage_error import require_seconds

if TYPE_CHECKING:
    from synapse_runtime.errors import Problem
    from synapse_runtime.plugins.config_sync import Change, Update

_PATH = typer.Argument(
    metavar="PATH",
    help="Plugin directory or config file. Default: the nearest plugin at or above the current directory.",
)
_SAME_PATH = typer.Option("--path", "-p", help="Same as PATH.")
_SECONDS = typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Time limit for importing one module.")
_JSON = typer.Option("--json", help="Print JSON.")


def check(
    path: Annotated[Path | None, _PATH] = None,
    same_path: Annotated[Path | None, _SAME_PATH] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 for warnings, too.")] = False,
    timeout: Annotated[float, _SECONDS] = 60,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check a plugin for problems: config file, actions, params, requirements.

    Exit status: 0 no problems, or only warnings; 1 errors; 2 no such plugin.
    """
    from synapse_runtime.plugins.lint import check_plugin

    require_seconds(timeout, "--timeout")
    with exit_on_errors():
        checked = check_plugin(_plugin(path, same_path), seconds=timeout)
        if as_json:
            print_line(to_json([_as_data(problem) for problem in checked.problems], indent=2))
        else:
            for problem in checked.problems:
                print_line(printable(_as_line(problem)))
            print_line(_count(checked.problems) + f" (checked: {checked.checked})")
        if any(problem.level == "error" or strict for problem in checked.problems):
            raise typer.Exit(1)


def update_config(
    path: Annotated[Path | None, _PATH] = None,
    same_path: Annotated[Path | None, _SAME_PATH] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; print the diff and exit with status 1 if there is one.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove actions that are no longer in the code.")] = False,
    timeout: Annotated[float, _SECONDS] = 60,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Write the actions of the plugin's code into its config file; the rest of the file stays unchanged.

    New actions are added, moved entrypoints are updated, input and output types and the forms of the platform's console
    are set. Exit status: 0 done; 1 a module could not be inspected, an action name is already taken, or --check found a
    difference.
    """
    from synapse_runtime.plugins.config_sync import plan_update

    require_seconds(timeout, "--timeout")
    with exit_on_errors():
        update = plan_update(_plugin(path, same_path), prune=prune, seconds=timeout)
        if not check:
            update.write()
        if as_json:
            print_line(to_json(_update_as_data(update), indent=2))
        else:
            _show(update, only_checked=check)
        if update.problems or (check and update.diff):
            raise typer.Exit(1)


def _plugin(path: Path | None, same_path: Path | None) -> Path:
    """Return the path that was given, or the nearest plugin at or above the current directory."""
    from synapse_runtime.cli.plugin_lookup import nearest_config

    if path is not None and same_path is not None:
        raise typer.BadParameter("PATH and --path mean the same; pass only one", param_hint="--path")
    path = path or same_path
    if path is None:
        return nearest_config() or Path.cwd()
    if not path.exists():
        raise typer.BadParameter(f"{str(path)!r} does not exist", param_hint="PATH")
    return path


def _shown(path: Path) -> str:
    """Return a path for display, relative to the current directory if it is below it."""
    here = os.path.join(os.getcwd(), "")
    return str(path).removeprefix(here)


def _as_line(problem: Problem) -> str:
    place = "" if problem.path is None else _shown(problem.path) + (f":{problem.line}" if problem.line else "") + ": "
    return f"{place}{problem.level}: {problem.text}"


def _as_data(problem: Problem) -> dict[str, object]:
    return {
        "file": None if problem.path is None else str(problem.path),
        "line": problem.line,
        "level": problem.level,
        "text": problem.text,
    }


def _count(problems: tuple[Problem, ...]) -> str:
    errors = sum(problem.level == "error" for problem in problems)
    counts = [(errors, "error"), (len(problems) - errors, "warning")]
    found = ", ".join(f"{count} {thing}" + ("s" if count > 1 else "") for count, thing in counts if count)
    return found or "OK"


def _show(update: Update, *, only_checked: bool) -> None:
    for problem in update.problems:
        print_note(printable(_as_line(problem)))
    if only_checked:
        print_line(update.diff, end="")
    for change in update.changes:
        if not only_checked or change.kind == "missing":
            (print_note if change.kind == "missing" else print_line)(printable(_in_words(change)))
    if not update.diff:
        print_line(f"{_shown(update.config)} is up to date")


def _in_words(change: Change) -> str:
    if change.kind == "missing":
        why = "its entrypoint does not exist, and no action in the code has its name"
        return f"{change}: {why}; use --prune to remove it"
    return str(change)


def _update_as_data(update: Update) -> dict[str, object]:
    return {
        "changed": bool(update.diff),
        "changes": [{"kind": one.kind, "action": one.action, "fields": one.fields} for one in update.changes],
        "problems": [_as_data(problem) for problem in update.problems],
    }

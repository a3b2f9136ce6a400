"""`synapse plugin test`: run a plugin's tests with pytest, in one or several modes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from synapse_runtime.cli.console import exit_on_errors
from synapse_runtime.cli.modes import checked_mode, mode_names
from synapse_runtime.cli.plugin_lookup import find_plugin
from synapse_runtime.errors import ConfigError
from synapse_runtime.modes import all_modes

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

_PYTEST_ARGUMENTS = "synapse_runtime.cli.testing"


class PytestCommand(TyperCommand):
    """A command that passes the arguments after `--` to pytest."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Keep the arguments for pytest, and parse the others."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[_PYTEST_ARGUMENTS] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Show that arguments for pytest may follow."""
        return [*super().collect_usage_pieces(ctx), "[-- PYTEST ARGUMENTS]"]


def run_tests(
    ctx: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Plugin directory. Default: the nearest plugin at or above the current directory.",
            show_default=False,
        ),
    ] = Path("."),
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            "-m",
            metavar="local|task|job|all",
            help="Where the actions run; may be repeated. Default: as configured for pytest, else local.",
            autocompletion=mode_names,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print only the results to standard output, as JSON: id, mode and outcome of each test.",
        ),
    ] = False,
) -> None:
    """Run a plugin's tests with pytest, in one or several modes.

    Arguments after -- are passed to pytest, which runs in the plugin's directory and sets the exit status:
    `synapse plugin test --mode task -- -k learns --junitxml=results.xml`.
    """
    arguments = ctx.meta[_PYTEST_ARGUMENTS]
    modes = dict.fromkeys(name for given in mode or [] for name in _modes(given))
    with exit_on_errors():
        plugin = find_plugin(path)
        command = [sys.executable, "-m", "pytest", *_tests(plugin, arguments)]
        if modes:
            command.append(f"--synapse-mode={','.join(modes)}")
        if as_json:
            command += ["-p", "pytest_synapse.results", f"--synapse-results-to={_redirect_stdout()}"]
        os.chdir(plugin.root)
        # Replace this process, so that pytest itself gets the signals and the terminal and sets the exit status.
        os.execv(sys.executable, [*command, *arguments])


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("test", cls=PytestCommand)(run_tests)


def _redirect_stdout() -> int:
    """Redirect standard output to standard error, and return a descriptor of the real one, for the results."""
    sys.stdout.flush()
    results = os.dup(1)
    os.set_inheritable(results, True)
    os.dup2(2, 1)
    return results


def _modes(text: str) -> Iterator[str]:
    for part in text.split(","):
        if part.strip().lower() == "all":
            yield from all_modes()
        else:
            yield checked_mode(part)


def _tests(plugin: Plugin, arguments: list[str]) -> list[str]:
    """Return the tests that pytest collects: the plugin's, or none if `arguments` name some."""
    if any((plugin.root / argument.partition("::")[0]).exists() for argument in arguments if argument[:1] != "-"):
        return []
    tests = plugin.root / "tests"
    if not tests.is_dir():
        raise ConfigError(
            "the plugin has no directory 'tests'; pass other tests after --, as in: synapse plugin test -- checks",
            path=plugin.root,
        )
    if not any(path.name not in ("__init__.py", "conftest.py") for path in tests.rglob("*.py")):
        raise ConfigError(
            "no tests found: expected files test_*.py with functions test_* that use synapse_executor", path=tests
        )
    return ["tests"]

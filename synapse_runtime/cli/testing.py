"""`synapse plugin test`: pytest over a plugin's tests, in one mode or in several."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from synapse_runtime.cli.console import exit_on_errors
from synapse_runtime.cli.modes import MODES, checked_mode, mode_names
from synapse_runtime.cli.plugin_lookup import find_plugin
from synapse_runtime.errors import ConfigError

if TYPE_CHECKING:
    from synapse_runtime.plugins.plugin import Plugin

_FOR_PYTEST = "synapse_runtime.cli.testing"


class ForPytest(TyperCommand):
    """A command that leaves alone what stands behind `--`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Keep what is pytest's, and parse the rest."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[_FOR_PYTEST] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Show that there is more."""
        return [*super().collect_usage_pieces(ctx), "[-- PYTEST ARGUMENTS]"]


def run_tests(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The plugin's directory. Default: around here.", show_default=False)
    ] = Path("."),
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            "-m",
            metavar="local|task|job|all",
            help="Where the actions run; may be repeated. Default: what pytest is configured to, else local.",
            autocompletion=mode_names,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the results alone to standard output, as JSON: id, mode, outcome of each test."
        ),
    ] = False,
) -> None:
    """Run pytest over a plugin's tests, in one mode or in several.

    What stands behind -- is for pytest, which runs in the plugin's directory and gives the exit status:
    `synapse plugin test --mode task -- -k learns --junitxml=results.xml`.
    """
    arguments = ctx.meta[_FOR_PYTEST]
    modes = dict.fromkeys(name for given in mode or [] for name in _modes(given))
    with exit_on_errors():
        plugin = find_plugin(path)
        command = [sys.executable, "-m", "pytest", *_tests(plugin, arguments)]
        if modes:
            command.append(f"--synapse-mode={','.join(modes)}")
        if as_json:
            command += ["-p", "pytest_synapse.results", f"--synapse-results-to={_redirect_stdout()}"]
        os.chdir(plugin.root)
        # It takes the place of this process: signals, terminal and exit status are its own.
        os.execv(sys.executable, [*command, *arguments])


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("test", cls=ForPytest)(run_tests)


def _redirect_stdout() -> int:
    """Keep standard output for the results, and let what else is written there go to standard error."""
    sys.stdout.flush()
    results = os.dup(1)
    os.set_inheritable(results, True)
    os.dup2(2, 1)
    return results


def _modes(text: str) -> Iterator[str]:
    for part in text.split(","):
        if part.strip().lower() == "all":
            yield from MODES
        else:
            yield checked_mode(part)


def _tests(plugin: Plugin, arguments: list[str]) -> list[str]:
    """Return what pytest is to collect: nothing where its own arguments say, else the plugin's tests."""
    if any((plugin.root / argument.partition("::")[0]).exists() for argument in arguments if argument[:1] != "-"):
        return []
    tests = plugin.root / "tests"
    if not tests.is_dir():
        raise ConfigError(
            "the plugin has no directory 'tests'; name other tests of its behind --: synapse plugin test -- checks",
            path=plugin.root,
        )
    if not any(path.name not in ("__init__.py", "conftest.py") for path in tests.rglob("*.py")):
        raise ConfigError(
            "there are no tests: files test_*.py, with functions test_* that use synapse_executor", path=tests
        )
    return ["tests"]

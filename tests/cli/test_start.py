"""Startup of the command: its imports, its lists of commands, and its parser that replaces typer's."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import typer
from typer.main import get_command

from synapse_runtime.cli import quick
from synapse_runtime.cli.app import app
from synapse_runtime.cli.lazy import LazyCommand, LazyGroup
from synapse_runtime.cli.run import run
from synapse_runtime.cli.run_action import run_action
from tests.cli.processes import Synapse

LOCAL = ("--mode", "local")


PRINT_MODULES = """\
import sys
from synapse_runtime.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def imported(synapse: Synapse, *arguments: str) -> set[str]:
    done = synapse(*arguments, command=[sys.executable, "-c", PRINT_MODULES])
    assert done.status == 0
    return set(done.stderr.splitlines()[-1].split())


def lazy_commands(group: Any = None, path: str = "") -> Iterator[tuple[str, LazyCommand]]:
    for name, command in (group or get_command(app)).commands.items():
        assert isinstance(command, LazyCommand)
        yield f"{path}{name}", command
        loaded = command.load()
        if isinstance(loaded, LazyGroup):
            yield from lazy_commands(loaded, f"{path}{name} ")


def by_typer(arguments: list[str]) -> dict[str, Any]:
    """Return the arguments of `run`, as parsed by typer."""
    single = typer.Typer(add_completion=False)
    single.command()(run)
    read = get_command(single).make_context("run", arguments).params
    # Older releases of typer convert to `Path` only when they call the function.
    return {
        name: Path(read[name]) if name in ("path", "env_file") and read[name] is not None else read[name]
        for name in read
    }


def test_run_does_not_import_libraries_of_the_command(synapse: Synapse) -> None:
    modules = imported(synapse, "plugin", "run", "train", *LOCAL, "--param", "epochs=3", "--json")
    assert {"synapse_runtime.core.execution", "pydantic", "yaml"} <= modules
    assert modules & {"typer", "click", "rich", "asyncio", "ssl", "ray", "cloudpickle", "httpx", "pytest"} == set()


def test_help_does_not_import_the_commands(synapse: Synapse) -> None:
    for arguments in [("--help",), ("plugin", "--help")]:
        modules = imported(synapse, *arguments)
        ours = {name.removeprefix("synapse_runtime.") for name in modules if name.startswith("synapse_runtime.")}
        assert ours == {
            "sdk_compat",
            "sdk_compat.import_hook",
            "cli",
            "cli.collector",
            "cli.quick",
            "cli.app",
            "cli.lazy",
        } | {"cli.plugin" for _ in arguments[1:]}


@pytest.mark.parametrize(("path", "command"), list(lazy_commands()))
def test_listed_help_matches_the_help_of_the_command(path: str, command: LazyCommand) -> None:
    loaded = command.load()
    assert loaded.name in (command.name, "")
    if command.short_help is None:
        assert loaded.help.startswith(str(command.help))
        assert command.help
    else:
        assert not command.help


def test_run_action_has_the_options_of_the_command_with_the_same_defaults() -> None:
    options = inspect.signature(run).parameters
    taken = inspect.signature(run_action).parameters
    assert [*options] == ["ctx", *taken]
    differing = {name for name in taken if taken[name].default != options[name].default}
    assert differing == {"infer_path"}  # None: not given


LINES = [
    "train",
    "train --mode local",
    "train --mode=local",
    "--mode local train",
    "-m local train -p demo -t secret -l ko -i 5",
    "train --mode task --mode local",
    "train --param a=1 --param b=2 --env A=1 --env=B=2 --resource x=1",
    "train --params - --input -",
    'train --params {"epochs":1}',
    "train --params=--json --mode=-",
    "train --path a/b --env-file .env",
    "train --path=",
    "train --json --detach --strict --debug-sdk",
    "train --no-debug",
    "train --no-debug --debug",
    "train --host x --token y --ray-address auto --memory 2GB --infer-path / --lang en --plugin x --input 1",
]


@pytest.mark.parametrize("line", LINES)
def test_quick_parser_agrees_with_typer(line: str) -> None:
    given = quick.read(line.split())
    assert given is not None
    read = {name: value for name, value in by_typer(line.split()).items() if name in given}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in read.items()} == given
    defaults = by_typer(["train"])
    others = {name: value for name, value in by_typer(line.split()).items() if name not in given}
    assert others == {name: defaults[name] for name in others}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "train --help",
        "train more",
        "train --mode",
        "train --mode --json",
        "train --mode -m",
        "train -mlocal",
        "train -m=local",
        "train --bogus",
        "train --bogus=1",
        "train --json=1",
        "train --timeout 5",
        "train --gpus 1",
        "train -- --mode",
        "-",
        "train --par a=1",
        "train --mode \udcff",
    ],
)
def test_quick_parser_leaves_other_lines_to_typer(line: str) -> None:
    assert quick.read(line.split()) is None


def test_quick_parser_knows_all_options_except_numbers() -> None:
    single = typer.Typer(add_completion=False)
    single.command()(run)
    named = {
        (option, parameter.name)
        for parameter in get_command(single).params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
    tables = {**quick._TEXTS, **quick._PATHS, **quick._REPEATED}
    known = {*tables.items(), *((option, name) for option, (name, _) in quick._FLAGS.items())}
    assert known <= named
    assert {option for option, _ in named - known} == {"--timeout", "--gpus", "--cpus", "--help"} & {
        option for option, _ in named
    }


def test_garbage_collector_is_enabled_while_an_action_is_imported_and_runs(synapse: Synapse, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("code: demo\nactions: {look: looking:look}\n")
    (tmp_path / "looking.py").write_text(
        "import gc\n"
        "from synapse_runtime.decorators import action\n"
        "AT_IMPORT = gc.isenabled()\n"
        "@action\n"
        "def look(params, context):\n"
        "    return [AT_IMPORT, gc.isenabled(), gc.get_freeze_count() > 0]\n"
    )
    for arguments in [LOCAL, (*LOCAL, "--timeout", "60"), (*LOCAL, "--param", "a=1")]:
        done = synapse("plugin", "run", "look", *arguments, "--json", cwd=tmp_path)
        assert (done.stdout, done.stderr) == ("[true,true,true]\n", "")


PYDANTIC_PLUGIN = """\
import sys

class Plugin:
    def new_schema_validator(self, schema, schema_type, path, *args):
        print("a model is made:", path.name, file=sys.stderr)
        return None, None, None

plugin = Plugin()
"""


def write_action(root: Path, result: str) -> None:
    (root / "config.yaml").write_text("code: demo\nactions: {look: looking:look}\n")
    (root / "looking.py").write_text(
        "import importlib.metadata\n"
        "from pydantic import BaseModel\n"
        "from synapse_runtime.decorators import action\n"
        "class Params(BaseModel): pass\n"
        "@action(params=Params)\n"
        "def look(params, context):\n"
        f"    return {result}\n"
    )


@pytest.mark.parametrize("where", ["elsewhere", "plugin"])
def test_pydantic_plugin_sees_the_models_of_an_action(synapse: Synapse, tmp_path: Path, where: str) -> None:
    root, packages = tmp_path / "plugin", tmp_path / where
    for directory in {root, packages}:
        directory.mkdir()
    write_action(root, "'done'")
    (packages / "noisy.py").write_text(PYDANTIC_PLUGIN)
    (packages / "noisy-1.0.dist-info").mkdir()
    (packages / "noisy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (packages / "noisy-1.0.dist-info" / "entry_points.txt").write_text("[pydantic]\nnoisy = noisy:plugin\n")
    path = {} if packages == root else {"PYTHONPATH": str(packages)}
    done = synapse("plugin", "run", "look", *LOCAL, "--json", cwd=root, **path)
    assert (done.status, done.stdout) == (0, '"done"\n'), done.stderr
    assert "a model is made: " in done.stderr


def test_action_can_use_importlib_metadata(synapse: Synapse, tmp_path: Path) -> None:
    write_action(
        tmp_path,
        "[importlib.metadata.version('pydantic'), bool(importlib.metadata.entry_points(group='pytest11')), "
        "importlib.metadata.__file__]",
    )
    done = synapse("plugin", "run", "look", *LOCAL, "--json", cwd=tmp_path)
    version, has_entry_points, file = json.loads(done.stdout)
    assert (version, has_entry_points, file) == (pydantic.VERSION, True, importlib.metadata.__file__)

"""Python blocks: tests run with the example plugin, conftest files with a test of it, other code as a program."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from tests.docs.conftest import Directory
from tests.docs.pages import Block, blocks
from tests.forks import ALONE, ForkServer

# Plugins of the blocks of docs/compatibility.md, which are off in the sessions of other tests.
USED_IN_BLOCKS = (":asyncio", ":hypothesispytest")

# What a block imports that is the reader's own.
DATABASE = """\
import json
from pathlib import Path


def insert(**row):
    with Path(__file__).with_name("rows.jsonl").open("a") as file:
        file.write(json.dumps(row | {"metrics": list(row["metrics"])}) + "\\n")
"""
TRAINS = """\
def test_trains(synapse_executor, tmp_path):
    synapse_executor.execute("train", {"epochs": 1, "output_dir": str(tmp_path)})
"""


def read_tests(block: Block) -> dict[str, bool]:
    """Return the tests of a block, and whether each has a body other than `...`: if not, only its setup is planned."""
    found = {}
    for node in ast.parse(block.text).body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_"):
                name = f"{node.name}::{function.name}" if isinstance(node, ast.ClassDef) else function.name
                found[name] = not all(ast.unparse(statement) == "..." for statement in function.body)
    return found


def read_hooks(block: Block) -> list[str]:
    return [node.name for node in ast.parse(block.text).body if getattr(node, "name", "").startswith("pytest_")]


TESTS = [block for block in blocks("python") if read_tests(block)]
CONFTESTS = [block for block in blocks("python") if read_hooks(block)]
PROGRAMS = [block for block in blocks("python") if block not in TESTS + CONFTESTS and block.not_run is None]


@pytest.fixture
def example(directory: Directory) -> Path:
    """The example plugin without its own tests."""
    path = directory.path / "example_plugin"
    shutil.rmtree(path / "tests")
    (path / "tests").mkdir()
    return path


@pytest.mark.parametrize("block", TESTS, ids=str)
def test_tests_pass(block: Block, example: Path, directory: Directory, with_sklearn: ForkServer) -> None:
    (example / "tests" / "test_page.py").write_text(block.text)
    directory.path = example
    tests = read_tests(block)
    session = ("-m", "pytest", "-v")
    env = {"PYTEST_ADDOPTS": " ".join(option for option in ALONE.split() if not option.endswith(USED_IN_BLOCKS))}

    without_body = [f"tests/test_page.py::{test}" for test, has_body in tests.items() if not has_body]
    if without_body:
        planned = directory.python(*session, "--setup-plan", *without_body, server=with_sklearn, **env)
        assert planned.returncode == 0, planned.stdout
    if any(tests.values()):
        deselected = [f"--deselect={test}" for test in without_body]
        done = directory.python(*session, *deselected, server=with_sklearn, **env)
        assert done.returncode == 0, done.stdout
        outcomes = pytest.RunResult.parse_summary_nouns(done.stdout.splitlines())
        assert outcomes.get("passed") == sum(tests.values()), done.stdout


@pytest.mark.parametrize("block", CONFTESTS, ids=str)
def test_hooks_are_called(block: Block, example: Path, directory: Directory, with_sklearn: ForkServer) -> None:
    tests = example / "tests"
    (tests / "conftest.py").write_text(block.text)
    (tests / "database.py").write_text(DATABASE)
    (tests / "test_it.py").write_text(TRAINS)
    done = directory.python("-m", "pytest", "example_plugin", server=with_sklearn)
    assert done.returncode == 0, done.stdout
    (row,) = map(json.loads, (tests / "rows.jsonl").read_text().splitlines())
    assert row == row | {"test": "tests/test_it.py::test_trains", "mode": "local"}
    assert row["metrics"] == ["training"]


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_program_runs(block: Block, directory: Directory, template: Path, request: pytest.FixtureRequest) -> None:
    (directory.path / "program.py").write_text(block.text)
    env = {}
    if "mode=" in block.text:  # with a plugin of the same actions that workers import in an instant
        shutil.rmtree(directory.path / "example_plugin")
        shutil.copytree(template, directory.path / "example_plugin")
        request.getfixturevalue("dashboard")  # wait until it has started
        env = request.getfixturevalue("reached")
    done = directory.python("program.py", **env)
    assert done.returncode == 0, done.stdout

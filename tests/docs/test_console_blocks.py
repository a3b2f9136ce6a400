"""Console blocks: their commands run in a prepared directory, and print what is shown below them.

A command that starts a cluster, takes long or is not ours is only checked, by the first of the rules that matches it.
"""

from __future__ import annotations

import re
import socket
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from packaging.requirements import Requirement

from benchmarks.goals import BY_NAME
from synapse_runtime.cli.app import run as run_command
from synapse_runtime.cli.lazy import LazyCommand
from tests.cli.processes import Synapse
from tests.docs.conftest import PYTEST, Directory, problem_with_targets
from tests.docs.pages import ROOT, Block, Command, blocks, commands

# docs/make_tutorial.py runs the commands of its page, and tests/cli/test_tutorial.py checks what they print.
GENERATED = [block for block in blocks("console") if block.page == "docs/tutorial.md"]
BLOCKS = [block for block in blocks("console", "commands") if block not in GENERATED and block.not_run is None]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLONE = "/path/to/the/clone"


@dataclass(frozen=True)
class Rule:
    """How to check the commands that match a pattern.

    Attributes:
        pattern: A regular expression for `page: command`.
        how: What to do instead of running the command: a function in this module.
        why: Why it is not run.
    """

    pattern: str
    how: Callable[[Command, Directory], None]
    why: str


def collect(command: Command, directory: Directory) -> None:
    """Run a pytest command, but only collect the tests: pytest checks the options, and shows its header."""
    program, *arguments = command.words
    module = arguments[arguments.index("-m") + 1 :] if program == "coverage" else arguments
    assert program == "pytest" or module[0] == "pytest"
    start = [PYTEST] if program == "pytest" else ["-m", program]
    done = directory.python(*start, *arguments, "--collect-only")
    assert done.returncode == 0, done.stdout
    check_output(command, done.stdout)


def parse(command: Command, directory: Directory) -> None:
    """Parse a `synapse` command line without calling the command."""
    load = LazyCommand.load

    def load_without_callback(self: LazyCommand) -> object:
        return _without_callback(load(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LazyCommand, "load", load_without_callback)
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets it
        assert run_command(command.words[1:]) == 0, f"{command.block}: {command} is not a valid command line"


def _without_callback(group: object) -> object:
    for command in getattr(group, "commands", {}).values() or [group]:
        command.callback = None
    return group


def check_target(command: Command, directory: Directory) -> None:
    """Check that `make` knows the targets."""
    problem = problem_with_targets(command.words[1:])
    assert problem is None, f"{command.block}: {problem}"


def check_requirements(command: Command, directory: Directory) -> None:
    """Check that the requirements are valid, and that this project has the extras that are installed."""
    assert command.words[:2] == ("pip", "install")
    for word in command.words[2:]:
        requirement = Requirement(word.replace(CLONE, PROJECT["name"]))
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= PROJECT["optional-dependencies"].keys(), f"{command.block}: {command}"


def check_benchmarks(command: Command, directory: Directory) -> None:
    """Check that the options exist, and select benchmarks."""
    assert command.words[:3] == ("python", "-m", "benchmarks")
    usage = directory.python("-m", "benchmarks", "--help", PYTHONPATH=str(ROOT)).stdout
    arguments = command.words[3:]
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert f" {option} NAME" in usage
        assert any(name.startswith(value) for name in BY_NAME), f"{command.block}: no benchmark is named {value}…"


def skip(command: Command, directory: Directory) -> None:
    """Check nothing: the command is another project's."""


RULES = (
    Rule(r"(pytest|-m pytest).* --synapse-mode=(task|job|all)", collect, "needs a cluster: `make demo`, tests/parity"),
    Rule(r"pytest .*-n 4", collect, "starts four processes: tests/pytest_synapse/test_monorepo.py"),
    Rule(r"pytest example_plugin$", collect, "`make demo` runs it"),
    Rule(r"synapse cluster ", parse, "is about the user's warm cluster: tests/cli/test_cluster.py"),
    Rule(r"synapse plugin test --mode local --mode task", parse, "starts a cluster: docs/make_tutorial.py runs it"),
    Rule(r"synapse plugin run (evaluate|export)", parse, "takes seconds, and the weights of an earlier run"),
    Rule(r"synapse plugin run train .*--mode task", parse, "is, in task mode, what the program on the same page does"),
    Rule(r"clusters.md: synapse plugin run .* --detach", parse, "is for a cluster that only the page has"),
    Rule(r"remote.md: synapse ", parse, "needs a backend: tests/remote, tests/server"),
    Rule(r": make ", check_target, "takes minutes"),
    Rule(r": pip install ", check_requirements, "downloads packages"),
    Rule(r": python -m benchmarks", check_benchmarks, "takes minutes"),
    Rule(r": kubectl ", skip, "is a program of Kubernetes"),
    Rule(r": export ", skip, "is about a cluster that only the page has"),
)
# Options in place of the answers to a command's prompts.
ANSWERS = {"synapse plugin create my-plugin": ("--category", "neural_net", "--yes")}
# Commands that report a problem.
STATUS = {"synapse doctor": 1}
# Shown lines that are not compared, with the reason.
NOT_COMPARED = {"cluster: warm, ": "there is no warm cluster: tests/pytest_synapse/test_one_cluster.py"}

_JOB_ID = re.compile(r"\brun-[0-9a-f]{16}\b")
_DIFFERENT_EACH_TIME = (
    (_JOB_ID, "run-…"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:…"),
    (re.compile(r"\bRay \d+\.\d+\.\d+"), "Ray …"),
    # `synapse doctor` about this machine.
    (re.compile(r"^  (?:ok|warning|problem) +(CPUs|memory|/dev/shm|temporary files): .*"), r"  \1"),
    (re.compile(r"^(\d+ problems?), .*"), r"\1"),
)


def comparable(lines: Iterable[str]) -> list[str]:
    found = []
    for line in lines:
        for pattern, replacement in _DIFFERENT_EACH_TIME:
            line = pattern.sub(replacement, line)
        found.append(line.rstrip())
    return found


def check_output(command: Command, output: str) -> None:
    """Check that the lines shown below a command are in its output, in this order; `…` is for any lines."""
    shown = [line for line in command.output if not any(part in line for part in NOT_COMPARED)]
    actual = iter(comparable(output.splitlines()))
    for line in comparable(shown):
        assert line.strip() in ("…", "") or line in actual, f"{command.block}: {line!r} is not in the output:\n{output}"


def rule_for(command: Command) -> Rule | None:
    line = f"{command.block.page}: {command}"
    return next((rule for rule in RULES if re.search(rule.pattern, line)), None)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_work(block: Block, directory: Directory, synapse: Synapse, request: pytest.FixtureRequest) -> None:
    job_ids: dict[str, str] = {}
    assert commands(block), f"{block}: commands start with '$ '"
    for command in commands(block):
        rule = rule_for(command)
        if rule is not None:
            rule.how(command, directory)
            continue
        match command.words:
            case ["cd", path]:
                directory.path = synapse.cwd = directory.path / path
            case ["pytest", *arguments]:
                done = directory.python(PYTEST, *arguments)
                assert done.returncode == 0, done.stdout
                check_output(command, done.stdout)
            case ["synapse", *arguments]:
                arguments = [job_ids.get(word, word) for word in arguments]
                env = command.env | ({"RAY_ADDRESS": unused_address()} if "RAY_ADDRESS" in command.env else {})
                if "job" in arguments:
                    request.getfixturevalue("dashboard")  # wait until it has started
                    env |= request.getfixturevalue("reached")
                finished = synapse(*arguments, *ANSWERS.get(str(command), ()), **env)
                assert finished.status == STATUS.get(str(command), 0), f"{command}: {finished.stdout}{finished.stderr}"
                check_output(command, finished.stdout)
                ids = _JOB_ID.findall("\n".join(command.output)), _JOB_ID.findall(finished.stdout)
                job_ids.update(zip(*ids, strict=False))
            case [program, *_]:
                pytest.fail(f"{block}: {program} is not known: add a rule, or a comment <!-- not run: reason -->")


def unused_address() -> str:
    """Return an address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_generator_runs_all_commands_of_the_tutorial() -> None:
    """It looks for blocks that start with a command."""
    assert GENERATED
    assert [str(block) for block in GENERATED if not block.text.startswith("$ ")] == []


def test_each_rule_is_used() -> None:
    """A command that has gone leaves no rule behind that would hide a later one."""
    found = [command for block in BLOCKS for command in commands(block)]
    assert set(RULES) - {rule_for(command) for command in found} == set()
    assert (ANSWERS.keys() | STATUS.keys()) - set(map(str, found)) == set()
    shown = "\n".join(line for command in found for line in command.output)
    assert [part for part in NOT_COMPARED if part not in shown] == []

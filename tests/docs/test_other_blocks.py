"""Blocks other than Python and commands: config files, ini options, drawings, and output of sessions and errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pytest_synapse.reporting import Summary, Tally
from synapse_runtime import __version__
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.protocol import PROTOCOL, VersionMismatch, version_error
from synapse_runtime.executors.ray.resources import checked_resources, require_resources
from tests.cli.processes import Synapse
from tests.docs.conftest import Directory
from tests.docs.pages import PAGES, ROOT, Block, blocks, each, tokens

LANGUAGES = ("python", "console", "commands", "yaml", "ini", "text")


@each("yaml")
def test_config_file_has_no_problems(block: Block, directory: Directory, synapse: Synapse) -> None:
    """The fields, and entrypoints, of a config file or a part of one, in the example plugin."""
    plugin = directory.path / "example_plugin"
    fields = yaml.safe_load((plugin / "config.yaml").read_text())
    others = {name: value for name, value in fields.items() if name not in yaml.safe_load(block.text)}
    (plugin / "config.yaml").write_text(block.text + "\n" + yaml.safe_dump(others))
    (plugin / "wheels").mkdir()
    done = synapse("plugin", "check", "example_plugin", "--strict")
    assert done.status == 0, f"{block}: {done.stdout}{done.stderr}"


@each("ini")
def test_ini_options_are_known(block: Block, directory: Directory) -> None:
    (directory.path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n" + block.text)
    done = directory.python("-m", "pytest", "--strict-config")
    assert done.returncode == 0, done.stdout


def check_layers(block: Block, _: object) -> None:
    """Each module that the drawing names exists, and it names each module and package."""
    named = {*re.findall(r"[\w/]+\.py", block.text)}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "synapse_runtime").rglob("*.py")}
    gone = [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    assert not gone, f"{block}: no such files: {gone}"
    words = {*re.findall(r"\w+", block.text)}
    modules = [Path(file) for file in files if "/cli/" not in file and "/__" not in file]
    new = [str(path) for path in modules if path.stem not in words]
    assert not new, f"{block} does not show {new}"


def check_flow(block: Block, _: object) -> None:
    """Each name with an underscore or several capitals is a function, class or module of this package."""
    names = {*re.findall(r"\b(?:[a-z]+_[a-z_]+|[A-Z][a-z]+[A-Z]\w+)\b", block.text)}
    assert len(names) > 5
    defined = set()
    for path in (ROOT / "synapse_runtime").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined |= {path.stem} | {getattr(node, "name", "") for node in ast.walk(tree)}
    assert not names - defined, f"{block}: no such names: {sorted(names - defined)}"


def check_summary(block: Block, _: object) -> None:
    """The summary of runs with these counts and times is the same text."""
    lines = block.text.splitlines()
    summary = Summary()
    for line in lines:
        row = re.fullmatch(r"(\w+) +(\d+) +(\d+) +([\d.]+ m?s) +([\d.]+ m?s)", line)
        if row:
            summary.modes[row[1]] = Tally(int(row[2]), int(row[3]), seconds(row[4]), seconds(row[5]))
        slow = re.fullmatch(r" +([\d.]+ m?s) (\w+) +(\w+) +(\S+)", line)
        if slow:
            summary.slowest.append((seconds(slow[1]), *slow.groups()[1:]))
        address = re.fullmatch(r"cluster: (\S+) \(started for this run\)", line)
        if address:
            summary.backends.append(("cluster", address[1], "ephemeral"))
    assert re.fullmatch(r"=+ synapse actions =+", lines[0])
    assert lines[1:] == [*summary.block(len(summary.slowest))]


def check_summary_line(block: Block, _: object) -> None:
    """The summary of runs with these counts and times is the same line."""
    line = re.fullmatch(r"=+ (synapse: local (\d+) runs \((\d+) raised\), ([\d.]+ ms)) =+\n", block.text)
    assert line
    assert Summary({"local": Tally(int(line[2]), int(line[3]), seconds(line[4]))}).line() == line[1]


def seconds(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) / {"s": 1, "ms": 1000}[unit]


DEBUGGED = """\
import pytest


@pytest.mark.parametrize("size", ["small"])
def test_learns(synapse_executor, size):
    synapse_executor.execute("infer", {"input": [1], "weights": "nowhere.json"})
"""


def check_debugger(block: Block, request: pytest.FixtureRequest) -> None:
    """A session with `--pdb` prints these lines."""
    directory: Directory = request.getfixturevalue("directory")
    (directory.path / "tests" / "test_train.py").write_text(DEBUGGED)
    done = directory.python(
        "-m", "pytest", "tests/test_train.py", "--synapse-mode=task", "--pdb", **request.getfixturevalue("reached")
    )
    title, *lines = block.text.splitlines()
    assert title.strip("- ") in done.stdout
    assert "\n".join(lines) in done.stdout


def check_resource_errors(block: Block, _: object) -> None:
    """Clusters with what the lines show raise these errors."""
    nodes = ({"CPU": 8}, 1, {"num_gpus": 3}), ({"CPU": 4}, 2, {"num_cpus": 6})
    for line, (node, count, request) in zip(block.text.splitlines(), nodes, strict=True):
        with pytest.raises(ClusterError) as caught:
            require_resources(checked_resources(**request), [node] * count)
        assert str(caught.value) == line


def check_version_error(block: Block, _: object) -> None:
    """The error about another version is the same text, up to the versions."""
    error = version_error(VersionMismatch(b"synapse 1 0.1.0\n"))
    shown = " ".join(block.text.split())
    own = f"this process has {__version__} (protocol {PROTOCOL})"
    assert re.sub(r"this process has \S+ \(protocol \d+\)", own, shown) == str(error)


def check_repository(block: Block, request: pytest.FixtureRequest) -> None:
    """The drawing can be written as files; the page's commands then run in them."""
    directory: Directory = request.getfixturevalue("directory")
    assert (directory.path / "red" / "plugin" / "train.py").is_file()


# What checks a block without a language, by its page and a part of it.
TEXTS: dict[tuple[str, str], Callable[[Block, pytest.FixtureRequest], None]] = {
    ("docs/architecture.md", "synapse_runtime/core/"): check_layers,
    ("docs/architecture.md", "encode_call"): check_flow,
    ("docs/hooks.md", "synapse actions ="): check_summary,
    ("docs/hooks.md", "= synapse: local"): check_summary_line,
    ("docs/hooks.md", "how to debug the action"): check_debugger,
    ("docs/clusters.md", "requested num_gpus=3"): check_resource_errors,
    ("docs/remote-clusters.md", "the worker has version"): check_version_error,
    ("docs/monorepo.md", "repository/"): check_repository,
}


@each("text")
def test_text_is_what_is_printed_or_exists(block: Block, request: pytest.FixtureRequest) -> None:
    checks = [check for (page, part), check in TEXTS.items() if page == block.page and part in block.text]
    assert len(checks) == 1, f"{block}: add a check to TEXTS, or <!-- not run: reason --> before the block"
    checks[0](block, request)


def test_each_text_is_in_its_page() -> None:
    assert [key for key in TEXTS if not any(key[0] == one.page and key[1] in one.text for one in blocks("text"))] == []


def test_each_language_is_checked() -> None:
    unknown = [
        f"{block}: {block.language}" for block in blocks() if block.language not in LANGUAGES and not block.not_run
    ]
    assert not unknown, f"add a test for blocks in these languages: {unknown}"


def test_few_blocks_are_not_run() -> None:
    assert len([block for block in blocks() if block.not_run]) <= 3


def test_each_comment_has_a_reason_and_is_just_before_a_block() -> None:
    for page in PAGES:
        html = [token.content for token in tokens(page) if token.type == "html_block"]
        marked = [block for block in blocks() if block.page == page and block.not_run]
        assert len([text for text in html if "not run" in text]) == len(marked), page

"""What pages refer to exists: links, headings, and in inline code commands, options, files and names of the project."""

from __future__ import annotations

import builtins
import os
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.main import get_command

from pytest_synapse.modes import MARKER_HELP
from synapse_runtime.cli.app import app
from synapse_runtime.cli.lazy import LazyCommand
from tests.docs.conftest import PYTEST, problem_with_targets
from tests.docs.pages import PAGES, ROOT, anchors, inline_code, links
from tests.forks import fork_server
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment

# Files of users, and files that a run writes.
OTHERS_FILES = ("config.yml", "synapse.yaml", "synapse.yml", ".venv/suite-profile.json")
# Classes of other packages.
OTHERS_CLASSES = ("TestCase", "IsolatedAsyncioTestCase", "BaseTrainAction")
# Options that `pytest --help` shows in another spelling.
ALIASES = {"--junitxml": "--junit-xml"}
# Words that stand for others.
PLACEHOLDERS = re.compile(r"…|\.\.\.|[A-Z]+")


@cache
def files() -> list[str]:
    """Return the files of the repository, without those in hidden directories."""
    found = []
    for directory, subdirectories, names in os.walk(ROOT):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found += [os.path.join(directory, name) for name in names]
    return found


@cache
def pytest_options() -> frozenset[str]:
    """Return the options of pytest, of the installed plugins, and of this project's own test run."""
    done = fork_server({}).run(
        ["-m", "pytest", "--help"], cwd=ROOT, env=session_environment() | {"PYTEST_ADDOPTS": ""}, timeout=patience(60)
    )
    assert done.returncode == 0, done.stderr
    options = frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout))
    return options | {alias for alias, option in ALIASES.items() if option in options}


@cache
def command(*path: str) -> Any:
    """Return a command of `synapse`; None if there is none of this name."""
    found = get_command(app)
    for name in path:
        found = getattr(found, "commands", {}).get(name)
        if isinstance(found, LazyCommand):
            found = found.load()
    return found


def options_of(one: Any) -> set[str]:
    return {"--help"} | {option for param in one.params for option in (*param.opts, *param.secondary_opts)}


@cache
def synapse_options() -> frozenset[str]:
    """Return the options of all commands of `synapse`."""

    def of(*path: str) -> Iterator[str]:
        one = command(*path)
        yield from options_of(one)
        for name in getattr(one, "commands", {}):
            yield from of(*path, name)

    return frozenset(of())


def problem_with_synapse(words: list[str]) -> str | None:
    """Return what is wrong with a command line, which may be incomplete: an unknown command or option."""
    end = words.index("--") if "--" in words else len(words)
    words, for_pytest = words[:end], words[end + 1 :]
    path: list[str] = []
    while words and not words[0].startswith("-") and hasattr(command(*path), "commands"):
        if PLACEHOLDERS.fullmatch(words[0]):
            return None
        path.append(words.pop(0))
        if command(*path) is None:
            return f"unknown command {shlex.join(path)}"
    unknown = {*options_in(words)} - options_of(command(*path)) | {*options_in(for_pytest)} - pytest_options()
    return f"unknown options: {sorted(unknown)}" if unknown else None


def problem_with_file(code: str) -> str | None:
    """Return that a file does not exist; it may be given by the end of its path."""
    if not re.fullmatch(r"[\w./-]+\.(py|md|txt|toml|ya?ml|json)", code) or code in OTHERS_FILES:
        return None
    return None if any(file.endswith(f"/{code}") for file in files()) else "no such file"


def problem_with_name(code: str) -> str | None:
    """Return what is wrong with a name of this project: of a module or its contents, a fixture, an ini option."""
    for name in re.findall(r"(?<![\w/])(?:synapse_runtime|pytest_synapse)(?:\.[a-zA-Z_]{2,})+", code):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            return str(error)
    name = re.match(r"synapse_(?!runtime|sdk)\w+", code)
    if name and not re.search(rf"\"{name[0]}\"|def {name[0]}\b", source("pytest_synapse")):
        return "no such fixture, ini option or property"
    return None


def problem_with_class(code: str) -> str | None:
    """Return that no module of this project has a class of this name, and neither has Python."""
    if not re.fullmatch(r"[A-Z][a-z]+[A-Z][a-zA-Z]*", code) or code in OTHERS_CLASSES or hasattr(builtins, code):
        return None
    defined = "".join(map(source, ("synapse_runtime", "pytest_synapse", "example_plugin")))
    return None if re.search(rf"\bclass {code}\b", defined) else "no such class"


def problem_with_marker(code: str) -> str | None:
    """Return which arguments the marker does not have."""
    call = re.search(r"pytest\.mark\.synapse\(([^)]*)\)", code)
    unknown = {*re.findall(r"(\w+)=", call[1] if call else "")} - {*re.findall(r"(\w+)=None", MARKER_HELP)}
    return f"unknown arguments: {sorted(unknown)}" if unknown else None


@cache
def source(directory: str) -> str:
    """Return the code in a directory."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / directory).rglob("*.py")))


def problem_with_command(code: str) -> str | None:
    """Return what is wrong with inline code that is a command, or starts with an option."""
    try:
        program, *words = shlex.split(code)
    except ValueError:  # not a command: a single quote
        return None
    if program == "synapse":
        return problem_with_synapse(words)
    if program == "make" and words:
        return problem_with_targets(words)
    if program == "pytest":
        unknown = {*options_in(words)} - pytest_options()
    elif program.startswith("--"):
        unknown = {*options_in([program, *words])} - pytest_options() - synapse_options()
    else:
        return None
    return f"unknown options: {sorted(unknown)}" if unknown else None


def options_in(words: list[str]) -> list[str]:
    names = [name for word in words if word.startswith("-") for name in word.partition("=")[0].split("/")]
    return [name for name in names if re.match("--?[a-zA-Z]", name)]


def test_links_resolve() -> None:
    broken = []
    for page in (*PAGES, "CHANGELOG.md"):
        for line, target in links(page):
            parts = urlsplit(target)
            path = ((ROOT / page).parent / parts.path).resolve() if parts.path else ROOT / page
            if parts.scheme:
                continue
            if not path.exists() or not path.is_relative_to(ROOT):
                broken.append(f"{page}:{line}: {target}: no such file")
            elif parts.fragment and parts.fragment not in anchors(path.relative_to(ROOT).as_posix()):
                broken.append(f"{page}:{line}: {target}: no such heading")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", PAGES)
def test_inline_code_is_right(page: str) -> None:
    checks = (problem_with_command, problem_with_file, problem_with_name, problem_with_class, problem_with_marker)
    found = [(line, code, check(code)) for line, code in inline_code(page) for check in checks]
    problems = [f"{page}:{line}: `{code}`: {problem}" for line, code, problem in found if problem]
    assert not problems, "\n".join(problems)


PARTS = [code for _, code in inline_code("CONTRIBUTING.md") if code.startswith(".venv/bin/pytest ")]


@pytest.mark.parametrize("line", PARTS)
def test_command_selects_a_part_of_the_suite(line: str) -> None:
    arguments = shlex.split(line)[1:]
    paths = [word.removeprefix("--ignore=") for word in arguments if word.startswith(("tests/", "--ignore="))]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"CONTRIBUTING.md: {line}: no such file: {missing}"
    if "-k" not in arguments:
        return
    done = fork_server({}).run(
        [PYTEST, *arguments, "--collect-only", "-q", "-pno:cacheprovider"],
        cwd=ROOT,
        env=session_environment() | {"PYTEST_ADDOPTS": ""},
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stdout + done.stderr

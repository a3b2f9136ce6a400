"""The directories that the commands and code of the documentation are run in, and pytest sessions in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cli.processes import Synapse, synapse_in
from tests.docs.pages import ROOT, Block, blocks
from tests.forks import ALONE, ForkServer, fork_server
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment

PYTEST = str(Path(sys.executable).with_name("pytest"))
_IGNORED = shutil.ignore_patterns("__pycache__", "weights", ".pytest_cache")

# Of docs/monorepo.md: what is in the files that its drawing shows.
_FILES = {
    "pytest.ini": "[pytest]\npythonpath = .\n",
    "config.yaml": "actions:\n  train: {entrypoint: 'plugin.train:train'}\n",
    "__init__.py": "",
    "utils.py": "from pathlib import Path\n\nimport common\n\nNAME = Path(__file__).parents[1].name\n",
    "train.py": """
        from dataclasses import dataclass

        from synapse_runtime.decorators import action

        from .utils import NAME


        @dataclass(frozen=True)
        class TrainResult:
            name: str


        @action
        def train(params, context):
            return TrainResult(NAME)
    """,
    "conftest.py": """
        import pytest

        from plugin.utils import NAME


        @pytest.fixture
        def name():
            return NAME
    """,
    "test_train.py": """
        from pathlib import Path

        from plugin.train import TrainResult


        def test_train(synapse_executor, name):
            assert name == Path(__file__).parents[1].name
            assert synapse_executor.execute("train") == TrainResult(name)
    """,
}


class Directory:
    """A directory in which a reader of the documentation works.

    Attributes:
        path: The directory. A page's commands may change to another one.
        env: Environment variables of all commands: a state directory of their own, so no warm cluster.
    """

    def __init__(self, path: Path, state: Path) -> None:
        self.path = path
        self.env = {"XDG_STATE_HOME": str(state), "PYTEST_ADDOPTS": f"{ALONE} -pno:cacheprovider"}

    def python(self, *arguments: str, server: ForkServer | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a separate process; standard output contains standard error."""
        env = session_environment() | self.env | env
        server = server or fork_server(env)
        return server.run(arguments, cwd=self.path, env=env, timeout=patience(90), stderr_to_stdout=True)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new plugin, as `synapse plugin create` writes it, with the example plugin in a subdirectory."""
    root = tmp_path_factory.mktemp("docs")
    with synapse_in(root) as synapse:
        done = synapse("plugin", "create", "my-plugin", "--category", "neural_net", "--yes")
    assert done.status == 0, done.stderr
    shutil.copytree(ROOT / "example_plugin", root / "my-plugin" / "example_plugin", ignore=_IGNORED)
    (root / "my-plugin" / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    return root / "my-plugin"


@pytest.fixture
def directory(block: Block, template: Path, tmp_path: Path) -> Directory:
    """The directory that a block's page is about: the repository that it draws, or else a new plugin."""
    path = tmp_path / "directory"
    if block.page == "docs/monorepo.md":
        _write_drawn(next(one for one in blocks("text") if one.page == block.page), path)
    else:
        shutil.copytree(template, path)
    return Directory(path, tmp_path / "state")


@pytest.fixture
def synapse(directory: Directory) -> Iterator[Synapse]:
    """The `synapse` command, in the directory of a block's page."""
    with synapse_in(directory.path, **directory.env) as command:
        yield command


@pytest.fixture(scope="session")
def with_sklearn() -> Iterator[ForkServer]:
    """A server for processes that run actions of the example plugin: it has imported what they need."""
    modules = ("pytest_synapse.fixtures", "synapse_runtime.executors.local", "sklearn.datasets")
    server = ForkServer(["-m", "pytest", "--collect-only", *ALONE.split()], modules, {})
    yield server
    server.close()


def problem_with_targets(words: Sequence[str]) -> str | None:
    """Return what is wrong with the arguments of `make`: a target that does not exist, or has nothing to do.

    Variables that this test run itself got from make, such as VENV, are none of a reader's.
    """
    command, variables = ["make", "--dry-run", *words], {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    nothing = "Nothing to be done" in done.stdout  # what make says of a phony target without a rule
    return done.stdout if nothing else done.stderr or None


def _write_drawn(drawing: Block, root: Path) -> None:
    """Write the directories and files of a drawing: a directory's files are on its line, or indented below it."""
    above: list[tuple[int, Path]] = []
    for line in drawing.text.splitlines():
        indent = len(line) - len(line.lstrip())
        above = [(column, path) for column, path in above if column < indent]
        parent = above[-1][1] if above else root.parent
        first, *others = line.split()
        if not first.endswith("/"):
            _write(parent, [first])
            continue
        path = parent / first if above else root
        path.mkdir()
        above.append((indent, path))
        _write(path, ["__init__.py"] if "package" in others else [name for name in others if "." in name])


def _write(directory: Path, names: list[str]) -> None:
    for name in names:
        (directory / name).write_text(dedent(_FILES[name]).lstrip("\n"))

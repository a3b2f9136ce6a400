"""`synapse plugin list`, `actions` and `schema`, for valid and for broken plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Finished, Synapse, synapse_in

CONFIG = """\
code: demo
name: Demo
version: 1.2.3
env: {NEEDED: "yes"}
actions:
  train: {entrypoint: "acts.train:Train", method: job, description: Learns.}
  free: {entrypoint: "acts.train:free"}
  nothing: {entrypoint: "acts.train:Nothing"}
  heavy: {entrypoint: "acts.heavy:Heavy"}
  leaves: {entrypoint: "acts.leaves:Leaves"}
  typo: {entrypoint: "acts.train:Trian"}
  unset: {}
"""

TRAIN = '''\
import os
from pathlib import Path
from typing import Any, Literal, Optional

from pydantic import BaseModel, Field

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

print("imported")
NEEDED = os.environ["NEEDED"]


class Optimizer(BaseModel):
    kind: Literal["adam", "sgd"] = "adam"
    lr: float = Field(0.1, gt=0, description="Length of each step.")


class TrainParams(BaseModel):
    """What it takes.

    Attributes:
        epochs: How often to go through all,
            which takes long.
        tags: Words.

    Not an attribute: this.
    """

    epochs: int = Field(20, ge=1, le=100)
    name: str = Field(min_length=1, pattern="^[a-z]+$")
    tags: list[str] = Field(default_factory=list)
    note: Optional[str] = ""
    file: Path | None = Path("w.npz")
    rate: float = Field(0.5, alias="learning-rate", description="Of  learning.")
    optimizer: Optimizer = Optimizer()
    parent: Optional["TrainParams"] = None
    table: dict[str, tuple[int, ...]] = {}


class TrainResult(BaseModel):
    loss: float


class Train(BaseAction[TrainParams]):
    result_model = TrainResult

    def execute(self):
        return {"loss": 0.0}


class NoParams(BaseModel):
    pass


class Nothing(BaseAction[NoParams]):
    def execute(self):
        return None


@action
def free(params, context):
    return None
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin with valid and broken actions."""
    root = tmp_path_factory.mktemp("plugin")
    (root / "acts").mkdir()
    (root / "config.yaml").write_text(CONFIG)
    (root / "acts" / "train.py").write_text(TRAIN)
    (root / "acts" / "heavy.py").write_text("import not_installed_here\n")
    (root / "acts" / "leaves.py").write_text("import sys\nsys.exit('not today')\n")
    return root


@pytest.fixture
def here(plugin: Path) -> Iterator[Synapse]:
    """The command in the plugin's directory."""
    with synapse_in(plugin) as command:
        yield command


@pytest.fixture(scope="module")
def shown(plugin: Path) -> Finished:
    """The output of `synapse plugin actions`."""
    with synapse_in(plugin) as command:
        return command("plugin", "actions")


class TestActions:
    def test_print_a_table_of_params(self, shown: Finished) -> None:
        first = shown.stdout.split("\n\n")[0]
        assert first.splitlines() == [
            "train  (job, acts.train:Train)",
            "Learns.",
            "PARAM           TYPE                                DEFAULT      HELP",
            "epochs          int >= 1, <= 100                    20           "
            "How often to go through all, which takes long.",
            "name            str at least 1 long, like ^[a-z]+$  required",
            "tags            list[str]                           list()       Words.",
            "note            str | None                          ''",
            "file            Path | None                         w.npz",
            "learning-rate   float                               0.5          Of learning.",
            "optimizer       Optimizer                           Optimizer()",
            "optimizer.kind  'adam' | 'sgd'                      adam",
            "optimizer.lr    float > 0                           0.1          Length of each step.",
            "parent          TrainParams | None                  None",
            "table           dict[str, tuple[int, ...]]          {}",
        ]

    def test_without_params_or_model_are_marked(self, shown: Finished) -> None:
        assert "free  (task, acts.train:free)\nNo params model: it accepts any params.\n" in shown.stdout
        assert "nothing  (task, acts.train:Nothing)\nNo params.\n" in shown.stdout

    def test_that_cannot_be_imported_are_listed_with_the_reason(self, shown: Finished, plugin: Path) -> None:
        assert (shown.status, shown.stderr) == (0, "imported\n")
        assert "problem: heavy: importing acts.heavy failed: ModuleNotFoundError: No module named" in shown.stdout
        assert "problem: leaves: importing acts.leaves failed: it called sys.exit('not today')" in shown.stdout
        assert f"problem: {plugin}/config.yaml:11: action 'typo': " in shown.stdout
        assert "did you mean 'Train'?" in shown.stdout
        assert "unset  (task, no entrypoint)\nproblem: " in shown.stdout

    def test_print_json(self, here: Synapse) -> None:
        done = here("plugin", "actions", "--json")
        assert done.status == 0
        train, free, nothing, heavy, *_ = done.result
        assert (train["name"], train["method"], train["problem"]) == ("train", "job", None)
        assert train["params"][0] == {
            "name": "epochs",
            "type": "int >= 1, <= 100",
            "required": False,
            "default": 20,
            "help": "How often to go through all, which takes long.",
            "shown_default": "20",
        }
        assert train["params"][1]["required"] is True
        assert (free["params"], nothing["params"], heavy["params"]) == (None, [], None)
        assert "not_installed_here" in heavy["problem"]

    def test_print_borders_on_a_terminal(self, here: Synapse) -> None:
        with here.on_terminal(command=("plugin", "actions")) as child:
            child.expect("━━━")
            child.expect("│ epochs")
            child.expect("unset")

    def test_are_those_of_the_plugin_at_the_path(self, here: Synapse, plugin: Path, tmp_path: Path) -> None:
        assert here("plugin", "actions", "--path", str(plugin), "--json", cwd=tmp_path).result[0]["name"] == "train"
        done = here("plugin", "actions", cwd=tmp_path)
        assert (done.status, done.stdout) == (2, "")
        assert "no config.yaml or synapse.yaml in this directory" in done.stderr


class TestSchema:
    def test_prints_the_schema_of_params(self, here: Synapse) -> None:
        done = here("plugin", "schema", "train")
        assert (done.status, done.stderr) == (0, "imported\n")
        properties = done.result["$defs"]["TrainParams"]["properties"]  # it is part of itself
        assert (properties["epochs"]["type"], properties["epochs"]["maximum"]) == ("integer", 100)
        assert "learning-rate" in properties
        assert done.stdout.startswith("{\n  ")

    def test_prints_the_schema_of_the_result_on_one_line(self, here: Synapse) -> None:
        done = here("plugin", "schema", "train", "--result", "--json")
        assert done.stdout.count("\n") == 1
        assert done.result["required"] == ["loss"]

    @pytest.mark.parametrize(
        ("arguments", "status", "text"),
        [
            (("free",), 1, "error: free has no params model: it accepts any params\n"),
            (("nothing", "--result"), 1, "error: nothing has no result model: it may return anything\n"),
            (("heavy",), 1, "error: heavy: importing acts.heavy failed: ModuleNotFoundError"),
            (("trian",), 2, "Did you mean 'train'?"),
            (("typo",), 2, "config.yaml:11: action 'typo'"),
        ],
    )
    def test_missing_schema_is_an_error(
        self, here: Synapse, arguments: tuple[str, ...], status: int, text: str
    ) -> None:
        done = here("plugin", "schema", *arguments)
        assert (done.status, done.stdout) == (status, "")
        assert text in done.stderr
        assert "Traceback" not in done.stderr

    def test_unsupported_type_is_an_error(self, here: Synapse, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("code: odd\nactions: {odd: {entrypoint: odd.Odd}}\n")
        (tmp_path / "odd.py").write_text(
            "from collections.abc import Callable\nfrom pydantic import BaseModel\n"
            "from synapse_runtime.action import BaseAction\n"
            "class OddParams(BaseModel):\n    call: Callable[[], int]\n"
            "class Odd(BaseAction[OddParams]):\n    def execute(self): ...\n"
        )
        done = here("plugin", "schema", "odd", cwd=tmp_path)
        assert (done.status, done.stdout) == (2, "")
        assert "error: OddParams has no JSON Schema: " in done.stderr
        assert "call" in here("plugin", "actions", cwd=tmp_path).stdout


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with plugins, and with files that only look like those of plugins."""
    root = tmp_path_factory.mktemp("many")

    def put(directory: str, text: str, name: str = "config.yaml") -> None:
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / name).write_text(text)

    put("a", "code: first\nname: 첫째\nactions: {train: x.Y, infer: x.Z}\n")
    put("b/deep/er", "code: second\nversion: 2\n", "synapse.yml")
    put("a/within", "code: third\n")
    put("broken", "code: [unclosed\nactions: {}\n")
    put("other", "logging: true\n")
    put("a/other", "logging: true\n")
    for hidden in (".git", "node_modules/x", "lib/site-packages/x", "venv/share"):
        put(hidden, "code: hidden\n")
    put("venv", "home = /usr\n", "pyvenv.cfg")
    (root / "b" / "loop").symlink_to(root)
    (root / "z-link").symlink_to(root / "a")
    return root


class TestList:
    def test_lists_each_plugin_once_and_broken_ones_with_their_problem(self, here: Synapse, many: Path) -> None:
        done = here("plugin", "list", cwd=many)
        assert (done.status, done.stderr) == (0, "")
        lines = [line.split(None, 5) for line in done.stdout.splitlines()]
        assert lines[0] == ["CODE", "NAME", "VERSION", "ACTIONS", "PATH", "PROBLEM"]
        assert [line[0] for line in lines[1:]] == ["first", "third", "second", "broken"]
        assert done.stdout.splitlines()[1].split() == ["first", "첫째", "0.1.0", "train,", "infer", "a"]
        assert lines[3][-1] == "b/deep/er"
        assert "config.yaml:2: invalid YAML: " in done.stdout.splitlines()[4]

    def test_prints_json(self, here: Synapse, many: Path, tmp_path: Path) -> None:
        found = here("plugin", "list", str(many), "--json", cwd=tmp_path).result
        assert found[0] == {
            "path": str(many / "a"),
            "code": "first",
            "name": "첫째",
            "version": "0.1.0",
            "actions": ["train", "infer"],
            "problem": None,
        }
        assert [one["code"] for one in found if one["problem"]] == [""]

    def test_without_plugins_prints_a_note(self, here: Synapse, tmp_path: Path) -> None:
        done = here("plugin", "list", cwd=tmp_path)
        assert (done.status, done.stdout) == (0, "")
        assert f"no plugins in {tmp_path} or below" in done.stderr
        assert here("plugin", "list", "--json", cwd=tmp_path).result == []
        wrong = here("plugin", "list", "nowhere", cwd=tmp_path)
        assert (wrong.status, wrong.stderr) == (2, "error: nowhere: no such directory\n")

    def test_columns_stay_aligned_with_wide_characters(self, here: Synapse, many: Path) -> None:
        first, third = here("plugin", "list", cwd=many).stdout.splitlines()[1:3]
        # Two characters, each two columns wide.
        assert third.index("0.1.0") - first.index("0.1.0") == 2

    def test_skips_what_cannot_be_read(self, here: Synapse, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "config.yaml").write_text("code: a\n")
        (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe")
        assert [one["code"] for one in here("plugin", "list", "--json", cwd=tmp_path).result] == ["a"]

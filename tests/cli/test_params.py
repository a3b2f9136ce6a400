"""Params on the command line: types of values, precedence, and errors for invalid names and files."""

from __future__ import annotations

import datetime
import io
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, field_validator

from synapse_runtime.cli.params import GivenParams, read_json, read_pairs, read_params
from synapse_runtime.errors import ValidationError
from tests.cli.processes import COMMAND, Synapse, synapse_in
from tests.patience import patience

LOCAL = ("--mode", "local", "--json")


class Adam(BaseModel):
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(BaseModel):
    lr: float = 0.1
    momentum: float = 0.0


class Kind(Enum):
    ONE = "1"


class Params(BaseModel):
    epochs: int = 1
    rate: float = 0.1
    name: str = ""
    note: str | None = None
    fast: bool = False
    file: Path = Path()
    layers: list[int] = []
    tags: list[str] = []
    options: dict[str, Any] = {}
    limits: dict[str, int] = {}
    either: int | str = 0
    anything: Any = None
    kind: Kind = Kind.ONE
    size: Literal["1", "2"] = "1"
    wait: timedelta = timedelta()
    optimizer: Adam = Adam()
    maybe: Annotated[Adam | Sgd | None, Field()] = None
    step: float = Field(0.0, alias="step-size")
    words: list[str] = []

    @field_validator("words", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value


def given(*pairs: str, model: type[BaseModel] | None = Params, **whole: Any) -> dict[str, Any]:
    return GivenParams(whole=whole, pairs=read_pairs(pairs)).for_action("train", model)


def usage_error(*pairs: str, model: type[BaseModel] | None = Params, **whole: Any) -> str:
    with pytest.raises(typer.BadParameter) as caught:
        given(*pairs, model=model, **whole)
    assert caught.value.param_hint == "--param"
    return str(caught.value)


class TestText:
    @pytest.mark.parametrize(
        ("pair", "value"),
        [
            ("epochs=5", 5),
            ("epochs=1e3", 1000.0),
            ("rate=0.5", 0.5),
            ("rate=nan", "nan"),
            ("name=5", "5"),
            ("name=true", "true"),
            ("name=null", "null"),
            ("name=", ""),
            ("name=a=b", "a=b"),
            ('name="5"', '"5"'),
            ("name=größer", "größer"),
            ("note=null", None),
            ("note=5", "5"),
            ("fast=true", True),
            ("fast=yes", "yes"),
            ("file=5", "5"),
            ("file=a/b", "a/b"),
            ("layers=[1, 2]", [1, 2]),
            ('tags=["a"]', ["a"]),
            ("words=a,b", "a,b"),
            ('options={"a": [1]}', {"a": [1]}),
            ("either=5", 5),
            ("either=five", "five"),
            ("anything=5", 5),
            ('anything="5"', "5"),
            ("anything=five", "five"),
            ("kind=1", "1"),
            ("size=2", "2"),
            ("wait=5", 5),
            ("wait=PT5S", "PT5S"),
        ],
    )
    def test_is_read_by_the_type_of_the_field(self, pair: str, value: Any) -> None:
        name = pair.partition("=")[0]
        params = given(pair)
        assert params == {name: value}
        assert type(params[name]) is type(value)
        Params.model_validate(params)

    @pytest.mark.parametrize(("pair", "wrong"), [("epochs=1.5", 1.5), ("epochs=x", "x"), ("layers=[1", "[1")])
    def test_invalid_value_is_passed_on_for_validation(self, pair: str, wrong: Any) -> None:
        assert list(given(pair).values()) == [wrong]

    @pytest.mark.parametrize("model", [None, RootModel[dict[str, Any]]])
    def test_is_json_if_possible_without_a_model(self, model: type[BaseModel] | None) -> None:
        pairs = ("a=5", "b=x", 'c="5"', "d=[1]", "e=null", "f.g.h=true", "f.i=[")
        assert given(*pairs, model=model) == {
            "a": 5, "b": "x", "c": "5", "d": [1], "e": None, "f": {"g": {"h": True}, "i": "["},
        }  # fmt: skip

    def test_deeply_nested_json_is_text(self) -> None:
        assert given("name=" + "[" * 100_000) == {"name": "[" * 100_000}


class TestKeys:
    def test_dots_set_fields_of_models_and_keys_of_mappings(self) -> None:
        pairs = ("optimizer.lr=0.5", "maybe.momentum=0.9", "maybe.lr=1", "options.a.b=1", "limits.most=5")
        assert given(*pairs) == {
            "optimizer": {"lr": 0.5},
            "maybe": {"momentum": 0.9, "lr": 1},
            "options": {"a": {"b": 1}},
            "limits": {"most": 5},
        }

    def test_keep_other_values_of_params(self) -> None:
        whole: dict[str, Any] = {"epochs": 1, "optimizer": {"lr": 0.1, "betas": [0.5, 0.5]}, "maybe": None}
        assert given("optimizer.lr=1", "maybe.lr=2", **whole) == {
            "epochs": 1,
            "optimizer": {"lr": 1, "betas": [0.5, 0.5]},
            "maybe": {"lr": 2},
        }
        assert whole["optimizer"]["lr"] == 0.1

    def test_override_params_and_the_last_wins(self) -> None:
        assert given("epochs=2", "epochs=3", epochs=1) == {"epochs": 3}

    def test_are_aliases_if_the_model_has_some(self) -> None:
        class Aliased(BaseModel):
            a: int = Field(0, validation_alias=AliasChoices("alpha", "first"))
            b: int = Field(0, alias="beta")

        class ByName(Aliased):
            model_config = ConfigDict(populate_by_name=True)

        assert given("alpha=1", "beta=2", model=Aliased) == {"alpha": 1, "beta": 2}
        assert given("first=1", model=Aliased) == {"first": 1}
        assert given("b=1", model=ByName) == {"b": 1}
        assert "has no param 'b'" in usage_error("b=1", model=Aliased)

    @pytest.mark.parametrize(
        ("pair", "text"),
        [
            ("epoch=5", "train has no param 'epoch'. Did you mean 'epochs'? Available: epochs, rate, name,"),
            (
                "optimizer.beta=5",
                "optimizer of train has no param 'beta'. Did you mean 'optimizer.betas'? Available: lr, betas.",
            ),
            ("step=5", "train has no param 'step'. Did you mean 'step-size'?"),
            ("epochs.x=5", "epochs of train has no keys: pass its whole value, as --param epochs=VALUE"),
            ("layers.0=5", "layers of train has no keys"),
            ("limits.a.b=5", "limits.a of train has no keys"),
        ],
    )
    def test_unknown_ones_raise_an_error_with_the_closest_name(self, pair: str, text: str) -> None:
        assert usage_error(pair).startswith(text)

    def test_any_name_is_accepted_if_the_model_allows_extra_fields(self) -> None:
        class Open(BaseModel):
            model_config = ConfigDict(extra="allow")

        assert given("a=5", "b.c=x", model=Open) == {"a": 5, "b": {"c": "x"}}

    def test_cannot_be_set_in_a_value_that_is_not_an_object(self) -> None:
        assert usage_error("options.a=1", options=[1]) == "cannot set options.a: 'options' is a list in --params"

    @pytest.mark.parametrize("pair", ["epochs", "=5", ".a=5", "a.=5", "a..b=5", ""])
    def test_missing_ones_raise_an_error(self, pair: str) -> None:
        with pytest.raises(typer.BadParameter, match=r"expected KEY=VALUE \(such as epochs=5\), got "):
            read_pairs([pair])


class TestInfer:
    class Both(BaseModel):
        input: list[int]
        infer_path: str

    class Platform(BaseModel):
        input: Any = None
        path: str = "/x"

    class Neither(BaseModel):
        images: list[str] = []

    @pytest.mark.parametrize(
        ("model", "infer_path", "params"),
        [
            (None, None, {"input": [1]}),
            (None, "/v1", {"input": [1], "infer_path": "/v1"}),
            (Both, None, {"input": [1], "infer_path": "/"}),
            (Both, "/v1", {"input": [1], "infer_path": "/v1"}),
            (Platform, None, {"input": [1]}),
            (Platform, "/", {"input": [1], "path": "/"}),
        ],
    )
    def test_input_and_path_set_the_fields_of_the_model(
        self, model: type[BaseModel] | None, infer_path: str | None, params: dict[str, Any]
    ) -> None:
        assert GivenParams(input=[[1]], infer_path=infer_path).for_action("infer", model) == params

    def test_model_without_these_fields_raises_an_error(self) -> None:
        with pytest.raises(typer.BadParameter, match=r"infer has no param 'input'\. Available: images\.") as caught:
            GivenParams(input=[1]).for_action("infer", self.Neither)
        assert caught.value.param_hint == "--input"
        with pytest.raises(typer.BadParameter, match="infer has no param 'infer_path'"):
            GivenParams(infer_path="/v1").for_action("infer", self.Neither)


class TestWhole:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("p.json", '\ufeff{"epochs": 5, "name": "ä"}'),
            ("p.yaml", "epochs: 5\nname: ä\n"),
            ("p.yml", "{epochs: 5, name: ä}"),
            ("p.toml", 'epochs = 5\nname = "ä"\n'),
            ("p.yaml", "\ufeffepochs: 5\nname: ä\n"),
            ("p.toml", '\ufeffepochs = 5\nname = "ä"\n'),
        ],
    )
    def test_is_read_from_a_file(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_params(f"@{tmp_path / name}")[0] == {"epochs": 5, "name": "ä"}

    def test_is_read_from_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for text in ('{"epochs": 5}', '\ufeff{"epochs": 5}'):
            monkeypatch.setattr("sys.stdin", io.StringIO(text))
            assert read_params("-")[0] == {"epochs": 5}

    @pytest.mark.parametrize(
        ("name", "text", "shown"),
        [
            (
                "p.json",
                '{"a": 1,\n',
                "p.json: invalid JSON: Expecting property name",
            ),
            ("p.json", "[1]", "expected a JSON object such as '{\"epochs\": 5}', got list"),
            ("p.json", "[" * 100_000, "p.json: JSON exceeds a limit"),
            ("p.json", "9" * 5000, "p.json: JSON exceeds a limit"),
            ("p.yaml", "a: 1\nb: [", "p.yaml:2: invalid YAML: "),
            ("p.toml", "a = ", "p.toml: invalid TOML: Invalid value (at end of document)"),
            ("p.json", b"\xff", "p.json is not UTF-8 text"),
            ("p.json", None, "p.json cannot be read: No such file or directory"),
        ],
    )
    def test_invalid_content_error_names_the_file(
        self, tmp_path: Path, name: str, text: str | bytes | None, shown: str
    ) -> None:
        if text is not None:
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(typer.BadParameter) as caught:
            read_params(f"@{tmp_path / name}")
        assert shown in str(caught.value)
        assert caught.value.param_hint == "--params"

    def test_input_is_read_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "images.json").write_text("[1, 2]")
        assert read_json(f"@{tmp_path / 'images.json'}", "--input") == [1, 2]


PLUGIN = """\
print("imported")

from typing import Any

from pydantic import BaseModel, ConfigDict

from synapse_runtime.action import BaseAction


class Optimizer(BaseModel):
    lr: float = 0.1


class TrainParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    epochs: int = 1
    name: str = ""
    optimizer: Optimizer = Optimizer()


class Train(BaseAction[TrainParams]):
    def execute(self):
        return self.params


class InferParams(BaseModel):
    input: list[float]
    infer_path: str


class Infer(BaseAction[InferParams]):
    def execute(self):
        return self.params
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Synapse]:
    """The command in a plugin whose module prints when it is imported."""
    (tmp_path / "config.yaml").write_text(
        "code: a\nactions: {train: acts.Train, infer: acts.Infer, broken: acts.Nothing, absent: gone.Train}\n"
    )
    (tmp_path / "acts.py").write_text(PLUGIN)
    with synapse_in(tmp_path) as command:
        yield command


class TestCommand:
    def test_run_param_overrides_params_from_a_file(self, command: Synapse, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text('{"epochs": 1, "name": "x"}')
        done = command.run("train", *LOCAL, "--params", "@p.json", "--param", "name=5", "--param", "optimizer.lr=1e-3")
        assert done.result == {"epochs": 1, "name": "5", "optimizer": {"lr": 0.001}}
        assert done.stderr == "imported\n"

    def test_run_reads_them_from_standard_input(self, command: Synapse) -> None:
        done = subprocess.run(
            [*COMMAND, "plugin", "run", "train", *LOCAL, "--params", "-"],
            cwd=command.cwd,
            env=command.environment(),
            input='{"epochs": 7}',
            capture_output=True,
            text=True,
            timeout=patience(30),
        )
        assert '"epochs":7' in done.stdout

    def test_run_error_names_the_param(self, command: Synapse) -> None:
        done = command.run("train", *LOCAL, "--param", "epoch=5")
        assert (done.status, done.stdout) == (2, "")
        assert "Invalid value for --param: train has no param 'epoch'. Did you mean 'epochs'?" in done.stderr
        done = command.run("train", *LOCAL, "--param", "epochs=many")
        assert (done.status, done.stdout) == (2, "")
        assert "error: train: 1 invalid parameter (TrainParams)\n  epochs: " in done.stderr
        assert "got 'many'" in done.stderr

    def test_run_passes_input_and_path_to_infer(self, command: Synapse) -> None:
        assert command.run("infer", *LOCAL, "--input", "[1, 2]").result == {"input": [1, 2], "infer_path": "/"}
        done = command.run("train", *LOCAL, "-i", "[1]")
        assert done.status == 2
        assert "Invalid value for --input: train has no param 'input'" in done.stderr

    @pytest.mark.parametrize(
        ("action", "text"), [("broken", "has no 'Nothing'"), ("absent", "module 'gone' does not exist")]
    )
    def test_run_reports_a_missing_action_as_usual(self, command: Synapse, action: str, text: str) -> None:
        done = command.run(action, *LOCAL, "--param", "epochs=5")
        assert done.status == 2
        assert text in done.stderr
        assert "Traceback" not in done.stderr


class TestYamlFile:
    """A YAML file with `--params`: typed by the params model, as `--param` is."""

    class Params(BaseModel):
        class Region(BaseModel):
            country: str

        day: str
        date: datetime.date
        country: str
        version: str | None
        build: int
        ratio: float
        is_on: bool
        missing: str | None
        tags: list[str]
        pair: tuple[int, str]
        labels: dict[str, str]
        regions: Annotated[list[Region], Field(min_length=1)]
        anything: Any

    TEXT = """\
day: 2024-01-15
date: 2024-01-15
country: NO
version: 1.10
build: 010
ratio: 1
is_on: on
missing: ~
tags: [1.0, yes, x]
pair: [7, 7]
labels: {a: 1, no: off}
regions: [{country: NO}]
anything: [2024-01-15, 1.10, NO]
"""

    def read(self, path: Path, text: str) -> dict[str, Any]:
        path.write_text(text, encoding="utf-8")
        whole, file = read_params(f"@{path}")
        return GivenParams(whole=whole, file=file).for_action("train", self.Params)

    def test_is_typed_by_the_model(self, tmp_path: Path) -> None:
        read = self.Params.model_validate(self.read(tmp_path / "p.yaml", self.TEXT)).model_dump(mode="json")
        assert read == {
            "day": "2024-01-15",
            "date": "2024-01-15",
            "country": "NO",
            "version": "1.10",
            "build": 8,
            "ratio": 1.0,
            "is_on": True,
            "missing": None,
            "tags": ["1.0", "yes", "x"],
            "pair": [7, "7"],
            "labels": {"a": "1", "no": "off"},
            "regions": [{"country": "NO"}],
            "anything": ["2024-01-15", 1.1, False],
        }

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a: 1\nb: 2\na: 3\n", "p.yaml:3: duplicate key 'a', first defined in line 1; remove one"),
            ("a: !!python/name:os.system\n", "p.yaml:1: tag '!!python/"),
            ("a: 1\n---\nb: 2\n", "p.yaml:2: invalid YAML: a second document starts here"),
        ],
    )
    def test_mistakes_that_yaml_forgives_are_errors_with_their_line(
        self, tmp_path: Path, text: str, shown: str
    ) -> None:
        with pytest.raises(typer.BadParameter) as caught:
            self.read(tmp_path / "p.yaml", text)
        assert shown in str(caught.value)

    def test_lines_of_invalid_params_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "p.yaml"
        path.write_text("country: NO\nregions:\n- country: x\n- country: [1]\nratio: much\ntags: 3\n")
        whole, file = read_params(f"@{path}")
        given = GivenParams(whole=whole, file=file, pairs=[("tags", "[]")])
        problems = [{"loc": loc} for loc in (("ratio",), ("regions", 1, "country"), ("day",), ("tags",))]
        lines = given.lines(ValidationError("invalid", errors=problems))
        assert lines == [f"ratio: {path}:5", f"regions.1.country: {path}:4"]
        assert GivenParams(whole=whole).lines(ValidationError("invalid", errors=problems)) == []

    def test_dates_of_a_toml_file_are_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_text("day = 2024-01-15\nat = [{time = 07:30:00}]\n")
        assert read_params(f"@{tmp_path / 'p.toml'}")[0] == {"day": "2024-01-15", "at": [{"time": "07:30:00"}]}

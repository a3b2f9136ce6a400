"""Forms that `update-config` writes are those of the SDK: by its `update-config`, and else by its `publish`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_runtime.plugins.config_sync import plan_update
from tests.patience import patience
from tests.sdk_remote.conftest import SDK_PYTHON

CONFIG = """\
name: Forms
code: forms
version: 1.0.0
category: custom
actions:
  train: {entrypoint: plugin.main.TrainAction, method: job}
  tune: {entrypoint: plugin.main.TuneAction, method: job}
  upload: {entrypoint: plugin.main.UploadAction, method: job}
  evaluate: {entrypoint: plugin.main.EvaluateAction, method: task}
"""
MAIN = """\
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

from annotated_types import Interval
from pydantic import BaseModel, Field, PositiveInt, PrivateAttr, computed_field, conint
from synapse_sdk.plugins.action import BaseAction


class Color(Enum):
    RED = "red"


class Nested(BaseModel):
    depth: int = 1


def described(schema):
    schema["help"] = "by a function"
    schema["formkit"] = "radio"


class Base(BaseModel):
    kind: ClassVar[str] = "x"
    inherited: int = 1
    _private: int = PrivateAttr(default=3)

    @computed_field
    @property
    def computed(self) -> int:
        return 1


class Params(Base):
    whole: int
    whole_default: int = 3
    zero: int = 0
    real: float = 0.1
    tiny: float = 1e-7
    huge: int = 10**30
    flag: bool
    flag_off: bool = False
    flag_on: bool = True
    word: str
    word_default: str = "yes"
    words: str = "a: b # c, [d] {e}\\nf\\u2028g \\U0001f600 \\x07 'h' \\"i\\""
    empty: str = ""
    number_like: str = "1.10"
    date_like: str = "2024-01-01"
    plain_list: list = Field(default_factory=list)
    strings: list[str] = ["a", "b"]
    numbers: list[int] = [1, 2]
    pair: tuple[int, str] | None = None
    mapping: dict[str, int] = {"a": 1}
    by_number: dict[int, str] | None = None
    plain_dict: dict = {}
    some: set[int] | None = None
    choice: Literal["a", "b"] = "a"
    number_choice: Literal[1, 2] = 2
    color: Color
    maybe: Optional[int] = None
    maybe_flag: bool | None = True
    maybe_list: Optional[list[int]] = None
    either: Union[int, str] = "a"
    other: str | int = 1
    none_first: None | float = 2.5
    only_none: None = None
    nested: Nested
    nested_default: Nested | None = None
    several: list[Nested] = []
    anything: Any = None
    any_default: Any = {"x": [1, {"y": None}]}
    path: Path
    made: int = Field(default_factory=lambda: 4)
    between: int = Field(default=5, ge=1, le=9)
    strictly: float = Field(default=0.5, gt=0, lt=1)
    steps: int = Field(default=4, multiple_of=2)
    all_bounds: Annotated[int, Field(ge=1), Field(le=3)] = 2
    positive: PositiveInt = 1
    con: conint(ge=2) = 2
    interval: Annotated[int, Interval(ge=1, lt=9)] = 3
    in_optional: Annotated[int, Field(ge=1)] | None = None
    short: str = Field(default="a", min_length=1, max_length=9, pattern="^a")
    described: int = Field(default=1, description="Ünïcode: what it is, and # why", title="A title")
    deprecated: int = Field(default=1, deprecated=True, examples=[1], frozen=True)
    left_out: int = Field(default=1, exclude=True)
    selected: str = Field(
        default="medium",
        json_schema_extra={"formkit": "select", "options": ["small", "medium"], "help": "Size", "other": 1},
    )
    labelled: int = Field(
        default=1,
        description="replaced",
        ge=0,
        json_schema_extra={
            "label": "Label", "help": "Help", "required": False, "min": 2, "max": 8, "step": 2,
            "options": [{"label": "A", "value": 1}],
        },
    )
    retyped: int = Field(default=1, json_schema_extra={"formkit": "range"})
    numeric: str = Field(default="1", json_schema_extra={"formkit": "number"})
    by_function: int = Field(default=1, json_schema_extra=described)
    data_path: str = "set by a pipeline"
    model_path: str = ""
    lr2x_A: float = 1.0


class HiddenParams(Params):
    hidden: int = Field(default=1, json_schema_extra={"exclude_from_ui": True})
    hidden_too: int = Field(default=1, json_schema_extra=lambda schema: schema.update(exclude_from_ui=True))


class Result(BaseModel):
    weights: str
    loss: float = Field(ge=0, description="The last one.")
    model_path: str = ""


class TrainAction(BaseAction[HiddenParams]):
    result_model = Result

    def execute(self): ...


class TuneAction(BaseAction[HiddenParams]):
    action_name = "tune"

    def execute(self): ...


class UploadAction(BaseAction[HiddenParams]):
    def execute(self): ...


class EvaluateAction(BaseAction[Params]):
    result_model = Result

    def execute(self): ...
"""
# What the SDK's `publish` sends, of which its `update-config` writes a part.
PUBLISHED = """
import json, sys
sys.path.insert(0, ".")
from synapse_sdk.plugins.discovery import PluginDiscovery
print(json.dumps(PluginDiscovery.from_path("config.yaml").to_config_dict()["actions"]))
"""


def write_forms(directory: Path) -> Path:
    for name, text in {"config.yaml": CONFIG, "plugin/__init__.py": "", "plugin/main.py": MAIN}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


def by_sdk(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SYNAPSE", "PYTHON"))}
    done = subprocess.run(
        command, cwd=cwd, env={**env, "HOME": str(cwd)}, capture_output=True, text=True, timeout=patience(120)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The actions of a config file after our `update-config`."""
    update = plan_update(write_forms(tmp_path_factory.mktemp("ours")))
    assert update.problems == ()
    actions: dict[str, Any] = yaml.safe_load(update.after)["actions"]
    return actions


def test_update_config_writes_the_forms_of_the_sdk(ours: dict[str, Any], tmp_path: Path) -> None:
    root = write_forms(tmp_path)
    by_sdk(Path(os.environ[SDK_PYTHON]).with_name("synapse"), "plugin", "update-config", cwd=root)
    actions = yaml.safe_load((root / "config.yaml").read_text())["actions"]
    for action in ("train", "tune"):
        assert ours[action]["hyperparameters"] == actions[action]["hyperparameters"]
    assert ours["upload"]["ui_schema"] == actions["upload"]["ui_schema"]
    assert (ours["upload"].get("hyperparameters"), actions["upload"].get("hyperparameters")) == (None, None)
    assert len(ours["train"]["hyperparameters"]["train_ui_schemas"]) > 50


def test_other_forms_are_those_that_the_sdk_publishes(ours: dict[str, Any], tmp_path: Path) -> None:
    printed = by_sdk(os.environ[SDK_PYTHON], "-c", PUBLISHED, cwd=write_forms(tmp_path))
    published = json.loads(printed.strip().splitlines()[-1])
    assert ours["evaluate"] == published["evaluate"]
    assert ours["train"]["result_schema"] == published["train"]["result_schema"]
    assert "result_schema" not in {**ours["tune"], **published["tune"]}

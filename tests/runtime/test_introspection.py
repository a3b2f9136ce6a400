"""A plugin's modules, imported in a process that may exit, crash or hang."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from synapse_runtime.errors import PluginError
from synapse_runtime.plugins.introspection import introspect, module_names, modules_of_a_plugin
from synapse_runtime.plugins.introspection_worker import ModuleInfo, ModuleRequest
from tests.patience import patience, within

ACTION = """\
from synapse_runtime.decorators import action

@action
def good(params, context):
    return 1
"""


@pytest.fixture
def root(tmp_path):
    """A directory, and a way to write modules into it."""

    def write(**modules: str) -> Path:
        for name, source in modules.items():
            write_file(tmp_path / f"{name}.py", source)
        return tmp_path

    return write


def write_file(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def look(root: Path, *modules: str, **options) -> dict[str, ModuleInfo]:
    return {
        one.module: one
        for one in introspect(root, [ModuleRequest(module=name, actions=True) for name in modules], **options)
    }


def fault(seen: ModuleInfo) -> tuple[str, str | None, int | None]:
    assert seen.fault is not None
    return seen.fault.text, seen.fault.file and Path(seen.fault.file).name, seen.fault.line


BROKEN = {
    "missing": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", 1),
    "zero": ("x = 1\n1 / 0", "ZeroDivisionError: division by zero", 2),
    "syntax": ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", 2),
    "leaving": ("import sys\nsys.exit(3)", "SystemExit: 3", 2),
    "interrupted": ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
    "deeper": ("import json\n\njson.loads('{')", "JSONDecodeError: Expecting property name", 3),
    "odd": ("class E(Exception):\n    def __str__(self): raise 1\n\nraise E", "E: <str() failed: TypeError>", 4),
    "secret": ("import os\nraise ValueError('with ' + os.environ['API_KEY'])", "ValueError: with <API_KEY>", 2),
    "long": ("raise ValueError('a' * 10_000)", "ValueError: aaaa", 1),
}


def test_why_modules_cannot_be_imported_is_told_with_their_lines(root):
    where = root(**{name: source for name, (source, _, _) in BROKEN.items()}, good=ACTION)
    seen = look(where, *BROKEN, "good", env={"API_KEY": "s3cret-value"})
    for name, (_, text, line) in BROKEN.items():
        told = fault(seen[name])
        assert told[0].startswith(text)
        assert len(told[0]) <= 500
        assert told[1:] == (f"{name}.py", line)
    assert [one.name for one in seen["good"].actions] == ["good"]


@pytest.mark.parametrize(
    ("source", "text", "line"),
    [
        ("import os\nos._exit(3)", "its import ended the process with exit status 3", None),
        ("import os\nos.kill(os.getpid(), 11)", "its import crashed Python: SIGSEGV", 2),
        ("import time\ntime.sleep(60)", "its import did not end within 0.5 s", 2),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "its import did not end within 0.5 s", None),
    ],
)
def test_a_module_that_takes_the_process_along_does_not_hide_the_others(root, source, text, line, monkeypatch):
    monkeypatch.setattr("synapse_runtime.plugins.introspection._GRACE", 0.5)
    seen = look(root(first=ACTION, bad=source, last=ACTION), "first", "bad", "last", seconds=0.5)
    assert fault(seen["bad"]) == (text, line and "bad.py", line)
    assert [one.name for name in ("first", "last") for one in seen[name].actions] == ["good", "good"]


def test_nothing_that_a_module_starts_is_left_behind(root, tmp_path):
    where = root(bad="import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    started = time.monotonic()
    assert look(where, "bad")["bad"].fault is None
    assert time.monotonic() - started < patience(30)
    pid = int((tmp_path / "pid").read_text())
    assert within(10, lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_what_a_module_prints_or_reads_is_not_ours(root, capfd):
    seen = look(root(talker="import sys\nprint('out')\nsys.stderr.write('err')\nsys.stdin.read()"), "talker")
    assert seen["talker"].fault is None
    assert capfd.readouterr() == ("", "")


def test_modules_are_imported_in_the_plugins_directory_with_its_environment(root, tmp_path):
    source = "import os\nassert os.getcwd() == os.path.dirname(__file__)\nassert os.environ['LEVEL'] == 'high'"
    assert look(root(here=source), "here", env={"LEVEL": "high"})["here"].fault is None
    assert "LEVEL" not in os.environ


def test_a_module_that_does_not_exist_is_told_apart_from_one_that_misses_another(root):
    seen = look(root(bad="import no_such_thing", package=""), "nowhere", "package.nowhere", "bad")
    assert {name: one.missing for name, one in seen.items()} == {
        "nowhere": True,
        "package.nowhere": True,
        "bad": False,
    }


ZOO = '''\
import enum
from abc import abstractmethod
from pydantic import BaseModel
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action
from other import Imported


class Kind:
    name = "yolo_dataset"


class Method(enum.Enum):
    JOB = "job"


class NoAction:
    pass


class TrainModelAction(BaseAction):
    """Trains
    a model.

    And more.
    """
    input_type = Kind
    output_type = "weights"
    method = Method.JOB

    def execute(self):
        return 1


class Base(BaseAction):
    @abstractmethod
    def other(self): ...
    def execute(self):
        return 1


class Duck:
    action_name = "quack"

    def dispatch(self, params, context):
        return 1


class Executor:
    def execute(self):
        """No action, as it has no name."""


class _Hidden(TrainModelAction):
    pass


Alias = TrainModelAction
instance = Duck()


@action(name="convert", description="Converts.")
def to_other(params, context):
    return 1


@action
async def later(params, context):
    """Comes later."""
'''


def test_actions_are_found_in_the_order_of_their_lines(root):
    where = root(zoo=ZOO, other="from synapse_runtime.action import BaseAction\n\nclass Imported(BaseAction): ...\n")
    seen = look(where, "zoo")["zoo"]
    assert [one.entrypoint for one in seen.actions] == [
        "zoo:TrainModelAction",
        "zoo:Duck",
        "zoo:to_other",
        "zoo:later",
    ]
    train, quack, convert, later = seen.actions
    assert (train.name, train.description, train.method) == ("train_model", "Trains a model.", "job")
    assert (train.input_type, train.output_type, train.line) == ("yolo_dataset", "weights", 21)
    assert (quack.name, quack.description, quack.method) == ("quack", "", None)
    assert (convert.name, convert.description) == ("convert", "Converts.")
    assert (later.name, later.description) == ("later", "Comes later.")


def test_names_are_looked_up_and_the_nearest_told(root):
    wanted = ModuleRequest(
        module="zoo", names=["TrainModelAction", "TrianModelAction", "NoAction", "Duck.dispatch", "enum"]
    )
    (seen,) = introspect(root(zoo=ZOO, other="Imported = 1"), [wanted])
    assert {name: one and (one.is_action, one.what) for name, one in seen.names.items()} == {
        "TrainModelAction": (True, ""),
        "TrianModelAction": None,
        "NoAction": (False, "a class"),
        "Duck.dispatch": (False, "a function"),
        "enum": (False, "a module"),
    }
    assert seen.similar["TrianModelAction"] == "TrainModelAction"


PARAMS = """\
from collections.abc import Callable
from dataclasses import dataclass
from pydantic import BaseModel
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action


@dataclass
class Plain:
    epochs: int = 1


class Good(BaseModel):
    epochs: int = 1


class Unsaid(BaseModel):
    then: Callable[[int], int]


class Undefined(BaseModel):
    other: "Nowhere"


class Hiding(BaseModel):
    epochs: int = 1
    copy: bool = True


class A(BaseAction[Good]):
    def execute(self): ...


class B(BaseAction[Plain]):
    def execute(self): ...


class C(BaseAction):
    params_model = Plain
    def execute(self): ...


@action(params=Unsaid)
def d(params, context): ...


@action(params=Undefined)
def e(params, context): ...


@action(params=Hiding)
def f(params, context): ...
"""


def test_what_is_wrong_with_params_models_is_told(root):
    seen = look(root(zoo=PARAMS), "zoo")["zoo"]
    assert [(one.name, one.params_model) for one in seen.actions] == [
        ("a", "Good"),
        ("b", None),
        ("c", "Plain"),
        ("d", "Unsaid"),
        ("e", "Undefined"),
        ("f", "Hiding"),
    ]
    faults = [(fault.line, fault.level, fault.text) for one in seen.actions for fault in one.faults]
    assert [(line, level, text.split(";")[0].split(" (")[0]) for line, level, text in faults] == [
        (34, "warning", "action 'b': params of type zoo.Plain are not checked"),
        (38, "error", "action 'c': its params model, zoo.Plain, is no pydantic model"),
        (
            17,
            "warning",
            "action 'd': Unsaid has no JSON schema: Cannot generate a JsonSchema for core_schema.CallableSchema",
        ),
        (21, "error", "action 'e': Undefined cannot be used: PydanticUserError: `Undefined` is not fully defined"),
        (27, "warning", "action 'f': the param 'copy' hides what pydantic models have by this name"),
    ]


def test_tests_and_other_plugins_and_environments_are_no_part_of_a_plugin(tmp_path):
    for name in (
        *("plugin/train", "plugin/test", "plugin/test_train", "plugin/train_test", "tests/test_train", "tests/helpers"),
        *("conftest", "setup", "other/actions", "venv/lib", "env/lib", "build/lib", "not-a-package/actions"),
    ):
        write_file(tmp_path / f"{name}.py", ACTION)
    write_file(tmp_path / "plugin/__init__.py", "")
    write_file(tmp_path / "plugin/constants.py", "A = 1")
    write_file(tmp_path / "plugin/broken.py", "def f(:")
    write_file(tmp_path / "script.py", "print('works')")
    write_file(tmp_path / "other/config.yaml", "code: other\n")
    write_file(tmp_path / "env/pyvenv.cfg", "")
    assert list(modules_of_a_plugin(tmp_path)) == ["plugin.broken", "plugin.test", "plugin.train"]
    assert module_names(tmp_path) == [
        "plugin",
        "plugin.broken",
        "plugin.constants",
        "plugin.test",
        "plugin.train",
        "script",
    ]


def test_a_python_that_cannot_be_started_is_told(root, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(PluginError, match="did not start: "):
        look(root(good=ACTION), "good")


def test_actions_that_were_written_for_the_sdk_are_found_with_it_or_without(root):
    source = """\
from synapse_sdk.plugins.action import BaseAction
from synapse_sdk.plugins.decorators import action
from synapse_sdk.plugins.types import ModelWeights, YOLODataset


class TrainAction(BaseAction):
    action_name = "learn"
    input_type = YOLODataset
    output_type = ModelWeights

    def execute(self):
        return 1


@action(name="convert", description="Converts.")
def to_other(params, context):
    return 1
"""
    seen = look(root(theirs=source), "theirs")["theirs"]
    assert seen.fault is None
    assert [(one.name, one.entrypoint, one.input_type, one.output_type) for one in seen.actions] == [
        ("learn", "theirs:TrainAction", "yolo_dataset", "model_weights"),
        ("convert", "theirs:to_other", None, None),
    ]

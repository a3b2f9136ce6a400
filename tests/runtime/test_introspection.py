"""Tests for inspecting a plugin's modules in a process that may exit, crash or hang."""

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
    """Return a function that writes modules into a directory."""

    def write(**modules: str) -> Path:
        for name, source in modules.items():
            write_file(tmp_path / f"{name}.py", source)
        return tmp_path

    return write


def write_file(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def inspect_modules(root: Path, *modules: str, **options) -> dict[str, ModuleInfo]:
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
    "exiting": ("import sys\nsys.exit(3)", "SystemExit: 3", 2),
    "interrupted": ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
    "deeper": ("import json\n\njson.loads('{')", "JSONDecodeError: Expecting property name", 3),
    "odd": ("class E(Exception):\n    def __str__(self): raise 1\n\nraise E", "E: <str() failed: TypeError>", 4),
    "secret": ("import os\nraise ValueError('with ' + os.environ['API_KEY'])", "ValueError: with <API_KEY>", 2),
    "long": ("raise ValueError('a' * 10_000)", "ValueError: aaaa", 1),
}


def test_import_errors_have_reason_and_line(root):
    where = root(**{name: source for name, (source, _, _) in BROKEN.items()}, good=ACTION)
    seen = inspect_modules(where, *BROKEN, "good", env={"API_KEY": "s3cret-value"})
    for name, (_, text, line) in BROKEN.items():
        shown = fault(seen[name])
        assert shown[0].startswith(text)
        assert len(shown[0]) <= 500
        assert shown[1:] == (f"{name}.py", line)
    assert [one.name for one in seen["good"].actions] == ["good"]


@pytest.mark.parametrize(
    ("source", "text", "line"),
    [
        ("import os\nos._exit(3)", "the process exited with status 3", None),
        ("import os\nos.kill(os.getpid(), 11)", "Python crashed with SIGSEGV", 2),
        ("import time\ntime.sleep(60)", "import timed out after 0.5 s", 2),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "import timed out after 0.5 s", None),
    ],
)
def test_module_that_ends_the_process_does_not_hide_others(root, source, text, line, monkeypatch):
    monkeypatch.setattr("synapse_runtime.plugins.introspection._GRACE", 0.5)
    seen = inspect_modules(root(first=ACTION, bad=source, last=ACTION), "first", "bad", "last", seconds=0.5)
    assert fault(seen["bad"]) == (text, line and "bad.py", line)
    assert [one.name for name in ("first", "last") for one in seen[name].actions] == ["good", "good"]


def test_child_processes_of_a_module_are_killed(root, tmp_path):
    where = root(bad="import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    started = time.monotonic()
    assert inspect_modules(where, "bad")["bad"].fault is None
    assert time.monotonic() - started < patience(30)
    pid = int((tmp_path / "pid").read_text())
    assert within(10, lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_modules_cannot_print_or_read_stdin(root, capfd):
    seen = inspect_modules(root(talker="import sys\nprint('out')\nsys.stderr.write('err')\nsys.stdin.read()"), "talker")
    assert seen["talker"].fault is None
    assert capfd.readouterr() == ("", "")


def test_working_directory_and_env_are_those_of_the_plugin(root, tmp_path):
    source = "import os\nassert os.getcwd() == os.path.dirname(__file__)\nassert os.environ['LEVEL'] == 'high'"
    assert inspect_modules(root(here=source), "here", env={"LEVEL": "high"})["here"].fault is None
    assert "LEVEL" not in os.environ


def test_missing_module_is_distinguished_from_missing_dependency(root):
    seen = inspect_modules(root(bad="import no_such_thing", package=""), "nowhere", "package.nowhere", "bad")
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


class NotAnAction:
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
        """Not an action, because it has no name."""


class _Hidden(TrainModelAction):
    pass


Alias = TrainModelAction
instance = Duck()


@action(name="convert", description="Converts.")
def to_other(params, context):
    return 1


@action
async def later(params, context):
    """Runs later."""
'''


def test_actions_are_found_in_source_order(root):
    where = root(zoo=ZOO, other="from synapse_runtime.action import BaseAction\n\nclass Imported(BaseAction): ...\n")
    seen = inspect_modules(where, "zoo")["zoo"]
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
    assert (later.name, later.description) == ("later", "Runs later.")


def test_unknown_name_gets_a_suggestion(root):
    request = ModuleRequest(
        module="zoo", names=["TrainModelAction", "TrianModelAction", "NotAnAction", "Duck.dispatch", "enum"]
    )
    (seen,) = introspect(root(zoo=ZOO, other="Imported = 1"), [request])
    assert {name: one and (one.is_action, one.what) for name, one in seen.names.items()} == {
        "TrainModelAction": (True, ""),
        "TrianModelAction": None,
        "NotAnAction": (False, "a class"),
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


def test_params_model_problems_are_reported(root):
    seen = inspect_modules(root(zoo=PARAMS), "zoo")["zoo"]
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
        (34, "warning", "action 'b': params of type zoo.Plain are not validated"),
        (38, "error", "action 'c': params model zoo.Plain is not a pydantic model"),
        (
            17,
            "warning",
            "action 'd': Unsaid has no JSON schema: Cannot generate a JsonSchema for core_schema.CallableSchema",
        ),
        (21, "error", "action 'e': Undefined cannot be used: PydanticUserError: `Undefined` is not fully defined"),
        (27, "warning", "action 'f': parameter 'copy' shadows BaseModel.copy"),
    ]


def test_modules_exclude_tests_other_plugins_and_environments(tmp_path):
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


def test_python_that_cannot_start_raises_plugin_error(root, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(PluginError, match="cannot start the Python process that imports the plugin's modules: "):
        inspect_modules(root(good=ACTION), "good")


def test_sdk_actions_are_found_with_and_without_the_sdk(root):
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
    seen = inspect_modules(root(theirs=source), "theirs")["theirs"]
    assert seen.fault is None
    assert [(one.name, one.entrypoint, one.input_type, one.output_type) for one in seen.actions] == [
        ("learn", "theirs:TrainAction", "yolo_dataset", "model_weights"),
        ("convert", "theirs:to_other", None, None),
    ]

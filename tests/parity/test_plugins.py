"""Row 21: plugins with the same module names, each with its own modules; and edits between runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.errors import ActionNotFoundError, ConfigError, ExecutionError
from synapse_runtime.executors.base import Executor
from synapse_runtime.loggers import NullLogger
from synapse_runtime.plugins.plugin import Plugin
from synapse_runtime.runner import executor_class
from tests.parity.modes import everywhere, not_as_jobs
from tests.parity.sessions import write

pytestmark = everywhere

CONFIG = """\
code: {name}
actions:
  whose: {{entrypoint: "plugin.train:whose"}}
"""
TRAIN = """\
import sys
from dataclasses import dataclass

from synapse_runtime.decorators import action

from .utils import NAME


@dataclass
class Whose:
    names: list[str]


@action
def whose(params, context):
    from plugin.late import LATE
    from shared_helper import HELPER

    context.log("seen", {"whose": Whose([NAME])})
    return Whose([NAME, LATE, HELPER, *sorted(name for name in sys.modules if name.startswith("plugin."))])
"""
WHICH = """

@action
def which(params, context):
    import importlib

    return {name: getattr(importlib.import_module(name), "WHOSE", None) for name in params["names"]}
"""
MODULES = ["plugin.late", "plugin.train", "plugin.utils"]


@pytest.fixture
def executor_of(request: pytest.FixtureRequest, synapse_mode: str) -> Iterator[Callable[[Path], Executor]]:
    """Creates executors of this mode; in task mode all of them use one warm worker."""
    options: dict[str, Any] = {}
    if synapse_mode == "remote":
        backend = request.getfixturevalue("synapse_backend")
        options = {"host": backend.host, "token": backend.token}
    with contextlib.ExitStack() as stack:
        if synapse_mode == "task":
            from synapse_runtime.executors.ray.task import WarmWorker

            worker = options["worker"] = WarmWorker()
            stack.callback(worker.close)

        def executor(plugin: Path) -> Executor:
            made = executor_class(synapse_mode)(plugin=plugin, logger=NullLogger(), **options)
            return stack.enter_context(made)

        yield executor


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], Path]:
    """Writes plugins whose files differ only in the name that they contain, which always has the same length."""

    def write_plugin(name: str) -> Path:
        return write(
            tmp_path / name,
            {
                "config.yaml": CONFIG.format(name=name),
                "plugin/__init__.py": "",
                "plugin/utils.py": f"NAME = {name!r}\n",
                "plugin/late.py": f"LATE = 'late {name}'\n",
                "plugin/train.py": TRAIN,
                "shared_helper.py": f"HELPER = 'helper of {name}'\n",
            },
        )

    return write_plugin


def test_21_each_plugin_gets_its_own_modules_in_any_order(executor_of, plugin, synapse_mode):
    plugins = {name: plugin(name) for name in ("red", "tan")}
    executors = {name: executor_of(path) for name, path in plugins.items()}
    for name in ("red", "tan", "red")[: 2 if synapse_mode == "job" else 3]:  # each job has its own process
        events = []
        run = executors[name].run("whose", on_event=events.append)
        result = run.unwrap()
        assert result.names == [name, f"late {name}", f"helper of {name}", *MODULES]
        assert [event.data["whose"].names for event in run.logs] == [[name]]
        assert [type(event.data["whose"]) for event in (*run.logs, *events)] == [type(result)] * 2
        with Plugin.load(plugins[name]).importable():
            assert type(pickle.loads(pickle.dumps(result))) is type(result)


@not_as_jobs
def test_21_sys_modules_and_sys_path_are_restored(executor_of, plugin):
    executor = executor_of(plugin("red"))
    with contextlib.suppress(ImportError):
        import ray  # noqa: F401 - its first import changes both
    before, path = dict(sys.modules), list(sys.path)
    assert executor.execute("whose").names[0] == "red"
    assert sys.path == path
    new = {name: module for name, module in sys.modules.items() if before.get(name) is not module}
    assert not [name for name in new if name.startswith(("plugin", "shared_helper"))]
    assert before.items() <= sys.modules.items()


@not_as_jobs
def test_21_edit_between_runs_takes_effect(executor_of, plugin):
    path = plugin("red")
    executor = executor_of(path)
    assert executor.execute("whose").names[:2] == ["red", "late red"]
    for file, text in (("utils", "NAME = 'new'\n"), ("late", "LATE = 'late new'\n")):
        edited = path / "plugin" / f"{file}.py"
        second = (
            edited.stat().st_mtime_ns // 10**9 * 10**9
        )  # also set for the edited file: bytecode is validated by this and the size
        assert edited.stat().st_size == len(text)
        edited.write_text(text)
        os.utime(edited, ns=(second, second))
    assert executor.execute("whose").names == ["new", "late new", "helper of red", *MODULES]


@not_as_jobs
def test_21_files_newer_than_the_clock_are_imported_once(executor_of, plugin):
    path, tomorrow = plugin("red"), time.time() + 86400
    for file in path.rglob("*.py"):
        os.utime(file, (tomorrow, tomorrow))
    executor = executor_of(path)
    with Plugin.load(path).importable():
        whose = importlib.import_module("plugin.train").Whose
    for _ in range(2):
        assert type(executor.execute("whose")) is whose


@not_as_jobs
def test_21_module_of_python_is_imported_in_place_of_one_of_the_plugin_with_its_name(executor_of, plugin, monkeypatch):
    path = plugin("red")
    names = ("tabnanny", "logging", "test_data")
    for name in names:
        (path / f"{name}.py").write_text("WHOSE = 'red'\n")
    with (path / "plugin" / "train.py").open("a") as file:
        file.write(WHICH)
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)  # imported by few
    for _ in range(2):
        found = executor_of(path).execute("plugin.train:which", {"names": names})
        assert found == {"tabnanny": None, "logging": None, "test_data": "red"}
    with pytest.raises(
        ConfigError, match="'tabnanny' has no 'WHOSE'; it is a module of Python: rename that of the plugin"
    ):
        Plugin.load(path).load_action("tabnanny:WHOSE")


@not_as_jobs
def test_21_new_and_deleted_files_and_an_edited_config_file_take_effect(executor_of, plugin):
    path = plugin("red")
    executor = executor_of(path)
    with pytest.raises(ActionNotFoundError):
        executor.execute("added")
    (path / "plugin" / "added.py").write_text(TRAIN)
    (path / "plugin" / "late.py").unlink()
    (path / "config.yaml").write_text(CONFIG.format(name="red") + '  added: {entrypoint: "plugin.added:whose"}\n')
    with pytest.raises(ExecutionError) as caught:
        executor.execute("added")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.__cause__.name == "plugin.late"
    (path / "plugin" / "late.py").write_text("LATE = 'back'\n")
    assert executor.execute("added").names[1] == "back"

"""Tests for the import hook that resolves `synapse_sdk` names to `synapse_runtime` if the SDK is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest

from synapse_runtime.sdk_compat import import_hook

COUNTERPARTS = {
    "plugins.action:BaseAction": "action:BaseAction",
    "plugins.action:NoResult": "action:NoResult",
    "plugins.action:validate_result": "action:validate_result",
    "plugins.context:PluginEnvironment": "environment:PluginEnvironment",
    "plugins.context:RuntimeContext": "context:RuntimeContext",
    "plugins.context.env:PluginEnvironment": "environment:PluginEnvironment",
    "plugins.decorators:action": "decorators:action",
    "plugins.enums:PluginCategory": "enums:PluginCategory",
    "plugins.enums:ACTION_DEFAULT_METHODS": "enums:ACTION_DEFAULT_METHODS",
    "plugins.errors:ActionNotFoundError": "errors:ActionNotFoundError",
    "plugins.errors:ExecutionError": "errors:ExecutionError",
    "plugins.errors:PluginError": "errors:PluginError",
    "plugins.errors:ValidationError": "errors:ValidationError",
    "plugins.executors.local:LocalExecutor": "executors.local:LocalExecutor",
    "plugins.executors.ray:RayActorExecutor": "executors.ray.task:RayActorExecutor",
    "plugins.executors.ray:RayJobsApiExecutor": "executors.ray.job:RayJobsApiExecutor",
    "plugins.executors.ray.task:RayActorExecutor": "executors.ray.task:RayActorExecutor",
    "plugins.executors.ray.jobs_api:RayJobsApiExecutor": "executors.ray.job:RayJobsApiExecutor",
    "plugins.log_messages:LogMessageCode": "messages:LogMessageCode",
    "plugins.models.logger:LogLevel": "messages:LogLevel",
    "plugins.runner:ExecutionMode": "enums:ExecutionMode",
    "plugins.runner:run_plugin": "runner:run_plugin",
    "plugins.types:YOLODataset": "types:YOLODataset",
    "plugins:BaseAction": "action:BaseAction",
    "plugins:ExecutionError": "errors:ExecutionError",
    "plugins:PluginCategory": "enums:PluginCategory",
    "plugins:RuntimeContext": "context:RuntimeContext",
    "plugins:run_plugin": "runner:run_plugin",
    "i18n:LocalizedMessage": "messages:LocalizedMessage",
    "loggers:BaseLogger": "loggers:BaseLogger",
    "loggers:ConsoleLogger": "loggers:ConsoleLogger",
    "loggers:ProgressData": "loggers:ProgressData",
    "loggers:NoOpLogger": "loggers:NullLogger",
}


def named(package: str, place: str) -> object:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def python(code: str, *, path: Path | None = None) -> str:
    environment = {} if path is None else {"PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("sdk_name", "runtime_name"), COUNTERPARTS.items())
def test_sdk_name_resolves_to_our_object(sdk_name, runtime_name):
    assert named("synapse_sdk", sdk_name) is named("synapse_runtime", runtime_name)


@pytest.mark.parametrize(
    "statement",
    [
        "import synapse_sdk.plugins.steps",
        "from synapse_sdk.plugins import steps",
        "from synapse_sdk.plugins.actions.train import BaseTrainAction",
        "from synapse_sdk.plugins.pipelines import ActionPipeline",
        "from synapse_sdk.clients.backend import BackendClient",
        "from synapse_sdk.plugins import BaseTrainAction",
        "from synapse_sdk.plugins.errors import ModelLoadError",
        "from synapse_sdk.loggers import JobLogger",
        "from synapse_sdk.plugins.action import inspect",
        "from synapse_sdk import nothing",
    ],
)
def test_unsupported_name_error_shows_how_to_get_it(statement):
    with pytest.raises(ImportError, match=r"synapse_sdk\S+ is not available: .*, run `pip install synapse-sdk`"):
        exec(statement)


def test_action_is_both_module_and_decorator():
    from synapse_sdk.plugins import action
    from synapse_sdk.plugins.decorators import action as decorate

    @action
    def one(params, context): ...

    @action(name="two")
    def other(params, context): ...

    import synapse_sdk.plugins.action

    assert (one._action_name, other._action_name) == ("one", "two")
    assert decorate is named("synapse_runtime", "decorators:action")
    assert synapse_sdk.plugins.action.BaseAction is named("synapse_runtime", "action:BaseAction")


def test_modules_list_their_names():
    from synapse_sdk.plugins import errors, types

    assert "ExecutionError" in dir(errors)
    assert {"DataType", "Dataset", "ModelWeights"} <= set(types.__all__)
    assert not {"Any", "annotations", "difflib"} & set(dir(errors))
    names: dict[str, object] = {}
    exec("from synapse_sdk.plugins.enums import *", names)
    assert names["RunMethod"] is named("synapse_runtime", "enums:RunMethod")


def test_modules_have_standard_module_attributes():
    module = importlib.import_module("synapse_sdk.plugins.runner")
    assert repr(module) == "<module 'synapse_sdk.plugins.runner', provided by synapse_runtime in place of synapse-sdk>"
    assert module.__name__ == "synapse_sdk.plugins.runner"
    assert module.__spec__ is not None
    assert module.__spec__.origin == import_hook.__file__
    assert not hasattr(module, "__wrapped__")
    assert importlib.util.find_spec("synapse_sdk") is not None


def test_attributes_can_be_monkeypatched(monkeypatch):
    monkeypatch.setattr("synapse_sdk.plugins.runner.run_plugin", print)
    from synapse_sdk.plugins.runner import run_plugin

    assert run_plugin is print


def test_classes_pickle_under_their_runtime_name():
    from synapse_sdk.plugins.action import BaseAction

    assert b"synapse_sdk" not in pickle.dumps(BaseAction)
    assert pickle.loads(pickle.dumps(BaseAction)) is BaseAction


@pytest.mark.parametrize("first", ["import synapse_runtime", "import pytest_synapse.plugin"])
def test_real_package_takes_precedence(tmp_path, first):
    (tmp_path / "synapse_sdk" / "plugins").mkdir(parents=True)
    (tmp_path / "synapse_sdk" / "__init__.py").touch()
    (tmp_path / "synapse_sdk" / "plugins" / "__init__.py").touch()
    (tmp_path / "synapse_sdk" / "plugins" / "action.py").write_text("BaseAction = 'the real one'")
    code = f"""
{first}
from synapse_sdk.plugins.action import BaseAction
print(BaseAction)
try:
    import synapse_sdk.plugins.runner
except ImportError as error:
    print(error)
"""
    root = Path(import_hook.__file__).parents[2]
    real = python(f"import sys; sys.path.append({str(root)!r})\n{code}", path=tmp_path)
    assert real.splitlines() == ["the real one", "No module named 'synapse_sdk.plugins.runner'"]


def test_uninstalled_hook_resolves_nothing():
    code = """
import synapse_runtime
from synapse_runtime.sdk_compat import import_hook
import synapse_sdk.plugins.action
import_hook.uninstall()
assert not import_hook.is_installed()
for name in ("synapse_sdk", "synapse_sdk.plugins.action"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error)
import_hook.install()
import_hook.install()
import synapse_sdk.plugins.action
"""
    assert python(code).splitlines() == ["No module named 'synapse_sdk'"] * 2


def test_importing_the_package_does_not_import_pydantic():
    assert python("import sys, synapse_runtime, synapse_sdk; print('pydantic' in sys.modules)") == "False"


def test_name_without_counterpart_is_an_attribute_error_that_says_what_provides_it():
    module = importlib.import_module("synapse_sdk.plugins")
    assert not hasattr(module, "nope")
    assert getattr(module, "nope", 7) == 7
    text = r"synapse_sdk\.plugins\.nope is not available: .*`pip install synapse-sdk`"
    with pytest.raises(AttributeError, match=text):
        _ = module.nope
    with pytest.raises(ImportError, match=text):
        exec("from synapse_sdk.plugins import nope")


def test_modules_can_be_specifications_of_mocks():
    module = importlib.import_module("synapse_sdk.plugins")
    mocked = unittest.mock.create_autospec(module)
    mocked.run_plugin("digits", "train")
    with pytest.raises(AttributeError):
        _ = mocked.nope

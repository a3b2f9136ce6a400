"""Tests of plugins created by the SDK's own `synapse plugin create`, each with a package `plugin`, in one session."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parity.sessions import run_pytest
from tests.sdk.conftest import HERE
from tests.sdk.creation import CALLS, create_all, write_dataset

MODES = ("local", "task", "job")

# Entrypoints that are not actions: they have no `dispatch`, which the SDK's executors call.
NOT_ACTIONS = {
    "export-export-without_params": "plugin.export.Exporter",
    "data_validation-validate-without_params": "plugin.validate.Validator",
    "pre_annotation-pre_annotate-without_params": "plugin.pre_annotate.PreAnnotator",
    "post_annotation-post_annotate-without_params": "plugin.post_annotate.PostAnnotator",
    "custom-main-without_params": "plugin.main.run",
}

# Written into each plugin.
TESTS = """
import json
import os
import uuid
from pathlib import Path

import pytest
from plainly import outcome_of

CALLS = json.loads(Path(__file__).with_name("calls.json").read_text())


@pytest.mark.parametrize("name", CALLS)
def test_call(name, synapse_executor, synapse_mode):
    action, params = CALLS[name]
    run = synapse_executor.run(action, json.loads(params.replace("{mode}", synapse_mode)))
    Path(os.environ["OUTCOMES"], f"{name}-{synapse_mode}.json").write_text(json.dumps(outcome_of(run)))
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return create_all(tmp_path_factory.mktemp("created"))


def test_all_actions_of_the_config_files_are_called(plugins: dict[str, Path]):
    defined = {
        (category, action)
        for category, plugin in plugins.items()
        for action in yaml.safe_load((plugin / "config.yaml").read_text())["actions"]
    }
    assert defined == {(call.category, call.action) for call in CALLS}


@pytest.fixture(scope="module")
def outcomes(plugins: dict[str, Path], under_the_sdk: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcomes of all calls, by where they ran: each mode, and `sdk`."""
    work = tmp_path_factory.mktemp("work")
    data = write_dataset(work / "data")
    (work / "outcomes").mkdir()
    new = uuid.uuid4().hex

    def text_of(params: Any) -> str:
        text = json.dumps(params).replace("{data}", str(data)).replace("{out}", str(work / "out-{mode}"))
        return text.replace("{new}", f"{new}-{{mode}}")

    calls = [
        {
            "plugin": str(plugins[call.category]),
            "action": call.action,
            "params": json.loads(text_of(call.params).replace("{mode}", "sdk")),
            "env": {},
        }
        for call in CALLS
    ]
    found = {"sdk": dict(zip((call.name for call in CALLS), under_the_sdk(calls), strict=True))}
    for category, plugin in plugins.items():
        (plugin / "tests").mkdir()
        (plugin / "tests" / "test_actions.py").write_text(TESTS)
        own = {call.name: [call.action, text_of(call.params)] for call in CALLS if call.category == category}
        (plugin / "tests" / "calls.json").write_text(json.dumps(own))
    env = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    env |= {"OUTCOMES": str(work / "outcomes"), "PYTHONPATH": str(HERE / "handwritten" / "tests")}
    session = run_pytest(
        next(iter(plugins.values())).parent,
        "--synapse-mode=all",
        "--import-mode=importlib",
        "-q",
        env=env,
        timeout=300,
    )
    assert session.status == 0, session.output
    for path in Path("/tmp/synapse_auto_deploy").glob(f"*{new}*"):  # left behind by the SDK's auto_label
        path.unlink()
    for mode in MODES:
        written = {call.name: work / "outcomes" / f"{call.name}-{mode}.json" for call in CALLS}
        found[mode] = {name: json.loads(path.read_text()) for name, path in written.items()}
    return {place: _without_place(by_name, work / f"out-{place}") for place, by_name in found.items()}


def _without_place(outcomes: Mapping[str, Any], out: Path) -> Any:
    return json.loads(json.dumps(outcomes).replace(str(out), "out"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [call.name for call in CALLS if call.name not in NOT_ACTIONS])
def test_outcome_is_the_same_as_with_the_sdk(name: str, mode: str, outcomes: Any):
    assert outcomes[mode][name] == outcomes["sdk"][name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NOT_ACTIONS)
def test_error_names_an_entrypoint_that_the_sdk_cannot_run(name: str, mode: str, outcomes: Any):
    kind, text = outcomes["sdk"][name]["error"]
    assert kind == "AttributeError"
    assert text.endswith("has no attribute 'dispatch'")
    kind, text = outcomes[mode][name]["error"]
    assert kind == "ConfigError"
    assert text.startswith(f"{NOT_ACTIONS[name]} is not an action")


def test_actions_that_need_no_platform_succeed(outcomes: Any):
    done = {name for name, outcome in outcomes["sdk"].items() if outcome["error"] is None}
    assert done == {"neural_net-test-without_params", "neural_net-convert"}

"""What is expected of the handwritten plugin is what the SDK's own `LocalExecutor` gives."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "handwritten"


def test_expected_outcomes_are_those_under_the_sdk(under_the_sdk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "path", [str(PLUGIN / "tests"), *sys.path])
    found = runpy.run_path(str(PLUGIN / "tests" / "cases.py"))
    cases = {**found["CASES"], **found["CASES_OF_SDK"]}
    calls = [
        {"plugin": str(PLUGIN), "action": case.action, "params": case.params_in(tmp_path), "env": case.env}
        for case in cases.values()
    ]
    assert dict(zip(cases, under_the_sdk(calls), strict=True)) == {name: case.outcome() for name, case in cases.items()}


def test_where_the_sdk_does_otherwise(under_the_sdk):
    """A decorated function it does not run at all; params it refuses in pydantic's words; a result it only logs."""
    calls = [("function", {}), ("checked", {"project": 404}), ("other_result", {})]
    function, checked, other_result = under_the_sdk(
        [{"plugin": str(PLUGIN), "action": action, "params": params, "env": {}} for action, params in calls]
    )
    assert function["error"] == ["AttributeError", "'function' object has no attribute 'dispatch'"]
    assert checked["error"][0] == "ValidationError"
    assert checked["error"][1].startswith("2 validation errors for CheckedParams")
    assert checked["events"] == []
    assert other_result["result"] == {"number": "many"}
    assert other_result["events"][0][1].startswith("Result validation warning for NumberResult")

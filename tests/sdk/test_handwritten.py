"""Tests that the expected outcomes of the handwritten plugin are those of the SDK's own `LocalExecutor`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "handwritten"


def test_expected_outcomes_are_those_of_the_sdk(under_the_sdk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "path", [str(PLUGIN / "tests"), *sys.path])
    found = runpy.run_path(str(PLUGIN / "tests" / "cases.py"))
    cases = {**found["CASES"], **found["CASES_OF_SDK"]}
    calls = [
        {"plugin": str(PLUGIN), "action": case.action, "params": case.params_in(tmp_path), "env": case.env}
        for case in cases.values()
    ]
    assert dict(zip(cases, under_the_sdk(calls), strict=True)) == {name: case.outcome() for name, case in cases.items()}


def test_known_differences_to_the_sdk(under_the_sdk):
    """The SDK cannot run decorated functions, raises pydantic's error for invalid params, and only logs bad results."""
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

"""Tests that run the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Public names; their docstrings must have an example.
PUBLIC = {
    "action": ["BaseAction"],
    "context": ["RuntimeContext"],
    "decorators": ["action"],
    "environment": ["PluginEnvironment"],
    "events": ["Event", "Progress", "StepMetrics"],
    "executors.local": ["LocalExecutor"],
    "executors.ray.job": ["RayJobsApiExecutor"],
    "executors.ray.task": ["RayActorExecutor"],
    "executors.remote.executor": ["RemoteExecutor"],
    "loggers": ["ConsoleLogger"],
    "runner": ["run_plugin"],
}


def modules() -> list[str]:
    files = [path for package in ("synapse_runtime", "pytest_synapse") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if "templates" not in path.parts]
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0


@pytest.mark.parametrize(("module", "names"), PUBLIC.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_public_names_have_an_example(module, names):
    found = importlib.import_module(f"synapse_runtime.{module}")
    assert [name for name in names if ">>>" not in (getattr(found, name).__doc__ or "")] == []

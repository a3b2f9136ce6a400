"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.runtime.test_layout import modules

# Names that people import; their docstrings must have an example.
PUBLIC = {
    "action": ["BaseAction"],
    "context": ["RuntimeContext"],
    "decorators": ["action"],
    "environment": ["PluginEnvironment"],
    "events": ["Event", "Progress", "StepMetrics"],
    "executors.local": ["LocalExecutor"],
    "executors.ray.job": ["RayJobsApiExecutor"],
    "executors.ray.task": ["RayActorExecutor"],
    "loggers": ["ConsoleLogger"],
    "runner": ["run_plugin"],
}


@pytest.mark.parametrize("name", sorted(name for name in modules() if not name.endswith("__main__")))
def test_examples_give_what_they_say(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0


@pytest.mark.parametrize(("module", "names"), PUBLIC.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_public_names_have_an_example(module, names):
    found = importlib.import_module(f"synapse_runtime.{module}")
    assert [name for name in names if ">>>" not in (getattr(found, name).__doc__ or "")] == []

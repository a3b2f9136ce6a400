"""Tests with the real `synapse-sdk`, installed by `nox -s sdk`; without it they are not collected."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import cluster

HERE = Path(__file__).parent


def _has_sdk() -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("synapse-sdk"))
    return False


if not _has_sdk():
    collect_ignore_glob = ["*"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start one cluster for everything that these tests run, in this process and others."""
    if not _has_sdk() or config.option.collectonly:
        return
    # These options are for the cluster of the other tests.
    config.option.synapse_num_cpus = config.option.synapse_num_gpus = None
    for warning in (
        ":DeprecationWarning",
        "Field name .* shadows an attribute:UserWarning",
    ):  # raised when importing the SDK
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    if hasattr(config, "workerinput"):  # a pytest-xdist worker uses the cluster of the controller
        return
    stack = contextlib.ExitStack()
    config.add_cleanup(stack.close)
    # Remove all credentials, with which the SDK's actions would call the platform.
    for name in [name for name in os.environ if name.startswith("SYNAPSE_")]:
        del os.environ[name]
    os.environ["HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
    connection = stack.enter_context(cluster(num_cpus=4))
    os.environ.update({name: value for name, value in connection.items() if name.startswith("RAY_")})
    os.environ["RAY_ADDRESS"] = connection["address"]


@pytest.fixture(scope="session")
def under_the_sdk() -> Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]:
    """Return a function that runs calls with the SDK's own `LocalExecutor`, see `reference.py`."""

    def outcomes(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(HERE / "reference.py")],
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE / "handwritten" / "tests")},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        plain: list[dict[str, Any]] = json.loads(done.stdout)
        return plain

    return outcomes

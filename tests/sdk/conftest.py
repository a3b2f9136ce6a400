"""Tests with the real `synapse-sdk`, which `nox -s sdk` installs. Elsewhere there are none of them."""

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
    """Have one cluster for all that these tests run, in this process and others."""
    if not _has_sdk() or config.option.collectonly:
        return
    # Of the cluster that other tests start.
    config.option.synapse_num_cpus = config.option.synapse_num_gpus = None
    for warning in (":DeprecationWarning", "Field name .* shadows an attribute:UserWarning"):  # of importing the SDK
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    if hasattr(config, "workerinput"):  # of pytest-xdist, which has the cluster of the controller
        return
    stack = contextlib.ExitStack()
    config.add_cleanup(stack.close)
    # Nobody's credentials: with some, the SDK's actions would ask the platform.
    for name in [name for name in os.environ if name.startswith("SYNAPSE_")]:
        del os.environ[name]
    os.environ["HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
    told = stack.enter_context(cluster(num_cpus=4))
    os.environ.update({name: value for name, value in told.items() if name.startswith("RAY_")})
    os.environ["RAY_ADDRESS"] = told["address"]


@pytest.fixture(scope="session")
def under_the_sdk() -> Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]:
    """Run calls under the SDK's own `LocalExecutor`, and return their outcomes: see `reference.py`."""

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

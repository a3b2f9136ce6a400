"""Backends, a home directory without a login, and executors with short time limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.executors.remote.executor import RemoteExecutor
from synapse_runtime.executors.remote.transport import Timeouts
from synapse_runtime.loggers import NullLogger
from tests.remote.stub import TOKEN, PlainBackend, RuntimeBackend

SHORT = Timeouts(connect=5, read=0.8, read_v2=0.8, retry=0.02, outage=5, late=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without a login, and no variables that would take its place."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
    for name in (
        *("SYNAPSE_HOST", "SYNAPSE_ACCESS_TOKEN", "SYNAPSE_AGENT_ID", "SYNAPSE_PLUGIN_RUN_USER_TOKEN"),
        *("SYNAPSE_PLUGIN_RUN_TENANT", "SYNAPSE_LANGUAGE"),
    ):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture
def plain() -> Iterator[PlainBackend]:
    """A plain backend."""
    with PlainBackend() as backend:
        yield backend


@pytest.fixture
def runtime() -> Iterator[RuntimeBackend]:
    """A backend with `/runtime/`."""
    with RuntimeBackend() as backend:
        yield backend


@pytest.fixture(params=["plain", "runtime"])
def backend(request: pytest.FixtureRequest) -> PlainBackend:
    """Each kind of backend."""
    found: PlainBackend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteExecutor]]:
    """Returns an executor for a backend."""
    executors: list[RemoteExecutor] = []

    def new(backend: PlainBackend, **options: Any) -> RemoteExecutor:
        given = {"plugin": "digits", "agent": 7, "timeouts": SHORT, "logger": NullLogger()} | options
        executors.append(RemoteExecutor(backend.url, TOKEN, **given))
        return executors[-1]

    yield new
    for executor in executors:
        executor.close()

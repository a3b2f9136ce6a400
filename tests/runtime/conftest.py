"""What the runtime's tests share: plugins written on the spot, and a quiet executor."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger

WritePlugin = Callable[..., Path]


@pytest.fixture
def write_plugin(tmp_path: Path) -> WritePlugin:
    """Write a plugin's config file and its other files, given by their paths, into a directory; return that."""

    def write(directory: str = "a_plugin", *, config: str, files: Mapping[str, str] | None = None) -> Path:
        root = tmp_path / directory
        for name, text in {"config.yaml": config, **(files or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return root

    return write


@pytest.fixture
def local() -> LocalExecutor:
    """An executor in this process that shows nothing."""
    return LocalExecutor(logger=NullLogger())

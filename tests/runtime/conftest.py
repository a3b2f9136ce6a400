"""What the runtime's tests share: plugins written on the spot, and a quiet executor."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger

WritePlugin = Callable[..., Path]
_NOBODY = 65534


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


@pytest.fixture
def unreadable_file() -> Iterator[Callable[[str], Path]]:
    """Return a function that creates a file with this name, in a directory of its own, which this process cannot read.

    Root can read every file, so during the test the process runs as the user `nobody`.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)

        def create(name: str) -> Path:
            path = Path(directory, name)
            path.write_text("text\n")
            path.chmod(0)
            if os.getuid() == 0:
                os.seteuid(_NOBODY)
            return path

        try:
            yield create
        finally:
            os.seteuid(os.getuid())

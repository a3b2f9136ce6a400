"""Tests for a worker's own copy of a plugin, and for mapping paths between worker and caller."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from synapse_runtime.core.execution import ActionCall
from synapse_runtime.executors.path_mapping import PathMap
from tests.patience import patience


def test_only_paths_of_the_plugin_are_mapped():
    path_map = PathMap("/home/ada/digits", "/tmp/copy/digits")
    assert path_map.to_worker("/home/ada/digits") == "/tmp/copy/digits"
    assert path_map.to_worker("/home/ada/digits/tests") == "/tmp/copy/digits/tests"
    assert path_map.to_worker("/home/ada/digits2") is None
    assert path_map.all_to_worker(["/usr/lib", "/home/ada/digits/tests"]) == ("/tmp/copy/digits/tests",)


def test_call_without_a_plugin_has_an_empty_working_directory():
    call = PathMap(None, "/tmp/copy/plugin").call(ActionCall("m:f", "f", cwd="/home/ada"))
    assert (call.cwd, call.import_root, call.config_path) == ("/tmp/copy/plugin", None, None)


CREATE_COPY = """
    import os, sys
    from synapse_runtime.executors.path_mapping import create_worker_copy
    path_map = create_worker_copy("/home/ada/digits", sys.argv[1])
    print(path_map.worker_root, os.environ.get("PYTHONPATH"), sys.argv[1] in sys.path, flush=True)
    {end}
"""


@pytest.mark.parametrize(
    "end",
    ["pass", "os._exit(3)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "import signal; signal.pause()"],
)
def test_copy_belongs_to_the_worker_and_is_deleted_with_it(tmp_path, end):
    package, temp = tmp_path / "package", tmp_path / "temp"
    package.mkdir()
    temp.mkdir()
    (package / "config.yaml").write_text("code: x")
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CREATE_COPY).format(end=end), str(package)],
        env={**os.environ, "TMPDIR": str(temp), "PYTHONPATH": os.pathsep.join([str(package), "/opt/image"])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    here, paths, importable = worker.stdout.readline().split()
    worker.stdout.close()
    assert Path(here).is_relative_to(temp)
    assert Path(here).name == "digits"
    assert (paths, importable) == ("/opt/image", "False")
    if "pause" in end:
        assert (Path(here) / "config.yaml").read_text() == "code: x"
        worker.kill()
    worker.wait()
    deadline = time.monotonic() + patience(5)
    while list(temp.iterdir()):
        assert time.monotonic() < deadline, list(temp.iterdir())
        time.sleep(0.02)

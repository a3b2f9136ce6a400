"""A worker's own copy of a plugin, and whose path is whose."""

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


def test_paths_of_the_plugin_arrive_and_others_do_not():
    moved = PathMap("/home/ada/digits", "/tmp/copy/digits")
    assert moved.to_worker("/home/ada/digits") == "/tmp/copy/digits"
    assert moved.to_worker("/home/ada/digits/tests") == "/tmp/copy/digits/tests"
    assert moved.to_worker("/home/ada/digits2") is None
    assert moved.all_to_worker(["/usr/lib", "/home/ada/digits/tests"]) == ("/tmp/copy/digits/tests",)


def test_a_call_without_a_plugin_has_an_empty_directory_to_work_in():
    call = PathMap(None, "/tmp/copy/plugin").call(ActionCall("m:f", "f", cwd="/home/ada"))
    assert (call.cwd, call.import_root, call.config_path) == ("/tmp/copy/plugin", None, None)


SETTLE = """
    import os, sys
    from synapse_runtime.executors.path_mapping import create_worker_copy
    moved = create_worker_copy("/home/ada/digits", sys.argv[1])
    print(moved.worker_root, os.environ.get("PYTHONPATH"), sys.argv[1] in sys.path, flush=True)
    {end}
"""


@pytest.mark.parametrize(
    "end",
    ["pass", "os._exit(3)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "import signal; signal.pause()"],
)
def test_the_copy_is_the_workers_own_and_ends_with_it(tmp_path, end):
    package, temp = tmp_path / "package", tmp_path / "temp"
    package.mkdir()
    temp.mkdir()
    (package / "config.yaml").write_text("code: x")
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SETTLE).format(end=end), str(package)],
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

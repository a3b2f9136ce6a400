"""The specification of a run's cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from synapse_runtime.executors.ray.cluster.control_socket import SOCKET_NAME
from synapse_runtime.executors.ray.cluster.session_scope import ClusterSpec, current_spec, new_directory


def test_process_keeps_its_spec():
    assert current_spec.get() is current_spec.get()


def test_directory_and_token_are_unpredictable_and_nothing_is_created():
    one, other = ClusterSpec(), ClusterSpec()

    assert not one.path.exists()
    assert (one.directory, one.token) != (other.directory, other.token)
    assert one.token not in repr(one)
    assert one.parent_pid == os.getpid()


def test_socket_paths_fit_even_if_the_path_of_the_temporary_directory_is_long(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    assert len(new_directory()) + len("/r") + 64 <= 107
    assert len(new_directory()) + len(f"/{SOCKET_NAME}") <= 107


FORK = """
import os
from synapse_runtime.executors.ray.cluster.session_scope import current_spec

own = current_spec.get()
if os.fork() == 0:
    theirs = current_spec.get()
    os._exit(0 if theirs.directory != own.directory and theirs.parent_pid == os.getpid() else 1)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), current_spec.get() is own)
"""


def test_forked_process_is_a_run_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout == "0 True\n"

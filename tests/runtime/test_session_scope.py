"""Where a run's cluster is to be."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from synapse_runtime.executors.ray.cluster.session_scope import ClusterSpec, current_spec, new_directory


def test_a_process_keeps_its_site():
    assert current_spec.get() is current_spec.get()


def test_nothing_is_made_and_nobody_can_guess_where_it_will_be():
    one, other = ClusterSpec(), ClusterSpec()

    assert not one.path.exists()
    assert (one.directory, one.token) != (other.directory, other.token)
    assert one.token not in repr(one)
    assert one.holder == os.getpid()


def test_rays_sockets_fit_below_it_however_long_the_temporary_directory_is(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    assert len(new_directory()) + len("/r") + 64 <= 107


FORK = """
import os
from synapse_runtime.executors.ray.cluster.session_scope import current_spec

own = current_spec.get()
if os.fork() == 0:
    theirs = current_spec.get()
    os._exit(0 if theirs.directory != own.directory and theirs.holder == os.getpid() else 1)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), current_spec.get() is own)
"""


def test_a_fork_is_a_run_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout == "0 True\n"

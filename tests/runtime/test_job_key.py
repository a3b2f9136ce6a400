"""The key of a user's jobs: a file that only this user can read, the same for all of the user's processes."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.executors.ray import job_key as module
from synapse_runtime.executors.ray.job_key import job_key
from tests.patience import patience

PROGRAM = "from synapse_runtime.executors.ray.job_key import job_key; print(job_key('run-1').hex())"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of the key's file, which does not exist yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    module._user_key.cache_clear()
    yield tmp_path / "synapse-clusters" / "job-key"
    module._user_key.cache_clear()


def test_key_is_of_one_job_and_kept_in_a_file_of_this_user(file):
    first = job_key("run-1")
    assert first != job_key("run-2")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    module._user_key.cache_clear()
    assert job_key("run-1") == first
    assert [path.name for path in file.parent.iterdir()] == ["job-key"]


def test_processes_that_create_the_key_at_the_same_time_get_the_same(file):
    started = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {process.communicate(timeout=patience(60))[0] for process in started}
    assert found == {f"{job_key('run-1').hex()}\n"}


@pytest.mark.parametrize("fault", ["readable by others", "too short"])
def test_key_that_others_may_know_is_not_used(file, fault):
    first = job_key("run-1")
    if fault == "readable by others":
        file.chmod(0o644)
    else:
        file.write_bytes(b"short")
    module._user_key.cache_clear()
    with pytest.warns(UserWarning, match=f"{file} is not used, as another user may know it, or it is too short"):
        second = job_key("run-1")
    assert second != first
    assert job_key("run-1") == second, "the same in this process"


def test_without_a_state_directory_the_key_is_of_this_process(file):
    file.parent.write_text("")
    assert job_key("run-1") == job_key("run-1")
    assert not file.is_file()

"""Row 20: many actions in a row leak nothing; actions with fresh isolation see no state of others."""

import gc
import os
import threading
from pathlib import Path

import pytest

MEGABYTE = 1_000_000


def resources_here():
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir(os.environ.get("TMPDIR", "/tmp"))),
    }


@pytest.mark.synapse(mode=("local", "task"), env={"GIVEN": "value"})
def test_20_a_thousand_runs_leak_nothing(synapse_executor):
    def run(count):
        for number in range(count):
            assert synapse_executor.execute("echo", {"value": [number, "x" * 1000]}) == [number, "x" * 1000]
        return resources_here(), synapse_executor.execute("lab.workers:Where")

    here_before, worker_before = run(100)
    here, worker = run(1000)
    assert worker["pid"] == worker_before["pid"]
    for before, after in ((here_before, here), (worker_before, worker)):
        assert after["descriptors"] <= before["descriptors"] + 3
        assert after["threads"] <= before["threads"] + 2
        assert after["memory"] <= before["memory"] + 20 * MEGABYTE
    assert here["files"] <= here_before["files"] + 5


@pytest.mark.synapse(mode="job")
def test_20_jobs_in_a_row_leak_nothing_and_see_no_state_of_each_other(synapse_executor):
    assert synapse_executor.execute("lab.workers:Count") == 1
    before = resources_here()
    for _ in range(2):
        assert synapse_executor.execute("lab.workers:Count") == 1
    after = resources_here()
    assert after["descriptors"] <= before["descriptors"] + 3
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 5


def server_of(parents):
    """Return the pid of the server among the processes that a run descends from, while it runs."""
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in parents}
    found = [pid for pid, path in commands.items() if path.exists() and b"server.embedded" in path.read_bytes()]
    return found[0]


@pytest.mark.synapse(mode="remote")
def test_20_runs_through_a_backend_leak_nothing_and_see_no_state_of_each_other(synapse_executor):
    server = Path("/proc", str(server_of(synapse_executor.execute("lab.workers:Where")["parents"])))

    def run(count):
        for _ in range(count):
            assert synapse_executor.execute("lab.workers:Count") == 1
        return resources_here(), len(list((server / "fd").iterdir())), len(list((server / "task").iterdir()))

    here_before, *server_before = run(20)
    here, *server_after = run(60)
    assert here["descriptors"] <= here_before["descriptors"] + 3
    assert here["threads"] <= here_before["threads"] + 2
    assert here["memory"] <= here_before["memory"] + 20 * MEGABYTE
    assert here["files"] <= here_before["files"] + 5
    assert all(after <= before + 10 for before, after in zip(server_before, server_after, strict=True))


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.synapse(mode=("local", "task", "remote"), isolation="fresh")
def test_20_fresh_isolation_sees_no_state_of_other_tests(synapse_executor, turn):
    assert synapse_executor.execute("lab.workers:Count") == 1


@pytest.mark.synapse(mode=("local", "task"))
def test_20_shared_isolation_keeps_state_between_calls(synapse_executor):
    first = synapse_executor.execute("lab.workers:Count")
    assert synapse_executor.execute("lab.workers:Count") == first + 1

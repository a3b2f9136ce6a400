"""Behaviour of task and job mode that the contract's tests do not cover."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy

from synapse_runtime.decorators import action
from synapse_runtime.loggers import NullLogger
from tests.ray.conftest import PLUGIN


@action
def emit_and_wait(params, context):
    context.log("here")
    deadline = time.monotonic() + 60
    while not Path(params["until"]).exists():
        if time.monotonic() > deadline:
            return "not heard"
        time.sleep(0.02)
    return "heard"


def test_on_event_is_called_while_the_action_runs(executor, tmp_path):
    heard = tmp_path / "heard"
    params = {"until": str(heard)}
    assert executor.run(emit_and_wait, params, on_event=lambda _: heard.touch()).result == "heard"


def test_binary_output_is_captured(executor, capfd):
    run = executor.run("print", {"raw": b"\xff\x00\r\x1eend\n"})
    assert run.result == {"printed": 0}
    assert run.stdout == "\ufffd\x00\r\x1eend\n"


def test_environment_is_layered_and_restored_after_the_call(task, worker):
    from synapse_runtime.executors.ray import RayActorExecutor

    given = RayActorExecutor({"SHARED": "given", "GIVEN": 1}, plugin=PLUGIN, worker=worker, logger=NullLogger())
    assert given.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "given", "GIVEN": "1"}
    assert task.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "config", "GIVEN": None}


def test_array_of_50_megabytes_is_returned_without_copying(task):
    array = task.execute("array", {"megabytes": 50})
    assert numpy.array_equal(array, numpy.arange(50 * 131072, dtype=numpy.float64))
    mapping = next(mapping for mapping in memory_mappings() if mapping.contains(array.ctypes.data))
    assert "/dev/shm/" in mapping.name or "plasma" in mapping.name


class MemoryMapping(NamedTuple):
    """A mapped region of this process's memory."""

    first: int
    end: int
    name: str

    def contains(self, address: int) -> bool:
        return self.first <= address < self.end


def memory_mappings() -> Iterator[MemoryMapping]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5) if line.count(" ") > 5 else (line.split()[0], "")
        first, _, end = addresses.partition("-")
        yield MemoryMapping(int(first, 16), int(end, 16), name)


def test_calls_from_several_threads_wait_for_each_other(task):
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(task.execute("echo", {"value": n}))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))


def test_run_has_its_node_even_if_its_worker_died_and_writes_nothing_into_the_plugins_directory(executor, task):
    def tree() -> set[str]:
        return {str(path) for path in Path(PLUGIN).rglob("*") if "__pycache__" not in str(path)}

    @action
    def die(params, context):
        os._exit(3)

    node_id = task.run("echo").node
    import ray

    assert node_id in {node["NodeID"] for node in ray.nodes()}
    before = tree()
    assert executor.run("echo", {"value": "x" * 100_000}).node == node_id
    assert tree() == before
    assert executor.run(die).node == node_id

"""What the contract's tests do not ask of a call that leaves the process."""

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


def test_a_watcher_hears_of_events_while_the_action_runs(executor):
    heard: list[float] = []
    started = time.monotonic()
    executor.run("narrate", {"steps": 4, "pause": 0.5}, on_event=lambda _: heard.append(time.monotonic() - started))
    took = time.monotonic() - started
    assert len(heard) == 20
    assert heard[0] < took - 1.0


def test_output_that_is_no_text_does_no_harm(executor, capfd):
    run = executor.run("print", {"raw": b"\xff\x00\r\x1eend\n"})
    assert run.result == {"printed": 0}
    assert run.stdout == "\ufffd\x00\r\x1eend\n"


def test_the_environment_is_layered_and_gone_after_the_call(task, worker):
    from synapse_runtime.executors.ray import RayActorExecutor

    given = RayActorExecutor({"SHARED": "given", "GIVEN": 1}, plugin=PLUGIN, worker=worker, logger=NullLogger())
    assert given.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "given", "GIVEN": "1"}
    assert task.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "config", "GIVEN": None}


def test_an_array_of_50_megabytes_comes_back_equal_and_is_not_copied(task):
    array = task.execute("array", {"megabytes": 50})
    assert numpy.array_equal(array, numpy.arange(50 * 131072, dtype=numpy.float64))
    place = next(line for line in mapped() if line.covers(array.ctypes.data))
    assert "/dev/shm/" in place.name or "plasma" in place.name


class Mapped(NamedTuple):
    """A piece of this process's memory."""

    first: int
    end: int
    name: str

    def covers(self, address: int) -> bool:
        return self.first <= address < self.end


def mapped() -> Iterator[Mapped]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, *_, name = line.split(maxsplit=5) if line.count(" ") > 5 else (line.split()[0], "")
        first, _, end = places.partition("-")
        yield Mapped(int(first, 16), int(end, 16), name)


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


def test_a_run_says_which_node_it_ran_on_also_where_its_worker_died(executor, task):
    @action
    def die(params, context):
        os._exit(3)

    there = task.run("echo").node
    import ray

    assert there in {node["NodeID"] for node in ray.nodes()}
    assert executor.run("echo").node == there
    assert executor.run(die).node == there


def test_nothing_is_written_into_the_plugins_directory(executor):
    def tree() -> set[str]:
        return {str(path) for path in Path(PLUGIN).rglob("*") if "__pycache__" not in str(path)}

    before = tree()
    executor.execute("echo", {"value": "x" * 100_000})
    assert tree() == before

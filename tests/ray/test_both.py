"""What holds for every call that leaves the process, on an actor and as a job."""

from __future__ import annotations

import math
import threading
import time
import traceback
from pathlib import Path

import numpy
import pytest
from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.errors import (
    ActionNotFoundError,
    ExecutionError,
    ExecutionTimeout,
    ResultNotSerializable,
    ValidationError,
    WorkerCrashed,
)
from synapse_runtime.loggers import NullLogger
from tests.ray.conftest import PLUGIN


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -1.5,
        True,
        "text",
        "snow ☃ 한국어",
        2**70,
        math.inf,
        [1, [2, {"a": None}]],
        {"x": (1, 2)},
        "x" * 1_000_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_params_and_results_arrive_equal_and_of_the_same_type(task, value):
    result = task.execute("echo", {"value": value})
    assert result == value
    assert type(result) is type(value)


def test_a_megabyte_of_params_and_result_fits_into_a_job(job):
    text = "0123456789☃" * 100_000
    assert job.execute("echo", {"value": text}) == text


def test_the_callers_params_stay_as_they_were(executor):
    params = {"value": {"list": [1, 2]}}
    executor.execute("echo", params)
    assert params == {"value": {"list": [1, 2]}}


def test_events_come_back_in_order_with_all_their_fields(executor):
    run = executor.run("narrate", {"steps": 2})
    kinds = [event.kind for event in run.events]
    assert kinds == ["progress", "metrics", "log", "message", "message"] * 2
    assert run.progress == [(1, 2), (2, 2)]
    assert [report["height"] for report in run.metrics["walk"].history] == [0, 10]
    assert [(event.name, event.level) for event in run.logs[:3]] == [
        ("step", "debug"),
        ("at 0", "warning"),
        ("step 0", "info"),
    ]


def test_a_watcher_hears_of_events_while_the_action_runs(executor):
    heard: list[float] = []
    started = time.monotonic()
    executor.run("narrate", {"steps": 4, "pause": 0.5}, on_event=lambda _: heard.append(time.monotonic() - started))
    took = time.monotonic() - started
    assert len(heard) == 20
    assert heard[0] < took - 1.0


def test_output_comes_back_complete_with_that_of_child_processes(executor, capfd):
    run = executor.run("print", {"lines": ["first", "second"]})
    assert run.stdout == "first\nsecond\n"
    assert run.stderr == "child\n"
    assert capfd.readouterr() == ("first\nsecond\n", "child\n")


def test_output_that_is_no_text_does_no_harm(executor, capfd):
    run = executor.run("print", {"raw": b"\xff\x00\r\x1eend\n"})
    assert run.result == {"printed": 0}
    assert run.stdout == "\ufffd\x00\r\x1eend\n"


def test_bad_params_are_refused_before_anything_is_sent(executor):
    with pytest.raises(ValidationError, match="seconds") as caught:
        executor.execute("sleep", {"seconds": "long"})
    assert [problem["loc"] for problem in caught.value.errors()] == [("seconds",)]


def test_a_failing_action_gives_back_its_own_exception(executor):
    with pytest.raises(ExecutionError, match="fail failed: OwnError: code 7") as caught:
        executor.execute("fail")
    cause = caught.value.__cause__
    assert (type(cause).__name__, cause.code, cause.__notes__) == ("OwnError", 7, ["look here"])
    assert type(cause.__cause__) is KeyError
    text = "".join(traceback.format_exception(caught.value))
    assert '{}["missing"]' in text
    assert "raise problem from error" in text


def test_the_environment_is_layered_and_gone_after_the_call(task, worker):
    from synapse_runtime.executors.ray import RayActorExecutor

    given = RayActorExecutor({"SHARED": "given", "GIVEN": 1}, plugin=PLUGIN, worker=worker, logger=NullLogger())
    assert given.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "given", "GIVEN": "1"}
    assert task.execute("identify")["env"] == {"FROM_CONFIG": "config", "SHARED": "config", "GIVEN": None}


def test_the_action_runs_in_its_plugins_directory_in_the_main_thread(executor):
    seen = executor.run("identify")
    assert seen.result["cwd"] == str(PLUGIN)
    assert seen.result["main_thread"]
    assert seen.result["job_id"] == seen.job_id
    assert seen.result["pid"] == seen.pid


def test_a_result_that_cannot_travel_is_named(executor):
    with pytest.raises(ResultNotSerializable, match=r'result\["model"\]\["lock"\]'):
        executor.execute("unsendable")


def test_an_action_out_of_time_says_where_it_was_and_the_next_call_works(executor):
    started = time.monotonic()
    with pytest.raises(ExecutionTimeout, match=r"sleep did not end within 0\.5 s") as caught:
        executor.execute("sleep", timeout=0.5)
    assert "time.sleep(0.05)" in caught.value.details or "time.monotonic() < until" in caught.value.details
    assert time.monotonic() - started < 20
    assert executor.execute("echo", {"value": 1}) == 1


def test_an_action_that_cannot_notice_its_limit_is_ended_with_its_process(executor):
    started = time.monotonic()
    with pytest.raises(ExecutionTimeout, match="did not notice") as caught:
        executor.execute("stick", timeout=0.5)
    assert "in execute" in caught.value.details
    assert time.monotonic() - started < 20
    assert executor.execute("echo", {"value": 1}) == 1


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_worker_that_dies_is_told_with_its_last_output_and_replaced(executor, how, capfd):
    with pytest.raises(WorkerCrashed) as caught:
        executor.execute("crash", {"how": how})
    assert "last words" in caught.value.details
    assert executor.execute("echo", {"value": 1}) == 1


def test_a_job_says_how_its_process_ended(job):
    assert "exited with status 3" in str(job.run("crash", {"how": "exit"}).error)
    assert "was killed by SIGKILL" in str(job.run("crash", {"how": "kill"}).error)


class LocalParams(BaseModel):
    factor: int = 2


class DefinedHere(BaseAction[LocalParams]):
    def execute(self):
        return LocalParams(factor=self.params.factor * 10)


def test_an_action_defined_in_the_test_runs_and_returns_a_class_of_the_test(executor, monkeypatch):
    from synapse_runtime import transport

    transport.ship_by_value(__name__)
    method = DefinedHere.execute
    result = executor.execute(DefinedHere, {"factor": 3})
    assert type(result) is LocalParams
    assert result.factor == 30
    assert DefinedHere.execute is method


def test_an_action_defined_inside_a_function_runs(executor):
    class Inner(BaseAction):
        def execute(self):
            return "from inside"

    assert executor.execute(Inner) == "from inside"


def test_an_unknown_action_is_told_before_anything_is_sent(executor):
    with pytest.raises(ActionNotFoundError, match="Did you mean 'echo'"):
        executor.execute("ecko")


def test_an_array_of_50_megabytes_comes_back_equal_and_writable(task):
    array = task.execute("array", {"megabytes": 50})
    assert numpy.array_equal(array, numpy.arange(50 * 131072, dtype=numpy.float64))
    array[0] = 1.0


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


def test_nothing_is_written_into_the_plugins_directory(executor):
    def tree() -> set[str]:
        return {str(path) for path in Path(PLUGIN).rglob("*") if "__pycache__" not in str(path)}

    before = tree()
    executor.execute("echo", {"value": "x" * 100_000})
    assert tree() == before

"""Row 27: the state of the process is that of the caller during a call, and as before after it."""

import asyncio
import importlib
import logging
import os
import subprocess
import sys
import time

import pytest
from lab.settings import hash_and_flags, uses_variables
from lab.surroundings import import_path, where

from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError
from tests.parity.modes import as_a_job, not_as_jobs

pytestmark = not_as_jobs


@pytest.fixture
def modules(tmp_path):
    """A directory with a module that has the name of one of Python's, and with one of its own."""
    (tmp_path / "tabnanny.py").write_text("WHERE = 'of the test'\n")
    (tmp_path / "only_of_the_test.py").write_text("WHERE = 'of the test'\n")
    before = sys.modules.pop("tabnanny", None)
    yield tmp_path
    for name in ("tabnanny", "only_of_the_test"):
        sys.modules.pop(name, None)
    if before is not None:
        sys.modules["tabnanny"] = before


def test_27_import_path_of_the_test_takes_precedence(synapse_executor, monkeypatch, modules):
    monkeypatch.syspath_prepend(modules)
    assert synapse_executor.execute("lab.surroundings:where", {"module": "only_of_the_test"}) == "of the test"
    assert synapse_executor.execute("lab.surroundings:where", {"module": "tabnanny"}) == "of the test"


@action
def look_for_modules(params, context):
    return [where({"module": name}, context) for name in ("only_of_the_test", "tabnanny")], import_path({}, context)


@as_a_job
def test_27_import_path_of_a_job_is_that_of_the_test_and_takes_precedence(
    synapse_executor, monkeypatch, modules, tmp_path_factory
):
    others = [str(tmp_path_factory.mktemp(name)) for name in ("two", "one", "three")]
    monkeypatch.setattr(sys, "path", [str(modules), *others[:2], *sys.path, others[2]])
    found, path = synapse_executor.execute(look_for_modules)
    assert found == ["of the test", "of the test"]
    assert [entry for entry in path if entry in (*others, str(modules))] == [str(modules), *others]


def test_27_import_path_of_one_call_is_not_that_of_the_next(synapse_executor, monkeypatch, modules):
    monkeypatch.syspath_prepend(modules)
    assert str(modules) in synapse_executor.execute("lab.surroundings:import_path")
    monkeypatch.undo()
    importlib.invalidate_caches()
    assert str(modules) not in synapse_executor.execute("lab.surroundings:import_path")


def test_27_order_of_the_import_path_is_that_of_the_test(synapse_executor, monkeypatch, tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "two"), str(tmp_path / "one"), *sys.path, str(tmp_path / "three")])
    found = [
        path for path in synapse_executor.execute("lab.surroundings:import_path") if path.startswith(str(tmp_path))
    ]
    assert found == [str(tmp_path / name) for name in ("two", "one", "three")]


@pytest.mark.parametrize("name", ["awaits", "runs"])
@not_as_jobs
def test_27_event_loop_of_a_thread_is_as_before(synapse_executor, name):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        for _ in range(2):
            synapse_executor.execute(f"lab.loops:{name}")
            # In the process of the actions, and in that of the test:
            assert synapse_executor.execute("lab.loops:gets_loop") == "got the loop"
            assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@action
def fails_in_no_time(params, context):
    raise ValueError("on purpose")


@action
def stops_clock(params, context):
    if time.perf_counter is not _stopped:
        time._running, time.perf_counter = time.perf_counter, _stopped
    elif params.get("start"):
        time.perf_counter = time._running


def _stopped():
    return 1.0


@not_as_jobs
def test_27_clock_that_stands_still_hides_not_where_an_action_ran(synapse_executor):
    synapse_executor.execute(stops_clock)
    try:
        run = synapse_executor.run(fails_in_no_time)
        assert (run.duration, run.is_started) == (0, True)
        assert run.error.__notes__[-1].startswith(f"fails_in_no_time ran in {run.mode} mode, job {run.job_id}")
        with pytest.raises(ExecutionError):
            run.unwrap()
    finally:
        synapse_executor.execute(stops_clock, {"start": True})


@pytest.mark.parametrize("fail", [False, True])
@not_as_jobs
def test_27_settings_that_an_action_changes_are_as_before_after_it(synapse_executor, caplog, recwarn, fail):
    before = synapse_executor.execute("lab.settings:report")
    run = synapse_executor.run("lab.settings:disturb", {"fail": fail})
    assert (run.error is not None) is fail
    assert synapse_executor.execute("lab.settings:report") == before
    caplog.clear()
    logging.getLogger("lab.audit").warning("from the test")
    synapse_executor.execute("lab.settings:says")
    assert caplog.messages == ["from the test", "from the action"]
    assert [str(warning.message) for warning in recwarn] == ["from the action"]


@pytest.mark.synapse(env={"TZ": "Asia/Seoul", "TMPDIR": "/var/tmp"})
def test_27_variables_that_are_read_once_take_effect(synapse_executor):
    before = uses_variables({}, None)
    assert synapse_executor.execute(uses_variables) == (9, "/var/tmp")
    assert uses_variables({}, None) == before


@pytest.mark.synapse(mode=("task", "job", "remote"), env={"PYTHONHASHSEED": 7, "PYTHONOPTIMIZE": 1})
def test_27_variables_that_only_a_new_process_reads_take_effect_in_workers(synapse_executor):
    program = "import sys; print((hash('synapse'), sys.flags.optimize))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert str(synapse_executor.execute(hash_and_flags)) == done.stdout.strip()


@pytest.mark.synapse(mode="task")
def test_27_worker_that_was_started_with_variables_is_not_used_without_them(synapse_executor):
    assert synapse_executor.execute(hash_and_flags)[1] == 0


@not_as_jobs
def test_27_effect_of_variables_that_are_read_once_is_as_before_after_an_action(synapse_executor):
    before = synapse_executor.execute(uses_variables)
    assert synapse_executor.execute(uses_variables, {"TZ": "Asia/Seoul", "TMPDIR": "/var/tmp"}) == (9, "/var/tmp")
    assert synapse_executor.execute(uses_variables) == before

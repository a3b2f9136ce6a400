"""Rows 10 to 12: the environment, the working directory and the id of a run."""

import os
from pathlib import Path

import pytest
from lab.surroundings import convert, disturb, everything, go, look, remain, write_and_read

from synapse_runtime.decorators import action
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.remote.executor import RemoteExecutor
from synapse_runtime.loggers import NullLogger
from tests.parity.modes import not_as_jobs

pytestmark = not_as_jobs

PLUGIN = Path(__file__).parent
ENV = {
    "SHARED": "marker",
    "COUNT": "64",
    "RATE": 0.5,
    "FLAG": True,
    "OFF": "no",
    "TAGS": ["a", "b"],
    "WORDS": " one, two ,,three",
    "TABLE": {"a": 1},
    "NOTHING": None,
    "EMPTY": "",
    "TEXT": "späte Grüße\nzweite Zeile",
}


def process_state():
    return dict(os.environ), os.getcwd()


@action
def look_and_write(params, context):
    return look(params, context), write_and_read(params, context)


OVERRIDING = {"FROM_MARKER": "marker", "HOME": "/marker"}
JOB_ID = f"given-{os.getpid()}-job"
WRITTEN = "written by the action"


@pytest.fixture(scope="module")
def from_job(job_executor, tmp_path_factory):
    """What an action sees in a job, with a given id, and what it writes."""
    here = tmp_path_factory.mktemp("here")
    names = [*ENV, "HOME", "PATH", "FROM_CONFIG", "FROM_MARKER", "IN_NO_LAYER"]
    params = {"names": names, "directory": os.path.relpath(here, PLUGIN), "text": WRITTEN}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(here)
        run = job_executor(ENV | OVERRIDING, job_id=JOB_ID).run(look_and_write, params)
        assert os.getcwd() == str(here)
    return run, here


@pytest.mark.synapse(env=ENV)
def test_10_typed_getters_convert_the_markers_values(synapse_executor):
    kinds = ["str", "int", "float", "bool", "list"]
    names = ["COUNT", "RATE", "FLAG", "OFF", "TAGS", "WORDS", "NOTHING", "MISSING"]
    got = synapse_executor.execute(convert, {"names": names, "kinds": kinds})
    assert [got["COUNT"][kind] for kind in ("str", "int", "float", "list")] == ["64", 64, 64.0, ["64"]]
    assert got["COUNT"]["bool"].startswith("refused: environment value COUNT (of type str) is not a valid boolean")
    assert [got["RATE"][kind] for kind in ("str", "float")] == ["0.5", 0.5]
    assert got["RATE"]["int"].startswith("refused: environment value RATE=0.5 is not a valid integer")
    assert [got["FLAG"][kind] for kind in ("str", "bool")] == ["true", True]
    assert got["FLAG"]["bool"] is True
    assert got["OFF"]["bool"] is False
    assert [got["TAGS"][kind] for kind in ("str", "list")] == ["a,b", ["a", "b"]]
    assert got["WORDS"]["list"] == ["one", "two", "three"]
    assert got["NOTHING"] == got["MISSING"] == dict.fromkeys(kinds)


@pytest.mark.synapse(env=ENV)
def test_10_values_arrive_as_given_and_as_strings_in_os_environ(synapse_executor):
    check_values(synapse_executor.execute(look, {"names": list(ENV)}))


def test_10_values_arrive_in_a_job_as_given_and_as_strings_in_os_environ(from_job):
    seen, _ = from_job[0].unwrap()
    check_values({kind: {name: seen[kind][name] for name in ENV} for kind in ("ctx", "os")})


def check_values(seen):
    assert seen["ctx"] == ENV
    assert {name: type(value) for name, value in seen["ctx"].items()} == {n: type(v) for n, v in ENV.items()}
    assert seen["os"] == {
        "SHARED": "marker",
        "COUNT": "64",
        "RATE": "0.5",
        "FLAG": "true",
        "OFF": "no",
        "TAGS": "a,b",
        "WORDS": " one, two ,,three",
        "TABLE": '{"a": 1}',
        "NOTHING": None,
        "EMPTY": "",
        "TEXT": "späte Grüße\nzweite Zeile",
    }


LAYERS = ["HOME", "PATH", "FROM_CONFIG", "SHARED", "FROM_MARKER", "IN_NO_LAYER"]


@pytest.mark.synapse(env={"SHARED": "marker"} | OVERRIDING)
def test_10_marker_overrides_config_file_overrides_process(synapse_executor):
    check_layers(synapse_executor.execute(look, {"names": LAYERS}))


def test_10_environment_of_an_executor_overrides_config_file_overrides_process_in_a_job(from_job):
    seen, _ = from_job[0].unwrap()
    of_layers = {kind: {name: seen[kind][name] for name in LAYERS} for kind in ("ctx", "os")}
    check_layers(of_layers | {"in_ctx": [name for name in LAYERS if name in seen["in_ctx"]]})


def check_layers(seen):
    path = seen["os"].pop("PATH")
    assert path  # the value differs between processes
    assert seen["ctx"].pop("PATH") == path
    assert seen["ctx"] == {
        "HOME": "/marker",
        "FROM_CONFIG": "config",
        "SHARED": "marker",
        "FROM_MARKER": "marker",
        "IN_NO_LAYER": None,
    }
    assert seen["os"] == seen["ctx"]
    assert seen["in_ctx"] == ["HOME", "PATH", "FROM_CONFIG", "SHARED", "FROM_MARKER"]


@pytest.mark.synapse(env=ENV)
def test_10_context_and_os_environ_contain_the_same(synapse_executor):
    assert synapse_executor.execute(everything) == []


@pytest.mark.synapse(env={"FROM_CONFIG": None})
def test_10_none_in_the_marker_removes_a_value_of_the_config_file(synapse_executor):
    seen = synapse_executor.execute(look, {"names": ["FROM_CONFIG"]})
    assert seen["ctx"] == seen["os"] == {"FROM_CONFIG": None}


@pytest.mark.synapse(env={"SHARED": "marker", "ONLY_IN_THIS_CALL": "here"})
@pytest.mark.parametrize("fail", [False, True], ids=["returns", "raises"])
def test_10_environment_of_this_process_is_restored(synapse_executor, fail):
    before = process_state()
    run = synapse_executor.run(disturb, {"fail": fail})
    assert process_state() == before
    assert "ONLY_IN_THIS_CALL" not in before[0]
    if fail:
        assert type(run.error.__cause__) is ValueError
    else:
        assert run.result["before"]["ONLY_IN_THIS_CALL"] == "here"


@pytest.mark.synapse(env={"SHARED": "marker"})
def test_10_next_action_gets_the_original_environment(synapse_executor, synapse_mode):
    before = synapse_executor.execute(remain)
    runs = [synapse_executor.run(disturb, {"fail": fail}) for fail in (False, True)]
    after = synapse_executor.execute(remain)
    assert [run.error is None for run in runs] == [True, False]
    names = before["variables"].keys() | after["variables"].keys()
    changed = {name for name in names if before["variables"].get(name) != after["variables"].get(name)}
    assert after["cwd"] == before["cwd"] == str(PLUGIN)
    if synapse_mode == "remote":  # each run has a process and credentials of its own
        assert changed == {"SYNAPSE_ACCESS_TOKEN", "SYNAPSE_JOB_ID"}
        return
    assert changed == set()
    assert {before["pid"], after["pid"], *(run.pid for run in runs)} == {before["pid"]}


def test_11_working_directory_is_the_plugins_wherever_the_test_is(synapse_executor, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = synapse_executor.execute(look)
    assert (seen["cwd"], seen["config"]) == (str(PLUGIN), True)
    assert os.getcwd() == str(tmp_path)


def test_11_working_directory_of_a_job_is_the_plugins_wherever_the_test_is(from_job):
    seen, _ = from_job[0].unwrap()
    assert (seen["cwd"], seen["config"]) == (str(PLUGIN), True)


def test_11_relative_paths_work(synapse_executor, tmp_path):
    directory = os.path.relpath(tmp_path, PLUGIN)
    assert synapse_executor.execute(write_and_read, {"directory": directory, "text": WRITTEN}) == WRITTEN
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == WRITTEN


def test_11_relative_paths_work_in_a_job(from_job):
    run, here = from_job
    assert run.unwrap()[1] == WRITTEN
    assert (here / "note.txt").read_text(encoding="utf-8") == WRITTEN


@pytest.mark.parametrize("remove", [False, True], ids=["changes", "changes_and_removes"])
def test_11_working_directory_is_restored_after_the_action_changes_it(synapse_executor, tmp_path, remove):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = os.getcwd()
    been = synapse_executor.execute(go, {"directory": str(elsewhere), "remove": remove})
    assert been == [str(PLUGIN), str(elsewhere)]
    assert elsewhere.exists() is not remove
    assert os.getcwd() == before
    assert synapse_executor.execute(look)["cwd"] == str(PLUGIN)


def test_12_each_run_has_a_new_id_that_the_action_sees(synapse_executor):
    runs = [synapse_executor.run(look) for _ in range(2)]
    ids = [run.job_id for run in runs]
    assert [run.result["job_id"] for run in runs] == ids
    assert all(ids)
    assert len(set(ids)) == len(ids)


def test_12_failed_run_has_an_id_too(synapse_executor):
    run = synapse_executor.run(disturb, {"fail": True})
    assert run.error is not None
    assert run.job_id


def test_12_given_id_is_used_for_the_run(synapse_mode, request):
    given = f"given-{os.getpid()}-{synapse_mode}"
    with _executor(synapse_mode, request, given) as executor:
        run = executor.run(look)
    assert (run.result["job_id"], run.job_id) == (given, given)


def test_12_given_id_is_used_for_a_job(from_job):
    run, _ = from_job
    assert (run.unwrap()[0]["job_id"], run.job_id) == (JOB_ID, JOB_ID)


def _executor(mode, request, job_id):
    """Create an executor with this job id; in task mode on the session's cluster."""
    options = {"job_id": job_id, "plugin": PLUGIN, "logger": NullLogger()}
    if mode == "local":
        return LocalExecutor(**options)
    if mode == "remote":
        backend = request.getfixturevalue("synapse_backend")
        return RemoteExecutor(backend.host, backend.token, **options)
    from synapse_runtime.executors.ray import RayActorExecutor

    return RayActorExecutor(ray_address=request.config.getoption("synapse_ray_address"), **options)

"""Whoever writes to a job's log cannot run code where it is read: forged frames, other users' jobs, plain Ray jobs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from synapse_runtime.decorators import action
from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray import RayJobsApiExecutor
from synapse_runtime.executors.ray.job_log import EVENT, RUN, START, LogWriter, encode_bytes
from tests.patience import patience


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


@pytest.fixture
def exploded(tmp_path: Path) -> Path:
    return tmp_path / "exploded"


def forged_frames(bomb: Bomb) -> bytes:
    """Return the frames of a whole log with pickles in all places, as anybody can write them."""
    data = encode_bytes(pickle.dumps(bomb))
    record = {"action": "forged", "status": "succeeded", "result": "forged"}
    event = {"kind": "log", "name": "forged"}
    writer = LogWriter(b"a guess")
    return b"".join(
        (
            writer.frame(START, {"host": "nowhere", "pid": 1}),
            writer.frame(EVENT, {"event": event, "pickle": data}),
            writer.frame("logs", {"pickle": data}),
            writer.frame(RUN, {"record": record, "is_exact": False, "pickle": data}),
        )
    )


def submit_plain_job(job: RayJobsApiExecutor, script: Path, output: bytes, metadata: dict[str, str]) -> str:
    """Run a plain Ray job that prints `output`; return its id when it has ended."""
    script.write_text(f"import sys\nsys.stdout.buffer.write({output!r})\n")
    with job._request() as client:
        job_id = client.submit_job(entrypoint=f"exec {sys.executable} -S {script}", metadata=metadata)
    job.wait(job_id, timeout=patience(60))
    return job_id


def test_plain_job_that_prints_frames_runs_no_code_here(job, tmp_path, exploded):
    output = forged_frames(Bomb(exploded))
    plain = submit_plain_job(job, tmp_path / "plain.py", output, {})
    disguised = submit_plain_job(job, tmp_path / "disguised.py", output, {"synapse_action": "train"})
    for read in (job.get_logs, job.get_result, lambda job_id: [*job.stream_logs(job_id)]):
        with pytest.raises(ClusterError, match=f"job '{plain}' does not run an action"):
            read(plain)
    # Somebody else's job, for all that is known: its log is plain data.
    assert "forged" in job.get_logs(disguised)
    assert job.get_result(disguised) == "forged"
    assert [each.name for each in job.get_run(disguised).events] == ["forged"]
    assert not exploded.exists()


def test_malformed_frames_are_an_error_that_names_the_job(job, tmp_path):
    frames = LogWriter().frame(START, {"host": "nowhere", "pid": "seven"}) + b"\x1eevent - [\n"
    job_id = submit_plain_job(job, tmp_path / "malformed.py", frames, {"synapse_action": "train"})
    for read in (job.get_logs, job.get_result, lambda job_id: [*job.stream_logs(job_id)]):
        with pytest.raises(ClusterError, match=f"the log of job '{job_id}' is malformed: "):
            read(job_id)


@action
def write_to_the_log(params, context):
    """Write to the log of this job behind its supervisor's back."""
    try:
        with open(f"/proc/{os.getppid()}/fd/1", "ab", buffering=0) as log:
            log.write(params["frames"])
    except PermissionError as error:
        return f"refused: {error}"
    return "written"


def test_action_that_forges_frames_of_its_own_job_runs_no_code_here(job, tmp_path, exploded):
    # Root may open the log of any process. Others may not: the last test.
    job_id = job.submit(write_to_the_log, {"frames": forged_frames(Bomb(exploded))})
    job.wait(job_id, timeout=patience(60))
    for read in (job.get_logs, job.get_result, lambda job_id: [*job.stream_logs(job_id)]):
        with pytest.raises(ClusterError, match=f"the log of job '{job_id}' is malformed: .* not written by the superv"):
            read(job_id)
    assert not exploded.exists()


@action
def returns_an_object(params, context):
    context.log("plain", {"number": 1})
    context.log("object", {"path": Path("weights")})
    return {"weights": Path("weights"), "shape": (2, 3), "own": OwnResult(7)}


@dataclass
class OwnResult:
    number: int


@action
def fails(params, context):
    raise LookupError("no weights", {"path": "w.npz"})


READER = """\
import json, sys
from synapse_runtime.errors import PluginError
from synapse_runtime.executors.ray import RayJobsApiExecutor
executor = RayJobsApiExecutor(start_cluster=False)
found = {}
for job_id in sys.argv[1:]:
    try:
        run = executor.get_run(job_id)
        found[job_id] = {
            "result": repr(run.result),
            "error": repr(run.error),
            "cause": repr(getattr(run.error, "__cause__", None)),
            "events": [[event.name, repr(event.data)] for event in run.events],
            "logs": executor.get_logs(job_id),
        }
    except PluginError as error:
        found[job_id] = {"error": repr(error)}
print(json.dumps(found))
"""


def read_in_another_process(environment: dict[str, str], job_ids: list[str]) -> list[dict[str, str]]:
    """Read runs and logs of jobs in another process, which has this user's key if the state directory is the same."""
    done = subprocess.run(
        [sys.executable, "-c", READER, *job_ids],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [found[job_id] for job_id in job_ids]


@pytest.fixture(scope="module")
def submitted(job: RayJobsApiExecutor) -> list[str]:
    """Ids of ended jobs: of a plain result, of one that needs pickle, and of an error."""
    calls: tuple[tuple[object, dict[str, object]], ...] = (
        ("echo", {"value": {"loss": 0.5, "epochs": [1, 2]}}),
        (returns_an_object, {}),
        (fails, {}),
    )
    job_ids = [job.submit(*call) for call in calls]
    for job_id in job_ids:
        job.wait(job_id, timeout=patience(60))
    return job_ids


def test_other_users_read_plain_results_and_errors_and_unpickle_nothing(submitted, reached, tmp_path):
    plain, objects, failed = read_in_another_process({**reached, "XDG_STATE_HOME": str(tmp_path)}, submitted)
    assert plain["result"] == "{'loss': 0.5, 'epochs': [1, 2]}"
    assert plain["error"] == "None"
    assert "a tests.ray.test_job_log_trust:OwnResult: only the user who has submitted the job can" in objects["error"]
    assert objects["events"] == [["plain", "{'number': 1}"], ["object", "{'path': PosixPath('weights')}"]]
    assert "object path=weights" in objects["logs"]
    assert failed["cause"] == "LookupError('no weights', {'path': 'w.npz'})"


def test_submitter_reads_the_whole_run_in_another_process(job, submitted, reached):
    expected = {"weights": Path("weights"), "shape": (2, 3), "own": OwnResult(7)}
    assert job.get_result(submitted[1]) == expected
    plain, objects, failed = read_in_another_process(reached, submitted)
    assert plain["result"] == "{'loss': 0.5, 'epochs': [1, 2]}"
    assert objects["result"] == repr(expected)
    assert failed["cause"] == "LookupError('no weights', {'path': 'w.npz'})"


def test_frames_of_a_log_are_json(job, submitted):
    log = job._raw_logs(submitted[0])
    frames = [line[1:].split(" ", 2) for line in log.split("\n") if line.startswith("\x1e")]
    data = {kind: json.loads(text) for kind, _, text in frames}
    assert data["run"]["record"]["result"] == {"loss": 0.5, "epochs": [1, 2]}
    assert data["run"]["record"]["status"] == "succeeded"
    assert data["start"].keys() == {"host", "pid"}


HIDING = """\
import ctypes, os, sys, tempfile
from synapse_runtime.executors.ray.job_supervisor import _PR_SET_DUMPABLE, _hide_process

def opened_by_child():
    child = os.fork()
    if not child:
        try:
            open(f"/proc/{os.getppid()}/fd/1", "ab").close()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)  # as of a process that has always belonged to this user
log = tempfile.TemporaryFile(dir="/tmp")
os.dup2(log.fileno(), 1)
print(opened_by_child(), file=sys.stderr)
_hide_process()
print(opened_by_child(), file=sys.stderr)
"""


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="only root can become another user")
def test_supervisor_hides_its_log_from_other_processes_of_its_user():
    done = subprocess.run([sys.executable, "-c", HIDING], stderr=subprocess.PIPE, text=True, timeout=patience(60))
    assert done.stderr.split() == ["True", "False"]

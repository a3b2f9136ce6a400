"""`synapse job …`, and jobs of `synapse plugin run --mode job` that outlive the command."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Synapse, interrupt, processes_with, status_of, synapse_in
from tests.patience import patience

NO_CLUSTER = "error: there is no cluster that outlives this process: start one with `synapse cluster up`"


@pytest.fixture(scope="module")
def joined(reached: dict[str, str], dashboard: str, plugin_dir: Path) -> Iterator[Synapse]:
    """The command in the plugin's directory, with the dashboard of a running cluster in RAY_ADDRESS."""
    with synapse_in(plugin_dir, **{**reached, "RAY_ADDRESS": dashboard}) as command:
        yield command


@pytest.fixture(scope="module")
def trained(joined: Synapse) -> str:
    """A job that has succeeded."""
    job_id = submitted(joined, "train")
    assert joined.job("result", job_id).status == 0
    return job_id


@pytest.fixture(scope="module")
def failed(joined: Synapse, trained: str) -> str:
    """A job whose action fails, submitted after `trained`."""
    return submitted(joined, "fail")


class TestDetach:
    def test_job_outlives_the_command_which_prints_only_its_id(self, joined: Synapse, tmp_path: Path) -> None:
        signal = tmp_path / "go"
        params = json.dumps({"file": str(signal)})
        done = joined.run("wait_for", "--mode", "job", "--detach", "--params", params)
        job_id = done.stdout.removesuffix("\n")
        assert (done.status, done.stderr) == (0, f"to get its result: synapse job result {job_id}\n")
        assert re.fullmatch(r"run-\w+", job_id)
        with joined.started(job_id, "--follow", command=("job", "logs")) as logs:
            assert logs.stdout is not None
            message, printed = sorted((logs.stdout.readline(), logs.stdout.readline()), key="waiting\n".__eq__)
            assert message.endswith("progress: 1/2 (50%)\n")  # in either order
            assert printed == "waiting\n"
            assert joined.job("status", job_id).stdout == "RUNNING\n"
            signal.touch()
            assert logs.wait(patience(20)) == 0
            assert "progress: 2/2 (100%)\n" in logs.stdout.read()
        done = joined.job("result", job_id)
        assert re.fullmatch(r'Result of wait_for \(job, \d+\.\d\d s\):\n"seen"\n', done.stdout)

    def test_suggested_command_gets_the_result_from_any_directory(
        self, joined: Synapse, plugin_dir: Path, tmp_path: Path
    ) -> None:
        address = joined.env["RAY_ADDRESS"]
        done = joined.run(
            *("point", "--mode", "job", "--detach", "--path", str(plugin_dir), "--ray-address", address),
            cwd=tmp_path,
            RAY_ADDRESS="",
        )
        suggested = shlex.split(done.stderr.removeprefix("to get its result: "))
        assert suggested[0] == "synapse"
        fetched = joined(*suggested[1:], "--json", cwd=tmp_path, RAY_ADDRESS="")
        assert fetched.result == {"x": 1, "at": "here"}
        elsewhere = joined.job("result", done.stdout.strip(), cwd=tmp_path)
        assert (elsewhere.status, elsewhere.stdout) == (1, "")
        assert "error: the result of point cannot be unpickled here: ModuleNotFoundError" in elsewhere.stderr

    def test_detach_requires_a_cluster_that_outlives_the_command(self, synapse: Synapse) -> None:
        assert_refused_without_starting_one(synapse, "plugin", "run", "train", "--mode", "job", "--detach")

    @pytest.mark.parametrize("mode", [(), ("--mode", "task")])
    def test_only_jobs_can_be_detached(self, synapse: Synapse, mode: tuple[str, ...]) -> None:
        done = synapse.run("train", *mode, "--detach")
        assert (done.status, done.stdout) == (2, "")
        assert "Invalid value for --detach: only jobs can be detached: add --mode job" in done.stderr

    def test_alias_of_job_mode_can_be_detached(self, synapse: Synapse) -> None:
        assert_refused_without_starting_one(synapse, "plugin", "run", "train", "--mode", "jobs-api", "--detach")


class TestList:
    def test_prints_a_table_of_aligned_columns(self, joined: Synapse, trained: str, failed: str) -> None:
        done = joined.job("list")
        assert done.status == 0
        heading, *rows = done.stdout.splitlines()
        assert heading.split() == ["ID", "ACTION", "STATUS", "STARTED", "TOOK"]
        starts = [match.start() for match in re.finditer(r"\S+", heading)]
        for row in rows:
            assert all(row[start - 1] == " " != row[start] for start in starts[1:])
        (of_training,) = [row for row in rows if row.startswith(trained)]
        assert re.fullmatch(rf"{trained} +train +SUCCEEDED +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +\d+\.\d s", of_training)
        (of_failure,) = [row for row in rows if row.startswith(failed)]
        assert rows.index(of_training) < rows.index(of_failure)

    def test_prints_a_table_with_borders_on_a_terminal(self, joined: Synapse, trained: str) -> None:
        with joined.on_terminal(command=("job", "list")) as child:
            child.expect_exact("┃")
            child.expect(f"│ {trained} +│ train +│ SUCCEEDED +│")
            assert status_of(child) == 0

    def test_json_contains_only_jobs_that_run_actions(self, joined: Synapse, trained: str) -> None:
        foreign = submit_foreign(joined)
        jobs = {job["id"]: job for job in joined.job("list", "--json").result}
        assert foreign not in jobs
        job = jobs[trained]
        assert (job["action"], job["status"]) == ("train", "SUCCEEDED")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["started"])
        assert 0 < job["took"] < patience(60)
        done = joined.job("result", foreign)
        assert (done.status, done.stdout) == (3, "")
        assert f"error: job '{foreign}' does not run an action" in done.stderr


class TestOneJob:
    def test_status_is_a_word_even_with_a_gcs_address(
        self, joined: Synapse, reached: dict[str, str], trained: str
    ) -> None:
        done = joined.job("status", trained, "--ray-address", reached["RAY_ADDRESS"], RAY_ADDRESS="127.0.0.1:1")
        assert (done.status, done.stdout, done.stderr) == (0, "SUCCEEDED\n", "")

    def test_status_stop_and_logs_print_json(self, joined: Synapse, trained: str) -> None:
        assert joined.job("status", trained, "--json").result == {"id": trained, "status": "SUCCEEDED"}
        assert joined.job("stop", trained, "--json").result == {"id": trained, "status": "SUCCEEDED"}
        logs = joined.job("logs", trained, "--json").result
        assert logs["id"] == trained
        assert "epoch_complete" in logs["logs"]
        endless = joined.job("logs", trained, "--json", "--follow")
        assert endless.status == 2
        assert "cannot be used with --follow" in endless.stderr

    def test_result_is_alone_on_stdout_with_json(self, joined: Synapse, trained: str) -> None:
        done = joined.job("result", trained, "--json")
        assert (done.status, done.stdout, done.stderr) == (0, '{"epochs":2,"batch_size":16}\n', "")

    def test_failed_action_is_shown_as_by_plugin_run(self, joined: Synapse, failed: str) -> None:
        done = joined.job("result", failed)
        assert (done.status, done.stdout) == (1, "")
        assert 'return weights["missing"]' in done.stderr
        assert done.stderr.endswith("error: fail failed: KeyError: 'missing'\n")
        assert done.stderr.count("Traceback") == 1
        assert "synapse_runtime" not in done.stderr

    def test_runs_until_stopped_and_is_listed_until_deleted(self, joined: Synapse) -> None:
        job_id = submitted(joined, "nap")
        waited = joined.job("result", job_id, "--timeout", "0.2")
        assert (waited.status, waited.stdout) == (124, "")
        assert waited.stderr == f"error: job {job_id} has not ended after 0.2 s\n"
        early = joined.job("delete", job_id)
        assert early.status == 3
        assert early.stderr == f"error: cannot delete job '{job_id}', which has not ended: stop it first\n"
        stopped = joined.job("stop", job_id)
        assert (stopped.status, stopped.stdout, stopped.stderr) == (0, "STOPPED\n", "")
        result = joined.job("result", job_id)
        assert result.status == 1
        assert result.stderr.endswith(f"error: nap: job {job_id} was stopped\n")
        deleted = joined.job("delete", job_id, "--json")
        assert (deleted.status, deleted.stderr) == (0, f"deleted job {job_id}\n")
        assert deleted.result == {"id": job_id, "deleted": True, "log_deleted": True}
        done = joined.job("logs", job_id)
        assert (done.status, done.stdout) == (3, "")
        where = joined.env["RAY_ADDRESS"]
        assert done.stderr == (
            f"error: the cluster at {where} has no job '{job_id}'; `synapse job list` lists its jobs\n"
        )

    def test_stop_of_an_ended_job_does_nothing(self, joined: Synapse, trained: str) -> None:
        done = joined.job("stop", trained)
        assert (done.status, done.stdout, done.stderr) == (0, "SUCCEEDED\n", f"job {trained} had already ended\n")


class TestWithoutACluster:
    def test_list_starts_no_cluster(self, synapse: Synapse) -> None:
        assert_refused_without_starting_one(synapse, "job", "list")

    def test_ray_client_address_is_an_error(self, joined: Synapse) -> None:
        address = joined.env["RAY_ADDRESS"].replace("http", "ray")
        done = joined.job("list", "--ray-address", address)
        assert (done.status, done.stdout) == (3, "")
        assert done.stderr == (
            f"error: job mode requires the dashboard's address, http://host:8265, not Ray Client's ({address})\n"
        )


class TestCtrlC:
    @pytest.mark.parametrize("answer", ["y\r", "\x03"], ids=["yes", "ctrl-c"])
    def test_on_a_terminal_prompts_and_stops_the_job(self, joined: Synapse, answer: str) -> None:
        with joined.on_terminal("nap", "--mode", "job") as child:
            child.expect(r"asleep pid=(\d+)")
            action = int(child.match[1])
            child.sendcontrol("c")
            child.expect(r"Stop job run-\w+\? Otherwise it keeps running without this command \[Y/n\]:")
            child.send(answer)
            child.expect("interrupted")
            assert status_of(child) == 130
        assert not is_running(action)

    def test_on_a_terminal_the_job_can_be_left_running(self, joined: Synapse) -> None:
        with joined.on_terminal("nap", "--mode", "job") as child:
            child.expect(r"asleep pid=(\d+)")
            action = int(child.match[1])
            child.sendcontrol("c")
            child.expect(r"Stop job (run-\w+)\?")
            job_id = child.match[1]
            child.send("n\r")
            child.expect(f"job {job_id} keeps running; to get its result: synapse job result {job_id}")
            assert status_of(child) == 130
        assert is_running(action)
        assert joined.job("stop", job_id).stdout == "STOPPED\n"

    def test_without_a_terminal_the_job_is_stopped(self, joined: Synapse) -> None:
        with joined.started("nap", "--mode", "job") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            action = int(process.stdout.readline().rpartition("pid=")[2])
            interrupt(process)
            assert process.wait(patience(20)) == 130
            assert process.stderr.read() == f"cluster: {joined.env['RAY_ADDRESS']} (RAY_ADDRESS)\ninterrupted\n"
        assert not is_running(action)


def submitted(command: Synapse, action: str) -> str:
    """Submit a job and return its id."""
    done = command.run(action, "--mode", "job", "--detach")
    assert done.status == 0, done.stderr
    return done.stdout.strip()


def submit_foreign(command: Synapse) -> str:
    """Submit a job that runs no action, and return its id."""
    request = urllib.request.Request(
        f"{command.env['RAY_ADDRESS']}/api/jobs/",
        data=json.dumps({"entrypoint": "true"}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {command.env['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=patience(30)) as answer:
        return str(json.load(answer)["submission_id"])


def is_running(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def assert_refused_without_starting_one(synapse: Synapse, *arguments: str) -> None:
    """Check that a command exits with 3, reports that it needs a cluster, and has started no process."""
    with synapse.started(*arguments, command=()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        most = 0
        while process.poll() is None:
            most = max(most, len(processes_with(synapse.mark)))
        assert (process.returncode, process.stdout.read()) == (3, "")
        assert process.stderr.read().startswith(NO_CLUSTER)
        assert most == 1

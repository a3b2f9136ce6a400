"""Runs: their processes, their environment, how they end, and their order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from synapse_runtime.run_record import RunRecord
from tests.patience import within
from tests.server.conftest import SERVER_VARIABLES, Client, write_plugin


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def pid_in(file: Path) -> int:
    assert within(20, lambda: file.exists() and file.read_text().isdigit())
    return int(file.read_text())


def record_of(client: Client, job_id: str) -> RunRecord:
    return RunRecord.loads(client.get(f"/runtime/jobs/{job_id}/run/").text)


def test_action_that_exits_or_is_killed_fails_as_infrastructure(client: Client) -> None:
    for params, text in (({}, "exited with status 3"), ({"killed": True}, "was killed by SIGKILL")):
        job = client.run("leave", params)
        assert (job["status"], job["meta"]["error"]["error_type"]) == ("FAILED", "infrastructure")
        assert job["result"] == {"error": f"the worker of leave {text}"}
        error = record_of(client, job["id"]).to_run().error
        assert type(error).__name__ == "WorkerCrashed"
        assert "leaving" in error.details


def test_timeout_ends_the_action(client: Client) -> None:
    job = client.run("sleep", timeout=0.3)
    assert (job["status"], job["meta"]["error"]["error_type"]) == ("FAILED", "timeout")
    assert job["result"]["error"].startswith("sleep exceeded its timeout of 0.3 s")
    assert "time.sleep" in record_of(client, job["id"]).to_run().error.details  # type: ignore[union-attr]


def test_stop_kills_the_action_and_what_it_has_started(client: Client) -> None:
    job_id = client.start("spawn")
    child = int(client.wait_for_output(job_id)[0])
    assert is_running(child)
    answer = client.post(f"/runtime/jobs/{job_id}/stop/").json()
    assert answer["status"] == "STOPPED"
    assert within(5, lambda: not is_running(child))
    error = record_of(client, job_id).to_run().error
    assert f"job {job_id} was stopped" in str(error)
    assert client.post(f"/runtime/jobs/{job_id}/stop/").status_code == 409


def test_killed_supervisor_ends_the_action_and_fails_the_job(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    job_id = client.start("sleep", {"file": str(file)})
    pid = pid_in(file)
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    job = client.finish(job_id)
    assert job["meta"]["error"]["error_type"] == "infrastructure"
    assert "killed by SIGKILL" in job["result"]["error"]
    assert within(5, lambda: not is_running(pid))


def test_killed_template_of_runs_is_replaced(alone: Client, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    job_id = alone.start("sleep", {"file": str(file), "seconds": 1})
    pid = pid_in(file)
    for _ in range(2):  # its supervisor, the template
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    assert alone.finish(job_id)["result"] == {"result": "slept"}
    assert alone.run("echo", {"a": 1})["result"] == {"a": 1}
    assert alone.run("leave")["result"] == {"error": "the worker of leave exited with status 3"}


def test_environment_has_the_run_and_none_of_the_servers_secrets(client: Client) -> None:
    result = client.run("environment", env={"GIVEN": "x", "COUNT": 3})["result"]
    process, context = result["process"], result["context"]
    assert (context["FROM_CONFIG"], context["GIVEN"], context["COUNT"]) == ("config", "x", 3)
    assert (process["FROM_CONFIG"], process["GIVEN"], process["COUNT"]) == ("config", "x", "3")
    assert process["SYNAPSE_PLUGIN_RELEASE_CODE"] == "lab@1.2.3"
    assert len(process["SYNAPSE_PLUGIN_RELEASE_CHECKSUM"]) == 64
    secrets = [name for name, value in process.items() if "TOKEN" in name or value == client.token]
    assert secrets == ["SYNAPSE_ACCESS_TOKEN"]
    assert client.token not in str(result)


def test_servers_secrets_are_not_in_the_environment(alone: Client) -> None:
    process = alone.run("environment")["result"]["process"]
    assert process["PLAIN"] == SERVER_VARIABLES["PLAIN"]
    assert "MY_API_KEY" not in process
    assert not {"sesame-open", "of-the-user", alone.token} & {*process.values()}


def test_jobs_run_in_order_of_submission_as_many_as_permitted(alone: Client) -> None:
    first = alone.start("sleep", {"seconds": 60})
    alone.wait_for_output(first)
    waiting = [alone.start("echo", {"number": number}) for number in range(3)]
    queues = [alone.json(f"/v2/jobs/{job_id}/")["data"]["queue"]["position"] for job_id in waiting]
    assert queues == [1, 2, 3]
    stopped = alone.post(f"/v2/jobs/{waiting[1]}/stop/").json()["data"]
    assert stopped["status"] == "STOPPED"
    assert alone.events(waiting[1])[-1][1:] == ("end", {"status": "STOPPED"})
    alone.post(f"/v2/jobs/{first}/stop/")
    jobs = [alone.finish(job_id) for job_id in waiting]
    assert [job["status"] for job in jobs] == ["SUCCEEDED", "STOPPED", "SUCCEEDED"]
    assert jobs[0]["completed"] < jobs[2]["completed"]


def test_plugin_directory_is_read_live(alone: Client, live: Path) -> None:
    main = "from synapse_runtime.decorators import action\n@action\ndef answer(params, context):\n    return {}\n"
    config = "code: live\nname: Live\nversion: 1.0.0\nactions:\n  answer: {{entrypoint: 'plugin.main:answer'}}\n{}"
    contents = set()
    for number in (1, 2):
        write_plugin(live, config=config.format(""), main=main.format(number))
        job = alone.run("answer", plugin="live")
        assert job["result"] == {"result": number}
        contents.add(alone.json(f"/runtime/jobs/{job['id']}/")["content"])
    assert len(contents) == 2
    more = "  other: {entrypoint: 'plugin.main:answer'}\n"
    write_plugin(live, config=config.format(more), main=main.format(3))
    assert alone.run("other", plugin="live")["result"] == {"result": 3}
    (live / "config.yaml").write_text("actions: [")
    refused = alone.post("/plugins/live/run/", json={"action": "answer"})
    assert refused.status_code == 409
    assert "config.yaml" in refused.json()["detail"]


def test_much_output_is_whole_and_the_action_is_not_blocked(client: Client) -> None:
    job = client.run("output", {"lines": 50_000})
    lines = client.json(f"/jobs/{job['id']}/console_logs/")
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}\n" for number in range(50_000)]
    assert record_of(client, job["id"]).stdout.count("\n") == 50_002  # type: ignore[union-attr]

"""The v2 API's jobs."""

from __future__ import annotations

import uuid

from tests.server.conftest import Client

LISTED = {"id", "status", "action", "is_active", "queue", "error", "created", "completed"}
DETAIL = LISTED | {
    *("params", "progress_record", "metrics_record", "result", "meta", "plugin_release_id", "plugin_release"),
    "modified",
}


def test_job_is_shown_in_an_envelope(client: Client) -> None:
    job_id = client.run("train")["id"]
    answer = client.json(f"/v2/jobs/{job_id}/")
    assert answer.keys() == {"data", "meta"}
    assert uuid.UUID(answer["meta"]["request_id"])
    job = answer["data"]
    assert job.keys() == DETAIL
    assert (job["status"], job["is_active"], job["queue"], job["error"]) == ("SUCCEEDED", False, None, None)
    assert job["plugin_release"].keys() == {"id", "plugin_id", "version"}
    assert (job["plugin_release"]["id"], job["plugin_release"]["version"]) == (job["plugin_release_id"], "1.2.3")
    assert job["metrics_record"]["record"]["steps"]["train"] == {"loss": {"$float": "nan"}}


def test_failed_job_has_an_error(client: Client) -> None:
    job = client.json(f"/v2/jobs/{client.run('fail')['id']}/")["data"]
    assert job["error"] == {"error_type": "execution_error", "message": "no weights"}


def test_jobs_are_listed_in_pages_whose_cursor_is_a_url(client: Client) -> None:
    client.run("echo")  # so that there is a page after the third
    ids = [client.run("echo")["id"] for _ in range(3)]
    page = client.json("/v2/jobs/", params={"per_page": 1, "action": "echo"})
    assert page["data"][0].keys() == LISTED
    seen, pages = [], 0
    while pages < 3:
        seen += [job["id"] for job in page["data"]]
        cursor = page["meta"]["pagination"]["next_cursor"]
        assert cursor.startswith(f"{client.host}/v2/jobs/?")
        pages += 1
        if pages % 2:
            page = client.json(cursor)
        else:
            page = client.json("/v2/jobs/", params={"per_page": 1, "action": "echo", "cursor": cursor})
    assert seen == ids[::-1]
    last = client.json("/v2/jobs/", params={"per_page": 200})["meta"]["pagination"]
    assert (last["next_cursor"], last["previous_cursor"], last["per_page"]) == (None, None, 200)
    assert client.json("/v2/jobs/", params={"status": "STOPPED", "action": "echo"})["data"] == []


def test_errors_have_codes(client: Client) -> None:
    missing = client.get(f"/v2/jobs/{uuid.uuid4()}/")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert missing.json()["meta"]["request_id"]
    invalid = client.get("/v2/jobs/", params={"per_page": 500})
    assert (invalid.status_code, invalid.json()["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert invalid.json()["error"]["details"][0]["field"] == "per_page"
    assert client.get("/v2/jobs/", params={"cursor": "abc"}).status_code == 400
    refused = client.with_token("wrong").get("/v2/jobs/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "AUTHENTICATION_REQUIRED")


def test_status_of_a_job_that_has_ended_stays(client: Client) -> None:
    path = f"/v2/jobs/{client.run('echo')['id']}/"
    assert client.http.patch(path, json={"status": "SUCCEEDED"}).status_code == 200
    refused = client.http.patch(path, json={"status": "FAILED"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "INVALID_TRANSITION")
    stopped = client.post(f"{path}stop/")
    assert (stopped.status_code, stopped.json()["error"]["code"]) == (409, "INVALID_STATE")


def test_stop_ends_a_running_job(client: Client) -> None:
    job_id = client.start("sleep")
    client.wait_for_output(job_id)
    answer = client.post(f"/v2/jobs/{job_id}/stop/")
    assert (answer.status_code, answer.json()["data"]["status"]) == (200, "STOPPED")
    assert client.json(f"/v2/jobs/{job_id}/console_logs/")["data"] == {"logs": ["sleeping\n"]}


def test_tail_of_an_unknown_job_says_so(client: Client) -> None:
    answer = client.get(f"/v2/jobs/{uuid.uuid4()}/tail_console_logs/")
    assert answer.status_code == 200
    assert '"type": "error"' in answer.text

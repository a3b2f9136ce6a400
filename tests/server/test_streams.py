"""What can be followed: the tail of the console, and numbered events."""

from __future__ import annotations

import json
import threading

from tests.patience import within
from tests.server.conftest import Client

OUTPUT = ["half a line", "to stderr", "no [bold] markup, café \U0001f600", "no newline at the end"]


def tail(client: Client, job_id: str, api: str = "") -> list[dict[str, str]]:
    answer = client.get(f"{api}/jobs/{job_id}/tail_console_logs/")
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    assert all(line.startswith("data: ") for line in lines if line)
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_tail_has_exactly_the_lines_and_the_status(client: Client) -> None:
    job_id = client.start("output")
    for api in ("", "/v2"):
        first, *logs, last = tail(client, job_id, api)
        assert first == {"type": "connected", "job_id": job_id}
        assert [frame["type"] for frame in logs] == ["log"] * 4
        shown = [frame["data"] for frame in logs]
        assert sorted(shown) == sorted(OUTPUT)
        assert [line for line in shown if line != "to stderr"] == [line for line in OUTPUT if line != "to stderr"]
        assert last == {"type": "complete", "message": "SUCCEEDED", "status": "SUCCEEDED"}
    assert sorted(client.json(f"/jobs/{job_id}/console_logs/")) == sorted(line + "\n" for line in OUTPUT)


def test_tail_from_the_start_is_whole_while_the_job_runs(client: Client) -> None:
    job_id = client.start("output", {"lines": 3000})
    found: list[list[dict[str, str]]] = []
    threads = [threading.Thread(target=lambda: found.append(tail(client, job_id))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frames in found:
        numbered = [frame["data"] for frame in frames if frame.get("data", "").startswith("line ")]
        assert numbered == [f"line {number}" for number in range(3000)]


def test_failure_is_in_the_tail_as_a_line_and_as_an_error(client: Client) -> None:
    frames = tail(client, client.start("fail"))
    assert frames[-3] == {"type": "log", "data": "ValueError: no weights"}
    assert frames[-2] == {"type": "error", "message": "no weights"}
    assert frames[-1]["status"] == "FAILED"


def test_events_are_numbered_without_gaps(client: Client) -> None:
    job_id = client.start("train")
    events = client.events(job_id)
    assert [number for number, _, _ in events] == [*range(1, len(events) + 1)]
    kinds = [kind for _, kind, _ in events]
    assert kinds[:2] == ["status", "status"]
    assert kinds[-1] == "end"
    assert {*kinds} == {"status", "log", "progress", "metric", "event", "end"}
    assert events[0][2] == {"status": "PENDING"}
    assert events[-1][2] == {"status": "SUCCEEDED"}
    text = "".join(data["text"] for _, kind, data in events if kind == "log" and data["stream"] == "stdout")
    assert text == "epoch 0\nepoch 1\n"
    metrics = [data for _, kind, data in events if kind == "metric"]
    assert metrics[1]["data"] == {"loss": {"$float": "nan"}}
    assert metrics[1]["kind"] == "metrics"


def test_events_can_be_resumed_by_number(client: Client) -> None:
    job_id = client.start("train")
    events = client.events(job_id)
    assert client.events(job_id, params={"after": 3}) == events[3:]
    assert client.events(job_id, headers={"Last-Event-ID": "3"}) == events[3:]
    assert client.events(job_id, params={"after": len(events)}) == []
    assert client.events(job_id, params={"after": len(events) + 5}) == []
    assert client.get(f"/runtime/jobs/{job_id}/events/", params={"after": "x"}).status_code == 400


def test_events_arrive_while_the_job_runs(client: Client) -> None:
    job_id = client.start("sleep")
    with client.http.stream("GET", f"/runtime/jobs/{job_id}/events/") as stream:
        lines = stream.iter_lines()
        assert any("sleeping" in line for line in lines)
        assert client.json(f"/jobs/{job_id}/")["status"] == "RUNNING"
        client.post(f"/runtime/jobs/{job_id}/stop/")
        rest = [line for line in lines if line]
    assert rest[-1] == 'data: {"status":"STOPPED"}'


def test_streams_are_limited_and_closed_ones_do_not_count(client: Client) -> None:
    job_id = client.start("sleep")
    streams = []
    try:
        while True:
            request = client.http.build_request("GET", f"/jobs/{job_id}/tail_console_logs/")
            answer = client.http.send(request, stream=True)
            streams.append(answer)
            if answer.status_code != 200:
                break
        assert len(streams) == 65
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    finally:
        for answer in streams:
            answer.close()
        client.post(f"/v2/jobs/{job_id}/stop/")

    def is_free() -> bool:
        return client.get(f"/jobs/{job_id}/tail_console_logs/").status_code == 200

    assert within(10, is_free)

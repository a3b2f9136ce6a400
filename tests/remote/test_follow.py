"""A job is followed to its end: no line is lost or shown twice, and it has succeeded only when its status says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.errors import RemoteError
from synapse_runtime.events import Event
from synapse_runtime.executors.remote.executor import RemoteExecutor
from synapse_runtime.executors.remote.transport import Timeouts
from tests.patience import patience, within
from tests.remote.conftest import SHORT
from tests.remote.stub import Job, PlainBackend, RuntimeBackend, pause

Connect = Callable[..., RemoteExecutor]
LINES = [f"line {number}" for number in range(30)]
CUT = b'data: {"type": "log", "data": "li'


def print_slowly(job: Job) -> None:
    job.set(status="RUNNING")
    for number in range(0, 30, 3):
        job.print(*LINES[number : number + 3])
        pause(0.02)
    job.end(result="done", run=ActionRun("train", result="done", is_started=True))


def shown(executor: RemoteExecutor) -> tuple[list[str], ActionRun]:
    pieces: list[str] = []
    run = executor.run("train", on_output=lambda stream, text: pieces.append(text))
    return "".join(pieces).splitlines(), run


class TestPlain:
    @pytest.mark.parametrize(
        "faults",
        [
            [],
            [(5, CUT)],
            [(0, b""), (1, b"data: {"), (2, CUT), (17, CUT + b'ne"}')],
            [(5, b'data: {"type": "complete", "message": ""}\n\n')],
            ["silence"],
            ["silence", (29, CUT)],
            ["missing"] * 100,
        ],
        ids=["whole", "cut in a line", "cut often", "complete too early", "silent", "silent, then cut", "no tail"],
    )
    def test_every_line_is_shown_once_and_in_order(self, plain: PlainBackend, connect: Connect, faults: list) -> None:
        plain.script = print_slowly
        plain.tail_faults = faults
        lines, run = shown(connect(plain))
        assert lines == LINES
        assert (run.result, run.stdout.splitlines()) == ("done", LINES)
        assert len(plain.of("POST", "/run/")) == 1

    def test_end_of_the_tail_is_not_the_end_of_the_job(self, plain: PlainBackend, connect: Connect) -> None:
        may_end = threading.Event()

        def wait(job: Job) -> None:
            job.set(status="RUNNING")
            job.print("one")
            assert may_end.wait(patience(20))
            job.print("two")
            job.end("FAILED", result={"error": "no weights"})

        plain.script = wait
        plain.tail_faults = [(1, b'data: {"type": "complete", "message": "done"}\n\n')] * 3
        done: list[ActionRun] = []
        thread = threading.Thread(target=lambda: done.append(connect(plain).run("train")))
        thread.start()
        assert within(20, lambda: len(plain.of("GET", "/tail_console_logs/")) > 3)
        assert not done
        may_end.set()
        thread.join(patience(20))
        assert str(done[0].error) == "train failed: no weights"
        assert done[0].stdout == "one\ntwo\n"

    def test_lines_that_come_after_the_last_tail_are_shown(self, plain: PlainBackend, connect: Connect) -> None:
        def end(job: Job) -> None:
            job.print("one")
            job.end(result=1)
            job.print("late")

        plain.script = end
        plain.tail_faults = [(1, b'data: {"type": "complete", "message": ""}\n\n')] * 9
        assert shown(connect(plain))[0] == ["one", "late"]

    def test_empty_lines_and_nested_frames_are_lines(self, plain: PlainBackend, connect: Connect) -> None:
        def talk(job: Job) -> None:
            job.print("", 'data: {"type": "log", "message": "inner"}', "[bold]", "größer\u2028")
            job.end()

        plain.script = talk
        pieces: list[str] = []
        connect(plain).run("train", on_output=lambda stream, text: pieces.append(text))
        assert "".join(pieces).split("\n") == ["", "inner", "[bold]", "größer\u2028", ""]

    @pytest.mark.parametrize(
        "frame", [b"data: 5", b'data: {"type": 5}', b"data: [1", b"data:", b"id: 7", b": x", b"event: log", b"\xff"]
    )
    def test_frames_that_are_none_are_skipped(self, plain: PlainBackend, connect: Connect, frame: bytes) -> None:
        plain.script = print_slowly
        plain.tail_faults = [(3, frame + b"\n\n" + frame + b"\n")] * 3
        assert shown(connect(plain))[0] == LINES

    @pytest.mark.parametrize(
        "record",
        [
            [1],
            {"record": [1]},
            {"record": {"steps": {"a": 5, "b": [1], "c": {}}}},
            {"current_progress": {"percent": True}},
            "text",
        ],
    )
    def test_records_of_other_forms_are_no_events(self, plain: PlainBackend, connect: Connect, record: object) -> None:
        plain.script = lambda job: job.end("FAILED", progress=record, metrics=record, meta=record, result=record)
        run = connect(plain).run("train")
        assert run.events == []
        assert "the backend does not say why" in str(run.error)

    def test_progress_and_metrics_become_events(self, plain: PlainBackend, connect: Connect) -> None:
        def train(job: Job) -> None:
            for percent, loss in ((33.33, 1.0), (33.33, 1.0), (100.0, float("nan"))):
                steps = {"train": {"percent": percent, "time_remaining": 0.0}}
                job.set(
                    status="RUNNING",
                    progress={"record": {"steps": steps}, "current_progress": {"overall": 2.0}},
                    metrics={"record": {"steps": {"train": {"loss": loss}}}},
                )
                pause(0.7)
            job.end(result={"accuracy": 0.9})

        plain.script = train
        events: list[Event] = []
        run = connect(plain).run("train", on_event=events.append)
        assert [(event.step, event.data["current"]) for event in events if event.kind == "progress"] == [
            ("train", 33.33),
            ("train", 100.0),
        ]
        assert run.metrics["train"].history[0] == {"loss": 1.0}
        assert run.metrics["train"]["loss"] != run.metrics["train"]["loss"]  # NaN came bare
        assert run.result == {"accuracy": 0.9}

    def test_outage_of_the_backend_does_not_end_the_run(self, plain: PlainBackend, connect: Connect) -> None:
        def wait(job: Job) -> None:
            job.set(status="RUNNING")
            plain.faults[f"/jobs/{job.id}/"] = [502] * 9 + [500] * 2
            job.print("one")
            pause(0.3)
            job.end(result=1)

        plain.script = wait
        assert connect(plain).run("train").result == 1

    def test_lost_contact_is_an_error_that_says_how_to_look(self, plain: PlainBackend, connect: Connect) -> None:
        def hang(job: Job) -> None:
            job.set(status="RUNNING")
            plain.faults[f"/jobs/{job.id}/"] = [503] * 10_000

        plain.script = hang
        executor = connect(plain, timeouts=Timeouts(read=0.5, retry=0.01, outage=0.3))
        with pytest.raises(RemoteError, match=r"lost contact with job .* may still be running; .*synapse job logs"):
            executor.run("train")

    def test_job_that_hangs_can_be_left_by_a_deadline(self, plain: PlainBackend, connect: Connect) -> None:
        plain.script = lambda job: job.set(status="RUNNING")
        executor = connect(plain)
        job_id = executor.submit("train")
        with pytest.raises(TimeoutError, match="has not ended"):
            executor.get_run(job_id, timeout=0.3)
        assert executor.stop(job_id)
        assert executor.wait(job_id) == "STOPPED"
        assert not executor.stop(job_id)


class TestRuntime:
    @pytest.mark.parametrize(
        "faults",
        [[], [4], [0, 1, 0, 2, 7], ["silence"], ["silence", 3, "silence"]],
        ids=["whole", "cut in an event", "cut often", "silent", "silent and cut"],
    )
    def test_every_event_is_shown_once_and_resumed_by_number(
        self, runtime: RuntimeBackend, connect: Connect, faults: list
    ) -> None:
        runtime.script = print_slowly
        runtime.event_faults = faults
        lines, run = shown(connect(runtime, timeouts=replace(SHORT, late=patience(10))))
        assert lines == LINES
        assert run.result == "done"
        asked = [int(request.headers.get("last-event-id", 0)) for request in runtime.of("GET", "/events/")]
        assert asked == sorted(asked)
        assert len(runtime.of("POST", "/jobs/")) == 1

    def test_events_of_all_kinds_come_as_they_are(self, runtime: RuntimeBackend, connect: Connect) -> None:
        sent = [
            Event("progress", data={"current": 1, "total": 3}, step="train"),
            Event("metrics", data={"loss": 0.5, "shape": (1, 2)}, step="train"),
            Event("log", "epoch", {"n": 1}, level="debug"),
            Event("message", "hello"),
        ]

        def talk(job: Job) -> None:
            job.set(status="RUNNING")
            for event in sent:
                job.emit(event)
            job.print("warning", stream="stderr")
            job.end(run=ActionRun("train", result=None, events=sent, is_started=True))

        runtime.script = talk
        events: list[Event] = []
        output: list[tuple[str, str]] = []
        run = connect(runtime).run(
            "train", on_event=events.append, on_output=lambda stream, text: output.append((stream, text))
        )
        assert events == run.events == sent
        assert output == [("stderr", "warning\n")]

    def test_stream_that_is_closed_at_the_end_without_saying_so_ends_the_run(
        self, runtime: RuntimeBackend, connect: Connect
    ) -> None:
        def end(job: Job) -> None:
            job.print("one")
            job.end("FAILED", result={"error": "lost"}, meta={"error": {"error_type": "infrastructure"}})
            job.events.pop()

        runtime.script = end
        run = connect(runtime).run("train")
        assert (type(run.error).__name__, str(run.error)) == ("WorkerCrashed", "train failed: lost")


def test_stream_logs_yields_whole_lines(backend: PlainBackend, connect: Connect) -> None:
    backend.script = print_slowly
    executor = connect(backend)
    job_id = executor.submit("train")
    assert list(executor.stream_logs(job_id)) == [f"{line}\n" for line in LINES]
    assert executor.get_logs(job_id) == "".join(f"{line}\n" for line in LINES)
    assert executor.get_status(job_id) == "SUCCEEDED"
    assert executor.get_result(job_id) == "done"


def test_unknown_job_is_an_error(backend: PlainBackend, connect: Connect) -> None:
    executor = connect(backend)
    for call in (executor.get_status, executor.get_logs, executor.get_result, executor.stop):
        with pytest.raises(RemoteError, match=r"has no job 'nope'; `synapse job list --host"):
            call("nope")


class TestInterruption:
    def test_what_a_callback_raises_stops_the_job(self, backend: PlainBackend, connect: Connect) -> None:
        def hang(job: Job) -> None:
            job.set(status="RUNNING")
            job.print("one")

        def refuse(stream: str, text: str) -> None:
            raise ValueError(text)

        backend.script = hang
        with pytest.raises(ValueError, match="one"):
            connect(backend).run("train", on_output=refuse)
        assert backend.only_job().status == "STOPPED"
        assert within(10, lambda: not any(t.name.startswith("synapse-") for t in threading.enumerate()))

    def test_cancelling_the_await_stops_the_job(self, backend: PlainBackend, connect: Connect) -> None:
        backend.script = lambda job: job.set(status="RUNNING")

        async def main() -> None:
            task = asyncio.create_task(connect(backend).arun("train"))
            while not [job_id for job_id in backend.jobs if backend.of("GET", f"/{job_id}/")]:  # it is followed
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert within(10, lambda: backend.only_job().status == "STOPPED")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("progress", {"kind": "progress", "data": {}}),
        ("progress", {"kind": "progress", "data": {"current": 2, "total": 1}}),
        ("metric", {"kind": "metrics", "data": {"loss": 1}}),
        ("event", {"kind": "noise"}),
        ("event", [1]),
    ],
)
def test_event_that_is_malformed_is_an_error(
    runtime: RuntimeBackend, connect: Connect, kind: str, data: object
) -> None:
    def talk(job: Job) -> None:
        job.set(status="RUNNING")
        with job.changed:
            job.events.append((kind, data))
            job.changed.notify_all()

    runtime.script = talk
    with pytest.raises(RemoteError, match=r"event 2 of job .* is malformed"):
        connect(runtime).run("train")

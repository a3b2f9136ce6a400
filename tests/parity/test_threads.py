"""Row 28: what threads of an action emit, and what callbacks of the caller raise."""

import time
from collections import Counter, defaultdict

import pytest
from lab.threads import THREADS
from pydantic import TypeAdapter, ValidationError

from synapse_runtime.events import Event
from tests.parity.modes import as_a_job, everywhere, not_as_jobs
from tests.patience import patience

pytestmark = not_as_jobs

# Events of each thread, and characters of each event.
LOADS = [(200, 1), (200, 6_000), (10, 200_000), (3, 1_000_000)]


def check(events: list[Event], count: int, size: int) -> None:
    found = defaultdict(list)
    for event in events:
        assert event.data["text"] == chr(65 + event.data["thread"]) * size
        found[event.data["thread"]].append(event.data["number"])
    assert found == {thread: list(range(count)) for thread in range(THREADS)}


def check_run(run, live: list[Event] | None, count: int, size: int) -> None:
    assert run.error is None
    check(run.events, count, size)
    if live is not None:
        check(live, count, size)


@pytest.mark.parametrize("is_watched", [False, True], ids=["", "watched"])
@pytest.mark.parametrize(("count", "size"), LOADS)
def test_28_events_of_threads_arrive_whole_in_the_order_of_each_thread(synapse_executor, count, size, is_watched):
    live: list[Event] | None = [] if is_watched else None
    callbacks = {"on_event": live.append} if live is not None else {}
    check_run(
        synapse_executor.run("lab.threads:FromThreads", {"count": count, "size": size}, **callbacks), live, count, size
    )


@as_a_job
def test_28_events_output_and_records_of_threads_arrive_whole_from_a_job(synapse_executor, capfd, caplog):
    live: list[Event] = []
    loads = [(50, 100), *LOADS[1:3]]
    params = {"loads": loads}
    run = synapse_executor.run("lab.threads:FromThreadsInTurn", params, on_event=live.append)
    assert run.error is None
    for events in (run.events, live):
        first = 0
        for count, size in loads:
            check(events[first : first + THREADS * count], count, size)
            first += THREADS * count
        assert len(events) == first
    # Python itself may interleave lines of several kilobytes that threads write.
    check_output(capfd, caplog, [50, LOADS[1][0]])


def test_28_output_and_records_of_threads_arrive_whole(synapse_executor, capfd, caplog):
    run = synapse_executor.run("lab.threads:FromThreads", {"count": 50, "size": 100})
    check_run(run, None, 50, 100)
    check_output(capfd, caplog, [50])


def check_output(capfd, caplog, counts: list[int]) -> None:
    """Check the lines of the first load, (50, 100), and the records of all."""
    lines = Counter(capfd.readouterr().out.splitlines())
    for thread in range(THREADS):
        expected = [f"{thread} {number} {chr(65 + thread) * 100}" for number in range(50)]
        assert [lines[line] for line in expected] == [1] * 50
        records = [record.getMessage() for record in caplog.records if record.name == f"lab.thread{thread}"]
        assert records == [f"record {number}" for count in counts for number in range(count)]


@everywhere
def test_28_run_is_whole_although_threads_of_its_action_still_emit_events(synapse_executor):
    live: list[Event] = []
    run = synapse_executor.run("lab.threads:LeavesThreads", on_event=live.append)
    assert run.error is None
    assert run.result == "returned"


@pytest.mark.parametrize("from_thread", [False, True], ids=["", "from a thread"])
def test_28_error_of_a_callback_stops_the_action_and_is_raised(synapse_executor, synapse_mode, from_thread):
    before = synapse_executor.run("echo", {"value": 1}).pid

    def fail(event: Event) -> None:
        raise LookupError("of the callback")

    started = time.monotonic()
    params = {"from_thread": from_thread, "seconds": patience(60)}
    with pytest.raises(LookupError, match="of the callback"):
        synapse_executor.run("lab.threads:Says", params, on_event=fail)
    assert time.monotonic() - started < patience(20)
    after = synapse_executor.run("echo", {"value": 1}).pid
    assert (after == before) is (synapse_mode != "remote")


@as_a_job
def test_28_error_of_a_callback_stops_the_job_and_is_raised(synapse_executor):
    started = time.monotonic()

    def fail(event: Event) -> None:  # with an exception that reading a job's log might raise too
        TypeAdapter(int).validate_python("of the callback")

    with pytest.raises(ValidationError, match="of the callback"):
        synapse_executor.run("lab.threads:Says", {"from_thread": False, "seconds": patience(60)}, on_event=fail)
    assert time.monotonic() - started < patience(30)


@everywhere
def test_28_error_of_a_callback_that_comes_last_is_raised(synapse_executor):
    def fail(event: Event) -> None:
        raise LookupError("of the callback")

    with pytest.raises(LookupError, match="of the callback"):
        synapse_executor.run("lab.threads:Says", {"from_thread": False, "seconds": 0}, on_event=fail)

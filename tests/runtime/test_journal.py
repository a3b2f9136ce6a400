"""Tests for the journal of a worker, which outlives its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from synapse_runtime.executors.journal import Journal, decode_entries, encode_entries, read_journal


@pytest.fixture
def journal():
    one = Journal()
    yield one
    one.close()


def entries(journal: Journal) -> list[object]:
    found = list(decode_entries(journal.since(0)))
    assert list(decode_entries(read_journal(journal.descriptor))) == found
    assert journal.count == len(found)
    return found


def test_entries_are_read_in_order_also_if_they_are_large(journal):
    added = [("small", 1), "x" * 1_000_000, {"a": [1]}, b"", *range(1000)]
    for entry in added:
        journal.add(entry)
    assert entries(journal) == added
    assert list(decode_entries(encode_entries(added))) == added


def test_entries_since_a_position_are_the_later_ones(journal):
    journal.add("before")
    position = journal.position
    journal.add("after")
    assert list(decode_entries(journal.since(position))) == ["after"]


def test_reset_removes_all_entries(journal):
    journal.add("x" * 500_000)
    journal.reset()
    assert entries(journal) == []
    journal.add("new")
    assert entries(journal) == ["new"]


def test_entry_that_cannot_be_pickled_is_not_counted(journal):
    journal.add(threading.Lock())
    journal.add("next")
    assert entries(journal) == ["next"]


def test_threads_add_whole_entries(journal):
    def work(thread: int) -> None:
        for number in range(500):
            journal.add((thread, number, chr(65 + thread) * 3000))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = entries(journal)
    assert len(found) == 4000
    for thread in range(8):
        expected = [(thread, number, chr(65 + thread) * 3000) for number in range(500)]
        assert [entry for entry in found if entry[0] == thread] == expected


def test_forked_child_process_adds_nothing(journal):
    journal.add("of the parent")
    child = os.fork()
    if child == 0:
        journal.add("of the child")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert entries(journal) == ["of the parent"]


SCRIPT = """
import os, sys
from synapse_runtime.executors.journal import Journal
journal = Journal()
print(journal.descriptor, flush=True)
sys.stdin.readline()
for number in range(3000):
    journal.add({"number": number})
os.kill(os.getpid(), 9)
"""


def test_entries_can_be_read_after_the_process_was_killed():
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        descriptor = os.open(f"/proc/{process.pid}/fd/{int(process.stdout.readline())}", os.O_RDONLY)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait() == -signal.SIGKILL
    assert list(decode_entries(read_journal(descriptor))) == [{"number": number} for number in range(3000)]
    os.close(descriptor)

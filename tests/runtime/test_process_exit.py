"""How a process died, made out from what it noted."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from synapse_runtime.executors.process_exit import CrashLog, ProcessExit, parse_crash_log
from tests.patience import patience

PRELUDE = """\
import ctypes, os, signal, sys
from synapse_runtime.executors.process_exit import CrashLog
notes = CrashLog()
notes.descriptor = int(sys.argv[1])
notes.install()
"""


def dies(code: str) -> tuple[int, ProcessExit]:
    """Run code in a process that notes its end in our file; return its real status, and what its notes tell."""
    notes = CrashLog()
    program = PRELUDE + textwrap.dedent(code)
    descriptor = notes.descriptor
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(descriptor)],
            pass_fds=[descriptor],
            capture_output=True,
            timeout=patience(30),
        )
        return done.returncode, parse_crash_log(notes.read())
    finally:
        notes.close()


@pytest.mark.parametrize(
    "code",
    [
        "os._exit(7)",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.abort()",
        "ctypes.string_at(0)",
        "os.kill(os.getpid(), signal.SIGBUS)",
        "os.kill(os.getpid(), signal.SIGFPE)",
        "os.kill(os.getpid(), signal.SIGILL)",
    ],
)
def test_what_a_process_notes_tells_how_it_ended(code):
    status, death = dies(code)
    assert death.status == status
    assert not death.timed_out


def test_a_fault_tells_where_it_was():
    _, death = dies("""
        def step_on_nothing():
            ctypes.string_at(0)

        step_on_nothing()
    """)
    assert "in step_on_nothing" in death.stack
    assert "Extension modules" not in death.stack


def test_threads_that_are_not_the_actions_are_left_out():
    _, death = dies("""
        import threading, time
        from synapse_runtime.loggers import ConsoleLogger

        def beside():
            time.sleep(30)

        class Stuck:
            def isatty(self):
                time.sleep(30)

        from synapse_runtime.events import Event
        progress = Event("progress", "", {"current": 1, "total": 2})
        threading.Thread(target=beside, daemon=True).start()
        threading.Thread(target=ConsoleLogger(Stuck()).event, args=[progress], daemon=True).start()
        time.sleep(0.3)
        ctypes.string_at(0)
    """)
    assert death.stack.startswith("Current thread")
    assert "in beside" in death.stack
    assert "in isatty" not in death.stack


def test_a_child_that_a_worker_has_forked_does_not_note_its_own_end():
    status, death = dies("""
        if os.fork() == 0:
            os._exit(3)
        os.wait()
        os._exit(5)
    """)
    assert status == death.status == 5


def test_a_limit_that_is_kept_from_c_is_told_from_other_ends():
    status, death = dies("""
        import time
        notes.exit_after(0.2)
        time.sleep(30)
    """)
    assert (status, death.status, death.timed_out) == (1, 1, True)


def test_what_was_noted_of_one_call_is_forgotten_in_the_next():
    notes = CrashLog()
    notes._file.write(b"exit 3\n")
    assert parse_crash_log(notes.read()).status == 3
    notes.reset()
    assert parse_crash_log(notes.read()).status == -signal.SIGKILL
    notes.close()


@pytest.mark.parametrize(
    ("death", "words"),
    [
        (ProcessExit(0), "exited with status 0"),
        (ProcessExit(-11), "was killed by SIGSEGV"),
        (ProcessExit(-9), "was killed by SIGKILL"),
        (ProcessExit(-9, out_of_memory=True), "was killed by SIGKILL: the machine ran out of memory"),
        (ProcessExit(-15, out_of_memory=True), "was killed by SIGTERM"),
        (ProcessExit(-99), "was killed by signal 99"),
    ],
)
def test_an_end_in_words(death, words):
    assert death.describe() == words

"""Tests for reading from a crash log how a process exited."""

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


def run_and_exit(code: str) -> tuple[int, ProcessExit]:
    """Run code in a process with a crash log; return its real status, and the exit read from the log."""
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
def test_crash_log_gives_the_exit_status(code):
    status, process_exit = run_and_exit(code)
    assert process_exit.status == status
    assert not process_exit.timed_out


def test_fault_has_the_stack():
    _, process_exit = run_and_exit("""
        def step_on_nothing():
            ctypes.string_at(0)

        step_on_nothing()
    """)
    assert "in step_on_nothing" in process_exit.stack
    assert "Extension modules" not in process_exit.stack


def test_stack_omits_threads_that_are_not_the_actions():
    _, process_exit = run_and_exit("""
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
    assert process_exit.stack.startswith("Current thread")
    assert "in beside" in process_exit.stack
    assert "in isatty" not in process_exit.stack


def test_forked_child_does_not_write_to_the_crash_log():
    status, process_exit = run_and_exit("""
        if os.fork() == 0:
            os._exit(3)
        os.wait()
        os._exit(5)
    """)
    assert status == process_exit.status == 5


def test_timeout_exit_is_distinguished_from_other_exits():
    status, process_exit = run_and_exit("""
        import time
        notes.exit_after(0.2)
        time.sleep(30)
    """)
    assert (status, process_exit.status, process_exit.timed_out) == (1, 1, True)


def test_reset_empties_the_crash_log():
    notes = CrashLog()
    notes._file.write(b"exit 3\n")
    assert parse_crash_log(notes.read()).status == 3
    notes.reset()
    assert parse_crash_log(notes.read()).status == -signal.SIGKILL
    notes.close()


@pytest.mark.parametrize(
    ("process_exit", "description"),
    [
        (ProcessExit(0), "exited with status 0"),
        (ProcessExit(-11), "was killed by SIGSEGV"),
        (ProcessExit(-9), "was killed by SIGKILL"),
        (ProcessExit(-9, out_of_memory=True), "was killed by SIGKILL: the machine ran out of memory"),
        (ProcessExit(-15, out_of_memory=True), "was killed by SIGTERM"),
        (ProcessExit(-99), "was killed by signal 99"),
    ],
)
def test_describe(process_exit, description):
    assert process_exit.describe() == description

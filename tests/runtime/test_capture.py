"""What an action puts out in a worker: taken at the descriptors, per call, and put out again elsewhere."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from typing import Any

import pytest

from synapse_runtime.capture import Captured, CapturedWarning, captured_logging, last_lines

PRELUDE = """\
import json, os, subprocess, sys
from pathlib import Path
from synapse_runtime.capture import OutputFiles

files = OutputFiles()
seen = []
"""


def in_a_worker(tmp_path, code: str) -> tuple[list[Any], subprocess.CompletedProcess[str]]:
    """Run code in a child process, whose descriptors it takes over; return what it has put into `seen`."""
    report = tmp_path / "seen.json"
    program = PRELUDE + textwrap.dedent(code) + "\nPath(sys.argv[1]).write_text(json.dumps(seen))\n"
    # Buffered, as a worker's streams are, whatever the environment of this session says.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program, str(report)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, env=environment)
    assert report.exists(), done.stderr
    return json.loads(report.read_text()), done


def test_everything_that_reaches_the_descriptors_is_taken_in_order(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        files.begin()
        print("print", flush=True)
        os.write(1, b"descriptor\\n")
        subprocess.run([sys.executable, "-c", "print('child')"])
        sys.stderr.write("error\\n")
        os.write(2, b"low error\\n")
        seen.append(files.take())
        """,
    )
    assert seen == [["print\ndescriptor\nchild\n", "error\nlow error\n"]]


def test_what_was_printed_before_a_call_does_not_belong_to_it_even_if_it_was_not_flushed(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        sys.stdout.write("before, in the buffer")
        files.begin()
        print("mine")
        seen.append(files.take())
        sys.stdout.write("between")
        files.begin()
        seen.append(files.take())
        """,
    )
    assert seen == [["mine\n", ""], ["", ""]]


def test_peek_gives_the_news_and_take_gives_all(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        files.begin()
        print("one")
        seen.append(files.peek())
        seen.append(files.peek())
        print("two", file=sys.stderr)
        seen.append(files.peek())
        print("three")
        seen.append(files.take())
        """,
    )
    assert seen == [["one\n", ""], ["", ""], ["", "two\n"], ["one\nthree\n", "two\n"]]


def test_a_character_that_is_cut_in_two_by_a_peek_comes_whole_and_one_without_end_is_marked(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        files.begin()
        os.write(1, "☃".encode()[:1])
        seen.append(files.peek()[0])
        os.write(1, "☃".encode()[1:] + b"\\xff")
        seen.append(files.peek()[0])
        os.write(1, "é".encode()[:1])
        seen.append(files.take()[0])
        files.begin()
        os.write(1, b"a")
        seen.append(files.take()[0])
        """,
    )
    assert seen == ["", "☃\ufffd", "☃\ufffd\ufffd", "a"]


def test_what_is_taken_goes_on_to_where_it_went_before(tmp_path):
    _, done = in_a_worker(
        tmp_path,
        """
        print("before the first call")
        files.begin()
        print("one")
        print("error", file=sys.stderr)
        files.peek()
        files.take()
        files.begin()
        print("two")
        files.take()
        """,
    )
    assert done.stdout == "before the first call\none\ntwo\n"
    assert done.stderr == "error\n"


def test_megabytes_do_not_block_and_the_file_does_not_grow_from_call_to_call(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        for _ in range(5):
            files.begin()
            sys.stdout.write("x" * 1_000_000)
            seen.append(len(files.take()[0]))
        seen.append(os.fstat(files.descriptors[0]).st_size)
        """,
    )
    assert seen == [1_000_000] * 6


def test_the_files_can_be_read_from_outside_by_their_descriptors(tmp_path):
    seen, _ = in_a_worker(
        tmp_path,
        """
        files.begin()
        os.write(1, b"out")
        os.write(2, b"err")
        seen.extend(os.pread(descriptor, 100, 0).decode() for descriptor in files.descriptors)
        """,
    )
    assert seen == ["out", "err"]


def test_a_worker_whose_own_output_is_gone_captures_all_the_same(tmp_path):
    report = tmp_path / "seen.json"
    program = PRELUDE + "files.begin(); print('kept'); Path(sys.argv[1]).write_text(json.dumps(files.take()))"
    with subprocess.Popen([sys.executable, "-c", program, str(report)], stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert json.loads(report.read_text()) == ["kept\n", ""]


def test_log_records_of_all_loggers_are_taken_from_info_up_and_travel():
    captured = Captured()
    root_level = logging.getLogger().level
    with captured_logging(captured):
        logging.getLogger("some.where").info("n=%d", 3, extra={"lock": threading.Lock(), "epoch": 2})
        logging.getLogger("some.where").debug("too low")
    logging.getLogger("some.where").warning("after the block")
    (record,) = pickle.loads(pickle.dumps(captured.records))
    assert (record.name, record.levelname, record.getMessage()) == ("some.where", "INFO", "n=3")
    assert record.epoch == 2
    assert record.lock.startswith("<unlocked _thread.lock")
    assert logging.getLogger().level == root_level


def test_a_logger_that_is_set_to_debug_is_heard_down_to_debug():
    captured = Captured()
    logger = logging.getLogger("chatty.for.test_capture")
    logger.setLevel(logging.DEBUG)
    with captured_logging(captured):
        logger.debug("detail")
    assert [record.getMessage() for record in captured.records] == ["detail"]


def test_the_traceback_of_a_record_travels_as_text():
    captured = Captured()
    with captured_logging(captured):
        try:
            raise KeyError("epochs")
        except KeyError:
            logging.getLogger("some.where").exception("it broke")
    (record,) = pickle.loads(pickle.dumps(captured.records))
    assert record.exc_info is None
    assert record.exc_text.startswith("Traceback (most recent call last):\n")
    assert record.exc_text.endswith("KeyError: 'epochs'")


def test_handlers_and_level_are_put_back_after_a_failure():
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with pytest.raises(KeyError), captured_logging(Captured()):
        raise KeyError
    assert (list(root.handlers), root.level) == before


def test_warnings_are_taken_each_time_with_their_place_and_travel():
    captured = Captured()
    with captured_logging(captured):
        for _ in range(2):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = pickle.loads(pickle.dumps(captured.warnings))
    assert first == second
    assert (first.message, first.category, first.filename) == ("old", DeprecationWarning, __file__)
    assert first.line > 1


def test_replay_puts_everything_out_here(capsys, caplog):
    caplog.set_level(logging.DEBUG)
    record = logging.makeLogRecord({"name": "a.worker", "levelno": logging.INFO, "levelname": "INFO", "msg": "logged"})
    captured = Captured("out\n", "err\n", [record], [CapturedWarning("careful", UserWarning, "there.py", 7)])
    with pytest.warns(UserWarning, match="careful") as caught:
        captured.replay()
    assert capsys.readouterr() == ("out\n", "err\n")
    assert caplog.messages == ["logged"]
    assert (caught[0].filename, caught[0].lineno) == ("there.py", 7)


def test_replay_does_not_print_what_was_shown_while_it_came(capsys, caplog):
    caplog.set_level(logging.DEBUG)
    record = logging.makeLogRecord({"name": "a.worker", "levelno": logging.INFO, "msg": "logged"})
    Captured("out\n", "err\n", [record]).replay(output=False)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["logged"]


def test_the_levels_of_this_process_decide_what_a_replay_logs():
    stream = io.StringIO()
    logger = logging.getLogger("quiet.for.test_capture")
    logger.addHandler(logging.StreamHandler(stream))
    logger.setLevel(logging.WARNING)
    records = [
        logging.makeLogRecord({"name": logger.name, "levelno": level, "msg": str(level)})
        for level in (logging.INFO, logging.WARNING)
    ]
    Captured(records=records).replay()
    assert stream.getvalue() == "30\n"


def test_an_actions_own_logger_is_always_replayed(caplog):
    caplog.set_level(logging.ERROR)
    handler = logging.getLogger("synapse")
    seen = []
    sink = logging.Handler()
    sink.emit = lambda record: seen.append(record.getMessage())
    handler.addHandler(sink)
    try:
        Captured(records=[logging.makeLogRecord({"name": "synapse.train", "levelno": 10, "msg": "detail"})]).replay()
    finally:
        handler.removeHandler(sink)
    assert seen == ["detail"]


@pytest.mark.parametrize(
    ("text", "count", "last"), [("", 3, ""), ("a\nb\nc", 2, "b\nc"), ("a\nb\n", 5, "a\nb"), ("a\n\n", 1, "")]
)
def test_the_last_lines_of_an_output(text, count, last):
    assert last_lines(text, count) == last

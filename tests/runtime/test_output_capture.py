"""Tests for capturing the output, log records and warnings of a worker, and for replaying them."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.core.log_capture import CapturedWarning, UnhandledHooks, capture_logging
from synapse_runtime.core.log_config import LoggingConfig
from synapse_runtime.core.output_capture import Captured, last_lines
from tests.patience import patience

PRELUDE = """\
import json, os, subprocess, sys
from pathlib import Path
from synapse_runtime.core.output_capture import OutputFiles

files = OutputFiles()
seen = []
"""


def run_in_worker(tmp_path, code: str) -> tuple[list[Any], subprocess.CompletedProcess[str]]:
    """Run code in a child process with redirected descriptors; return what it has added to `seen`."""
    report = tmp_path / "seen.json"
    program = PRELUDE + textwrap.dedent(code) + "\nPath(sys.argv[1]).write_text(json.dumps(seen))\n"
    # Buffered like a worker's streams, whatever the environment of this session sets.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program, str(report)]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=patience(30), env=environment
    )
    assert report.exists(), done.stderr
    return json.loads(report.read_text()), done


def test_everything_written_to_the_descriptors_is_captured_in_order(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        files.start()
        print("print", flush=True)
        os.write(1, b"descriptor\\n")
        subprocess.run([sys.executable, "-c", "print('child')"])
        sys.stderr.write("error\\n")
        os.write(2, b"low error\\n")
        seen.append(files.read_all())
        """,
    )
    assert seen == [["print\ndescriptor\nchild\n", "error\nlow error\n"]]


def test_output_printed_before_a_call_is_not_captured_even_if_it_was_not_flushed(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        sys.stdout.write("before, in the buffer")
        files.start()
        print("mine")
        seen.append(files.read_all())
        sys.stdout.write("between")
        files.start()
        seen.append(files.read_all())
        """,
    )
    assert seen == [["mine\n", ""], ["", ""]]


def test_read_new_returns_new_output_and_read_all_returns_all(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        files.start()
        print("one")
        seen.append(files.read_new())
        seen.append(files.read_new())
        print("two", file=sys.stderr)
        seen.append(files.read_new())
        print("three")
        seen.append(files.read_all())
        """,
    )
    assert seen == [["one\n", ""], ["", ""], ["", "two\n"], ["one\nthree\n", "two\n"]]


def test_character_split_between_two_reads_is_decoded_and_an_incomplete_one_is_replaced(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        files.start()
        os.write(1, "☃".encode()[:1])
        seen.append(files.read_new()[0])
        os.write(1, "☃".encode()[1:] + b"\\xff")
        seen.append(files.read_new()[0])
        os.write(1, "é".encode()[:1])
        seen.append(files.read_all()[0])
        files.start()
        os.write(1, b"a")
        seen.append(files.read_all()[0])
        """,
    )
    assert seen == ["", "☃\ufffd", "☃\ufffd\ufffd", "a"]


def test_captured_output_is_also_written_to_the_original_descriptor(tmp_path):
    _, done = run_in_worker(
        tmp_path,
        """
        print("before the first call")
        files.start()
        print("one")
        print("error", file=sys.stderr)
        files.read_new()
        files.read_all()
        files.start()
        print("two")
        files.read_all()
        """,
    )
    assert done.stdout == "before the first call\none\ntwo\n"
    assert done.stderr == "error\n"


def test_megabytes_do_not_block_and_the_file_does_not_grow_between_calls(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        for _ in range(5):
            files.start()
            sys.stdout.write("x" * 1_000_000)
            seen.append(len(files.read_all()[0]))
        seen.append(os.fstat(files.descriptors[0]).st_size)
        """,
    )
    assert seen == [1_000_000] * 6


def test_files_can_be_read_by_other_processes_through_their_descriptors(tmp_path):
    seen, _ = run_in_worker(
        tmp_path,
        """
        files.start()
        os.write(1, b"out")
        os.write(2, b"err")
        seen.extend(os.pread(descriptor, 100, 0).decode() for descriptor in files.descriptors)
        """,
    )
    assert seen == ["out", "err"]


def test_worker_captures_output_even_if_its_own_descriptors_are_closed(tmp_path):
    report = tmp_path / "seen.json"
    program = PRELUDE + "files.start(); print('kept'); Path(sys.argv[1]).write_text(json.dumps(files.read_all()))"
    with subprocess.Popen([sys.executable, "-c", program, str(report)], stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert json.loads(report.read_text()) == ["kept\n", ""]


def test_log_records_of_all_loggers_are_captured_and_can_be_pickled():
    captured = Captured()
    root_level = logging.getLogger().level
    with capture_logging(captured.add, LoggingConfig(levels=(("", logging.INFO),))):
        logging.getLogger("some.where").info("n=%d", 3, extra={"lock": threading.Lock(), "epoch": 2})
        logging.getLogger("some.where").debug("too low")
    logging.getLogger("some.where").warning("after the block")
    (record,) = pickle.loads(pickle.dumps(captured.records))
    assert (record.name, record.levelname, record.getMessage()) == ("some.where", "INFO", "n=3")
    assert record.epoch == 2
    assert record.lock.startswith("<unlocked _thread.lock")
    assert logging.getLogger().level == root_level


def test_logger_set_to_debug_is_captured_down_to_debug():
    captured = Captured()
    logger = logging.getLogger("chatty.for.test_capture")
    logger.setLevel(logging.DEBUG)
    with capture_logging(captured.add):
        logger.debug("detail")
    assert [record.getMessage() for record in captured.records] == ["detail"]


def sent(records):
    """The records as they are in their caller's process."""
    return pickle.loads(pickle.dumps(records))


def test_record_keeps_its_message_arguments_exception_and_stack(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's would format them first
    captured = Captured()
    log = logging.getLogger("some.where")

    def fail():
        try:
            raise KeyError("epochs")
        except KeyError:
            log.exception("no %s in %d files", Path("weights"), 2)

    with capture_logging(captured.add):
        fail()
        log.warning("here", stack_info=True, stacklevel=1)
        log.warning("%(a)s", {"a": [1]})
    failed, stacked, named = sent(captured.records)
    assert all(type(record) is logging.LogRecord for record in (failed, stacked, named))
    assert (failed.msg, failed.args) == ("no %s in %d files", (Path("weights"), 2))
    kind, error, tb = failed.exc_info
    assert kind is KeyError
    assert error.args == ("epochs",)
    assert tb is error.__traceback__
    assert [frame.name for frame in traceback.extract_tb(tb)] == ["fail"]
    assert failed.exc_text is None  # so that a handler here formats it, in its own way
    assert stacked.stack_info.startswith("Stack (most recent call last):")
    assert (named.msg, named.args, named.getMessage()) == ("%(a)s", {"a": [1]}, "[1]")


def test_arguments_of_a_record_are_as_they_were_when_it_was_logged():
    captured = Captured()
    items = [1]
    with capture_logging(captured.add):
        logging.getLogger("some.where").warning("%s", items)
        items.append(2)
    (record,) = sent(captured.records)
    assert (record.args, record.getMessage()) == (([1],), "[1]")


class Grams:
    """A number that cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def __index__(self):
        return 7

    def __str__(self):
        return "seven"


def test_argument_that_cannot_be_sent_is_replaced_by_its_text():
    captured = Captured()
    with capture_logging(captured.add):
        logging.getLogger("some.where").warning("%s of %s", Grams(), 9)
        logging.getLogger("some.where").warning("%d of %s", Grams(), 9)
    text, number = sent(captured.records)
    assert (text.msg, text.args[1], text.getMessage()) == ("%s of %s", 9, "seven of 9")
    assert (number.msg, number.args, number.getMessage()) == ("7 of 9", None, "7 of 9")


def test_argument_whose_class_the_caller_does_not_have_is_text_there():
    captured = Captured()
    module = types.ModuleType("only_in_the_worker")
    sys.modules["only_in_the_worker"] = module
    exec("class Weight:\n    def __str__(self): return 'heavy'", vars(module))
    try:
        with capture_logging(captured.add):
            logging.getLogger("some.where").warning("%s", module.Weight(), extra={"weight": module.Weight()})
        data = pickle.dumps(captured.records)
    finally:
        del sys.modules["only_in_the_worker"]
    (record,) = pickle.loads(data)
    assert record.getMessage() == "heavy"
    assert str(record.weight) == "heavy"


class Coded(DeprecationWarning):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


def test_warning_whose_constructor_needs_keywords_is_sent():
    captured = Captured()
    with capture_logging(captured.add, LoggingConfig()):
        warnings.warn(Coded(code=7), stacklevel=1)
    (warning,) = sent(captured.warnings)
    assert (type(warning.message), warning.category) == (Coded, Coded)
    assert (warning.message.code, str(warning.message)) == (7, "code 7")


def test_warning_whose_class_the_caller_does_not_have_keeps_its_name_and_kind():
    captured = Captured()
    module = types.ModuleType("only_in_the_worker")
    sys.modules["only_in_the_worker"] = module
    exec("class Old(DeprecationWarning): pass", vars(module))
    try:
        with capture_logging(captured.add, LoggingConfig()):
            warnings.warn(module.Old("gone"), stacklevel=1)
        data = pickle.dumps(captured.warnings)
    finally:
        del sys.modules["only_in_the_worker"]
    (warning,) = pickle.loads(data)
    assert issubclass(warning.category, DeprecationWarning)
    assert (warning.category.__module__, warning.category.__name__) == ("only_in_the_worker", "Old")
    assert str(warning.message) == "gone"


@pytest.mark.parametrize(("action", "shown"), [("default", 1), ("module", 1), ("once", 1), ("always", 2)])
def test_warning_of_two_calls_is_shown_as_often_as_its_filter_says(action, shown):
    def call():
        captured = Captured()
        with capture_logging(captured.add):
            warnings.warn(f"old {action}", DeprecationWarning, stacklevel=1)
        return sent(captured.warnings)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        for warning in [*call(), *call()]:
            warning.replay()
    assert [str(item.message) for item in seen] == [f"old {action}"] * shown


def test_filter_of_the_action_decides_alone():
    captured = Captured()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        with capture_logging(captured.add):
            warnings.simplefilter("default")
            warnings.warn("from the action", UserWarning, stacklevel=1)
        for warning in sent(captured.warnings):
            warning.replay()
    assert [str(item.message) for item in seen] == ["from the action"]


class Failing:
    def __del__(self):
        raise ValueError("in a finalizer")


def fail_in_the_background():
    thread = threading.Thread(target=lambda: 1 / 0, name="divider")
    thread.start()
    thread.join()
    Failing()


def test_unhandled_errors_are_captured_for_the_hooks_that_the_caller_has(monkeypatch):
    captured = Captured()
    ours = UnhandledHooks(of_threads=True, of_finalizers=True)
    before = threading.excepthook, sys.unraisablehook
    with capture_logging(captured.add, None, ours):
        fail_in_the_background()
    assert (threading.excepthook, sys.unraisablehook) == before
    received = []
    monkeypatch.setattr(threading, "excepthook", received.append)
    monkeypatch.setattr(sys, "unraisablehook", received.append)
    assert Captured(unhandled=sent(captured.unhandled)).replay() is None
    of_thread, of_finalizer = received
    assert (of_thread.exc_type, str(of_thread.exc_value)) == (ZeroDivisionError, "division by zero")
    assert of_thread.thread.name == "divider"
    assert traceback.extract_tb(of_thread.exc_traceback)[-1].filename == __file__
    assert (of_finalizer.exc_type, str(of_finalizer.exc_value)) == (ValueError, "in a finalizer")
    assert "Failing.__del__" in repr(of_finalizer.object)


def test_unhandled_errors_are_printed_as_python_does_if_the_caller_has_no_hooks(monkeypatch, capsys):
    captured = Captured()
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert UnhandledHooks.current() == UnhandledHooks(of_threads=False, of_finalizers=False)
    with capture_logging(captured.add):
        fail_in_the_background()
    assert captured.unhandled == []
    printed = capsys.readouterr().err
    assert "Exception in thread divider" in printed
    assert "in a finalizer" in printed


def test_handlers_and_level_are_restored_after_a_failure():
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with pytest.raises(KeyError), capture_logging(Captured().add):
        raise KeyError
    assert (list(root.handlers), root.level) == before


def test_warnings_are_captured_with_file_and_line_and_can_be_pickled():
    captured = Captured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        config = LoggingConfig.current()
    with capture_logging(captured.add, config):
        for _ in range(2):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = pickle.loads(pickle.dumps(captured.warnings))
    assert first[1:] == second[1:]
    assert (str(first.message), first.category, first.filename) == ("old", DeprecationWarning, __file__)
    assert first.line > 1


class Awkward(UserWarning):
    """A warning whose constructor requires more than its text."""

    def __init__(self, code, *, lock=None):
        super().__init__(f"code {code}")
        self.code = code
        self.lock = lock


def test_warning_is_kept_as_an_object_with_what_can_be_sent():
    captured = Captured()
    with capture_logging(captured.add, LoggingConfig()):
        warnings.warn(Plain("kept"), stacklevel=1)
        warnings.warn(Awkward(7, lock=threading.Lock()), stacklevel=1)
    kept, replaced = sent(captured.warnings)
    assert (type(kept.message), kept.message.extra) == (Plain, "extra of kept")
    assert (type(replaced.message), str(replaced.message), replaced.category) == (Awkward, "code 7", Awkward)
    assert replaced.message.lock.startswith("<unlocked _thread.lock")


class Plain(UserWarning):
    """A warning with an attribute."""

    def __init__(self, text):
        super().__init__(text)
        self.extra = f"extra of {text}"


def test_warning_filters_and_logger_levels_are_the_callers():
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", "not this", UserWarning)
        warnings.filterwarnings("error", category=RuntimeWarning, module=r"tests\.runtime\.test_output_capture")
        logging.getLogger("loud.for.test_capture").setLevel(logging.DEBUG)
        try:
            config = pickle.loads(pickle.dumps(LoggingConfig.current()))
        finally:
            logging.getLogger("loud.for.test_capture").setLevel(logging.NOTSET)
    filters, captured = list(warnings.filters), Captured()
    with capture_logging(captured.add, config):
        warnings.warn("not this one", UserWarning, stacklevel=1)
        warnings.warn("but this", UserWarning, stacklevel=1)
        with pytest.raises(RuntimeWarning, match="an error here"):
            warnings.warn("an error here", RuntimeWarning, stacklevel=1)
        logging.getLogger("loud.for.test_capture").debug("captured")
        logging.getLogger("other.for.test_capture").debug("not captured")
    assert [str(warning.message) for warning in captured.warnings] == ["but this"]
    assert [record.getMessage() for record in captured.records] == ["captured"]
    assert warnings.filters == filters
    assert logging.getLogger("loud.for.test_capture").level == logging.NOTSET


def test_logging_disabled_in_the_caller_is_disabled_in_the_worker():
    logging.disable(logging.WARNING)
    try:
        config = LoggingConfig.current()
    finally:
        logging.disable(logging.NOTSET)
    captured = Captured()
    with capture_logging(captured.add, config):
        logging.getLogger("some.where").warning("silenced")
        logging.getLogger("some.where").error("captured")
    assert [record.getMessage() for record in captured.records] == ["captured"]
    assert logging.root.manager.disable == logging.NOTSET


def test_filter_for_a_category_that_cannot_be_imported_is_harmless(tmp_path):
    (tmp_path / "only_there.py").write_text("class Odd(Warning): pass")
    program = (
        "import sys, pickle, warnings; from only_there import Odd; "
        "from synapse_runtime.core.log_config import LoggingConfig; warnings.filterwarnings('ignore', category=Odd); "
        "sys.stdout.buffer.write(pickle.dumps(LoggingConfig.current()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=tmp_path, check=True, timeout=patience(30)
    )
    captured = Captured()
    with capture_logging(captured.add, pickle.loads(done.stdout)):
        warnings.warn("captured", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in captured.warnings] == ["captured"]


def test_filter_applies_to_a_category_that_is_imported_later(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("class Odd(Warning): pass\nclass Odder(Odd): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = LoggingConfig(filters=(("error", "", "imported_later", "Odd", "", 0),))
    with capture_logging(Captured().add, config):
        module = importlib.import_module("imported_later")
        for category in (module.Odd, module.Odder):
            with pytest.raises(category, match="an error here"):
                warnings.warn("an error here", category, stacklevel=1)
        warnings.warn("none", UserWarning, stacklevel=1)
    del sys.modules["imported_later"]


def test_logging_config_is_computed_again_only_if_it_has_changed():
    logger = logging.getLogger("changing.for.test_capture")
    before = LoggingConfig.current()
    assert LoggingConfig.current() is before
    assert LoggingConfig.current() is LoggingConfig.current()
    logger.setLevel(logging.DEBUG)
    try:
        assert ("changing.for.test_capture", logging.DEBUG) in LoggingConfig.current().levels
        logger.setLevel(logging.ERROR)
        assert ("changing.for.test_capture", logging.ERROR) in LoggingConfig.current().levels
    finally:
        logger.setLevel(logging.NOTSET)
    assert "changing.for.test_capture" not in dict(LoggingConfig.current().levels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a new one", FutureWarning)
        assert LoggingConfig.current().filters[0] == ("ignore", "a new one", "builtins", "FutureWarning", "", 0)
    assert LoggingConfig.current().filters[:1] != (("ignore", "a new one", "builtins", "FutureWarning", "", 0),)
    assert hasattr(logging.getLogger("synapse_runtime.core.log_config"), "_cache")


def test_replay_prints_logs_and_warns(capsys, caplog):
    caplog.set_level(logging.DEBUG)
    record = logging.makeLogRecord({"name": "a.worker", "levelno": logging.INFO, "levelname": "INFO", "msg": "logged"})
    captured = Captured(
        "out\n", "err\n", [record], [CapturedWarning(UserWarning("careful"), UserWarning, "there.py", 7)]
    )
    with pytest.warns(UserWarning, match="careful") as caught:
        captured.replay()
    assert capsys.readouterr() == ("out\n", "err\n")
    assert caplog.messages == ["logged"]
    assert (caught[0].filename, caught[0].lineno) == ("there.py", 7)


def test_replay_does_not_print_streamed_output_again(capsys, caplog):
    caplog.set_level(logging.DEBUG)
    record = logging.makeLogRecord({"name": "a.worker", "levelno": logging.INFO, "msg": "logged"})
    Captured("out\n", "err\n", [record]).replay(output=False)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["logged"]


def test_record_printed_by_a_handler_in_the_worker_is_not_printed_again():
    logger = logging.getLogger("printing.for.test_capture")
    printer, other = logging.StreamHandler(), logging.Handler()
    seen = []
    other.emit = lambda record: seen.append(record.getMessage())
    printer.emit = lambda record: seen.append("printed again")
    logger.addHandler(printer)
    logger.addHandler(other)
    captured = Captured()
    try:
        with capture_logging(captured.add, LoggingConfig()):
            logger.warning("once")
        assert captured.already_printed == {0}
        seen.clear()
        captured.replay()
    finally:
        logger.removeHandler(printer)
        logger.removeHandler(other)
    assert seen == ["once"]


def test_record_not_printed_in_the_worker_is_printed_in_the_caller():
    logger = logging.getLogger("printing.captured.for.test_capture")
    captured = Captured()
    with capture_logging(captured.add, LoggingConfig()):
        logger.warning("once")
    stream = io.TextIOWrapper(io.BytesIO(), write_through=True)
    printer = logging.StreamHandler(stream)
    logger.addHandler(printer)
    try:
        captured.replay()
    finally:
        logger.removeHandler(printer)
    assert stream.buffer.getvalue() == b"once\n"


def test_replayed_warning_is_not_filtered_again():
    captured = Captured(warnings=[CapturedWarning(UserWarning("already filtered"), UserWarning, "there.py", 7)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        captured.replay()
    assert [str(item.message) for item in caught] == ["already filtered"]


def test_records_of_the_actions_logger_are_always_replayed(caplog):
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
def test_last_lines_returns_the_end_of_an_output(text, count, last):
    assert last_lines(text, count) == last

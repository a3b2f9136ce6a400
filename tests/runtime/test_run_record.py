"""A run as plain JSON: what comes back, in which class, with which traceback; and what a hostile record can do."""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
from _pytest._code import ExceptionInfo

from synapse_runtime.core.execution import ActionRun
from synapse_runtime.core.log_capture import capture_logging
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.errors import (
    ExecutionError,
    ExecutionTimeout,
    PluginError,
    Problem,
    RemoteException,
    ValidationError,
    WorkerCrashed,
)
from synapse_runtime.events import Event
from synapse_runtime.redaction import HiddenValues
from synapse_runtime.run_record import InvalidRecord, RunRecord, decode_event, encode_event, to_json


def sent(run: ActionRun) -> ActionRun:
    """Return the run as it is read from its record as text."""
    return RunRecord.loads(RunRecord.from_run(run).dumps()).to_run()


def failed(error: BaseException) -> Any:
    """Return the error of a run that failed with this one, as it is read from the record."""
    run = ActionRun("train", error=ExecutionError("train failed"))
    assert run.error is not None
    run.error.__cause__ = error
    return sent(run).error


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    def inner(epochs: int, token: str) -> None:
        raise error from cause

    try:
        inner(3, "abc")
    except BaseException as caught:  # noqa: BLE001 - whatever it is
        return caught
    raise AssertionError


def test_successful_run_comes_back():
    events = [
        Event("log", "epoch", {"epoch": 1, "weights": Path("w")}, level="warning", step="train", file="a.py", time=1.5),
        Event("progress", data={"current": 1, "total": 2}, step="train", time=2.0),
        Event("metrics", data={"loss": float("nan")}, step="train", time=2.5),
        Event("message", "done", {"key": "finished"}, time=3.0),
    ]
    run = ActionRun(
        "train",
        result={"shape": (1, 2)},
        events=events,
        is_started=True,
        duration=1.25,
        mode="job",
        job_id="run-1",
        pid=7,
        host="there",
        node="n",
        captured=Captured("out\n", "err \ufffd\n"),
    )
    found = sent(run)
    assert found.result == run.result
    assert repr(found.events) == repr(events)
    for name in (
        "name",
        "is_started",
        "duration",
        "mode",
        "job_id",
        "pid",
        "host",
        "node",
        "error",
        "stdout",
        "stderr",
    ):
        assert getattr(found, name) == getattr(run, name), name
    assert sent(ActionRun("train")).captured is None


@pytest.mark.filterwarnings("always")
def test_log_records_and_warnings_come_back():
    captured = Captured()
    with capture_logging(captured.add):
        logging.getLogger("lib").warning("%d%% done", 50, extra={"epoch": (1, 2)})
        try:
            raise LookupError("no weights")
        except LookupError:
            logging.getLogger("lib").exception("cannot load")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn_explicit("own", type("OwnWarning", (UserWarning,), {}), "there.py", 7)
    found = sent(ActionRun("train", captured=captured))
    first, second = found.records
    assert (first.getMessage(), first.levelname, first.name, first.epoch) == ("50% done", "WARNING", "lib", (1, 2))
    assert (first.lineno, first.pathname, first.funcName) == (
        captured.records[0].lineno,
        __file__,
        "test_log_records_and_warnings_come_back",
    )
    assert first.created == captured.records[0].created
    assert "LookupError: no weights" in logging.Formatter().format(second)
    assert [(each.category, str(each.message), each.filename, each.line) for each in found.warnings] == [
        (DeprecationWarning, "old", __file__, captured.warnings[0].line),
        (UserWarning, "own", "there.py", 7),
    ]


@pytest.mark.parametrize(
    "error",
    [
        LookupError("no weights", 3),
        KeyError("epochs"),
        OSError(2, "No such file", "weights.npz"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        SystemExit(3),
        KeyboardInterrupt(),
        subprocess.CalledProcessError(2, ["nvidia-smi"], b"out"),
        ValueError({"a": (1, {2})}),
    ],
    ids=repr,
)
def test_exceptions_of_the_standard_library_come_back_as_their_own_class(error):
    error.add_note("try again")
    found = failed(raised(error)).__cause__
    assert type(found) is type(error)
    assert (found.args, str(found), found.__notes__) == (error.args, str(error), ["try again"])
    assert getattr(found, "filename", None) == getattr(error, "filename", None)
    assert vars(found) == vars(error)


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def test_other_exceptions_come_back_as_remote_exceptions_of_their_name():
    error = raised(OwnError(7))
    found = failed(error).__cause__
    assert isinstance(found, RemoteException)
    assert (type(found).__qualname__, type(found).__module__) == ("OwnError", __name__)
    assert (str(found), found.code) == ("code 7", 7)
    needs_pickle = failed(raised(ValueError(object()))).__cause__
    assert isinstance(needs_pickle, RemoteException)
    assert type(needs_pickle).__name__ == "ValueError"


def test_exceptions_of_the_plugin_come_back_as_their_own_class():
    run = ActionRun("train", error=ExecutionError("train failed"))
    assert run.error is not None
    run.error.__cause__ = raised(OwnError(7))
    found = RunRecord.loads(RunRecord.from_run(run).dumps()).to_run(str(Path(__file__).parent)).error
    assert type(found.__cause__) is OwnError
    assert found.__cause__.code == 7


@pytest.mark.parametrize(
    "error",
    [
        ExecutionTimeout("too long", details="File x", title="Stack:"),
        WorkerCrashed("killed", "last output"),
        ValidationError("bad params", errors=[{"type": "missing", "loc": ("epochs",), "msg": "required"}]),
        PluginError("plain", {"a": 1}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_this_package_come_back(error):
    found = sent(ActionRun("train", error=error)).error
    assert type(found) is type(error)
    assert (str(found), found.details) == (str(error), error.details)
    assert getattr(found, "__notes__", None) == getattr(error, "__notes__", None)
    if isinstance(error, ValidationError):
        assert found.errors() == error.errors()


def test_problems_of_a_config_file_come_back():
    from synapse_runtime.errors import ConfigError

    error = ConfigError("unknown field", path="config.yaml", line=3)
    found = sent(ActionRun("train", error=error)).error
    assert found.problems == (Problem("unknown field", Path("config.yaml"), 3),)
    assert found.path == Path("config.yaml")


def test_chain_group_and_shared_exceptions_come_back():
    shared = raised(LookupError("shared"))
    one, two = raised(ValueError(1), shared), raised(TypeError(2), shared)
    group = raised(ExceptionGroup("both", [one, ExceptionGroup("inner", [two])]))
    found = failed(group).__cause__
    assert type(found) is ExceptionGroup
    assert (found.message, str(found)) == ("both", "both (2 sub-exceptions)")
    assert type(found.exceptions[1]) is ExceptionGroup
    assert found.exceptions[0].__cause__ is found.exceptions[1].exceptions[0].__cause__
    assert found.exceptions[0].__suppress_context__
    text = "".join(traceback.format_exception(found))
    assert text.count("LookupError: shared") == "".join(traceback.format_exception(group)).count("LookupError: shared")


def test_cycles_and_long_chains_end():
    one, two = ValueError(1), ValueError(2)
    one.__context__, two.__context__ = two, one
    found = failed(one).__cause__
    assert found.__context__.__context__ is None
    error: BaseException = ValueError(0)
    for number in range(1000):
        error = raised(ValueError(number), error)
    depth, found = 0, failed(error)
    while found is not None:
        found, depth = found.__cause__, depth + 1
    assert 90 < depth < 110


def test_traceback_has_frames_arguments_and_source():
    found = failed(raised(OwnError(7))).__cause__
    text = "".join(traceback.format_exception(found))
    assert "raise error from cause" in text
    assert ", in inner" in text
    shown = str(ExceptionInfo.from_exception(found).getrepr(funcargs=True))
    assert "epochs = 3, token = 'abc'" in shown
    assert re.search(r"^> +raise error from cause$", shown, re.MULTILINE)


def test_source_of_files_that_do_not_exist_here_is_shown_too(tmp_path):
    file = tmp_path / "gone.py"
    file.write_text("def fail(epochs):\n    unused = 1\n    raise ValueError('no weights')  # here\n")
    program = f"""\
import sys
from synapse_runtime.core.execution import ActionRun
from synapse_runtime.errors import ExecutionError
from synapse_runtime.run_record import RunRecord
sys.path.insert(0, {str(tmp_path)!r})
import gone
try:
    gone.fail(3)
except ValueError as error:
    run = ActionRun("train", error=ExecutionError("failed"))
    run.error.__cause__ = error
    print(RunRecord.from_run(run).dumps())
"""
    text = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    file.unlink()
    error = RunRecord.loads(text).to_run().error
    assert "raise ValueError('no weights')  # here" in "".join(traceback.format_exception(error))
    shown = str(ExceptionInfo.from_exception(error.__cause__).getrepr())
    assert ">   " in shown
    assert "raise ValueError('no weights')  # here" in shown
    assert f"{file}:3: ValueError" in shown


def test_record_is_plain_json_on_one_ascii_line():
    run = ActionRun("tr\ud800in", result="☃\n\x1e", captured=Captured("☃", ""))
    text = RunRecord.from_run(run).dumps()
    assert text.isascii()
    assert "\n" not in text
    assert "\x1e" not in text
    assert json.loads(text)["format"] == 1
    assert RunRecord.loads(text).to_run().result == "☃\n\x1e"


def test_schema_of_a_record_is_in_the_docs():
    schema = json.loads((Path(__file__).parents[2] / "docs" / "run-record.schema.json").read_text(encoding="utf-8"))
    assert RunRecord.model_json_schema() == schema, "write it again, see docs/run-record.md"
    assert {"format", "result", "error", "events"} <= schema["properties"].keys()
    assert schema["properties"]["format"]["const"] == 1


@pytest.mark.parametrize(
    ("event", "exact"),
    [
        (Event("log", "epoch", {"epoch": 1}), True),
        (Event("log", "epoch", {"path": Path("w")}), False),
        (Event("log", "\ud800", {}), False),
        (Event("log", "epoch", {}, time=float("nan")), False),
        (Event("message", type("Text", (str,), {})("hi")), False),
    ],
)
def test_event_says_whether_its_record_is_exact(event, exact):
    record, is_exact = encode_event(event)
    assert is_exact is exact
    found = decode_event(json.loads(to_json(record)))
    assert (found == event) or not exact


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("[1", "not JSON"),
        ("NaN", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "RunRecord"),
        ("{}", "action: Field required"),
        ('{"format": 2, "action": "x", "status": "failed"}', "format 2"),
        ('{"action": "x", "status": "won"}', "status: "),
        ('{"action": "x", "status": "failed", "error": []}', "error: "),
        ('{"action": "x", "status": "failed", "error": [{"type": 3}]}', "error.0.type: "),
        ('{"action": "x", "status": "failed", "events": [{"kind": "other"}]}', "events.0.kind: "),
    ],
)
def test_invalid_record_is_an_error_that_says_where(text, problem):
    with pytest.raises(InvalidRecord, match=problem.replace(".", r"\.")):
        RunRecord.loads(text)


def hostile(value: Any, chance: random.Random) -> Any:
    """Return a record's data with one part replaced, somewhere."""
    choices: list[Any] = [
        None,
        -1,
        2**40,
        "x" * 1000,
        "\ud800",
        [],
        {},
        [[[[]]]],
        {"$type": "os:system", "value": "true"},
        {"$type": "subprocess:Popen", "fields": {"args": ["true"]}},
        {"$type": "builtins:eval", "value": "1"},
        {"$type": f"{__name__}:Trap", "fields": {}},
        {"$dict": [[[], []]]},
        "Trap",
        __name__,
    ]
    if chance.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return chance.choice(choices)
    changed = copy.copy(value)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed[key] = hostile(value[key], chance)
    return changed


class Trap(Exception):
    """An exception that must not be created, or asked for anything, when a record is read."""

    def __init__(self, *args: object) -> None:
        raise AssertionError("its code ran")

    __new__ = __setattr__ = __init__  # type: ignore[assignment]


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("seed", range(30))
def test_hostile_records_are_refused_or_read_without_running_code(seed, monkeypatch):
    import os

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("its code ran")

    for module, name in ((os, "system"), (subprocess, "Popen"), (os, "fork")):
        monkeypatch.setattr(module, name, refuse)
    captured = Captured()
    with capture_logging(captured.add):
        logging.getLogger("lib").warning("half", extra={"epoch": (1, 2)})
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    run = ActionRun("train", error=ExecutionError("train failed", "details"), captured=captured)
    run.events.append(Event("log", "epoch", {"path": Path("w")}))
    run.error.__cause__ = raised(ExceptionGroup("both", [raised(OSError(2, "no", "w")), ValueError((1,))]))
    good = json.loads(RunRecord.from_run(run).dumps())
    before = set(sys.modules)
    chance = random.Random(seed)
    for _ in range(100):
        data = good
        for _ in range(chance.randrange(1, 4)):
            data = hostile(data, chance)
        try:
            found = RunRecord.loads(json.dumps(data)).to_run()
        except InvalidRecord:
            continue
        assert isinstance(found.error, PluginError) or found.error is None
        "".join(traceback.format_exception(found.error)) if found.error else None
        for record in found.records:
            logging.Formatter().format(record)
    assert set(sys.modules) == before


def test_secrets_are_redacted_in_all_texts_but_the_result():
    secret, param, shown = "of-the-token-1", "of-the-param-2", "production"
    captured = Captured(f"out {secret}", f"err {param}")
    with capture_logging(captured.add):
        logging.getLogger("lib").warning("as %s", secret, extra={"given": {"key": param}})
    error = ExecutionError(f"no login with {secret}")
    error.__cause__ = raised(ValueError(param, [shown]))
    error.add_note(f"given {param}")
    run = ActionRun("login", result={"token": secret}, error=error, captured=captured)
    run.events.append(Event("log", "tried", {"with": secret}))
    hidden = HiddenValues({"STAGE": shown}, secrets=[("API_TOKEN", secret), ("api_key", param)])
    text = RunRecord.from_run(run).redacted(hidden.of_secrets()).dumps()
    assert secret not in text
    assert param not in text
    found = RunRecord.loads(text).to_run()
    assert str(found.error) == "no login with <API_TOKEN>"
    assert found.error.__cause__.args == ("<api_key>", [shown])
    assert (found.stdout, found.events[0].data) == ("out <API_TOKEN>", {"with": "<API_TOKEN>"})
    succeeded = ActionRun("login", result={"token": secret})
    assert RunRecord.from_run(succeeded).redacted(hidden).to_run().result == {"token": secret}

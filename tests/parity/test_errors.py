"""Rows 4 to 6: exceptions and exits of an action."""

import os
import socket
import sys
import threading
import traceback
from pathlib import Path

import pytest
from lab import errors
from lab.portrait import portrait_of_error

from synapse_runtime.action import BaseAction
from synapse_runtime.errors import ExecutionError, RemoteException
from tests.parity.modes import as_a_job, everywhere, not_as_jobs, on_this_machine

pytestmark = everywhere

SOURCE = Path(errors.__file__).read_text().splitlines()


def failure_of(executor, action, params=None) -> ExecutionError:
    run = executor.run(action, params)
    assert type(run.error) is ExecutionError, repr(run.error)
    assert run.result is None
    return run.error


def cause_of(executor, action, params=None) -> BaseException:
    return failure_of(executor, action, params).__cause__


# Row 4: exceptions, their chain and their frames


def line(text: str) -> int:
    """Return the number of the line in `lab/errors.py` with this text."""
    (number,) = [number for number, line in enumerate(SOURCE, 1) if line.strip() == text]
    return number


def at(function: str, text: str) -> tuple:
    return errors.__file__, function, line(text), text


def shown(error: BaseException) -> list[tuple]:
    """Return the frames that Python shows for an error, starting with the action's first one."""
    frames = [(f.filename, f.name, f.lineno, f.line) for f in traceback.extract_tb(error.__traceback__)]
    first = next(index for index, frame in enumerate(frames) if frame[0] == errors.__file__)
    return frames[first:]


class RaiseMedley(BaseAction):
    """Raises a group of what other actions raise."""

    def execute(self):
        raised = []
        for other in (errors.FailFromCause, errors.FailDeeply, errors.RaiseAll, RaiseOwn):
            try:
                other.execute(self)
            except BaseException as error:  # noqa: BLE001 - of any kind
                raised.append(error)
        raise BaseExceptionGroup("medley", raised)

    deeper = errors.FailDeeply.deeper


@pytest.fixture(scope="module")
def medley(job_executor):
    """What these actions have raised, in a job."""
    return cause_of(job_executor(), RaiseMedley, {"but": BREAKING}).exceptions


@not_as_jobs
def test_04_type_arguments_attributes_and_notes_are_preserved(synapse_executor):
    error = failure_of(synapse_executor, errors.FailFromCause)
    assert str(error) == "fail_from_cause failed: Broken: ('outer', 7)"
    check_chain(error.__cause__)


def test_04_type_arguments_attributes_and_notes_from_a_job_are_preserved(medley):
    check_chain(medley[0])


def check_chain(cause):
    assert type(cause) is errors.Broken
    assert cause.args == ("outer", 7)
    assert cause.code == 7
    assert cause.__notes__ == ["first", "second ☃\nin two lines"]
    assert type(cause.__cause__) is KeyError
    assert cause.__cause__.args == ("missing",)
    assert cause.__context__ is cause.__cause__
    assert cause.__suppress_context__
    assert shown(cause) == [at("execute", "raise problem from error")]
    assert shown(cause.__cause__) == [at("execute", 'look_up({}, "missing")'), at("look_up", "return table[key]")]


@not_as_jobs
def test_04_exception_being_handled_is_preserved_as_context(synapse_executor):
    cause = cause_of(synapse_executor, errors.FailWhileHandling)
    assert type(cause) is errors.Broken
    assert cause.__cause__ is None
    assert not cause.__suppress_context__
    assert type(cause.__context__) is ValueError
    assert cause.__context__.args == ("the first",)
    assert shown(cause) == [at("execute", "self.second()"), at("second", 'raise Broken("the second", 2)')]
    assert shown(cause.__context__) == [at("execute", "self.first()"), at("first", 'raise ValueError("the first")')]


@not_as_jobs
def test_04_suppressed_context_stays_suppressed(synapse_executor):
    cause = cause_of(synapse_executor, errors.FailFromNone)
    assert cause.__cause__ is None
    assert cause.__suppress_context__
    assert type(cause.__context__) is ValueError
    assert "invalid literal" not in "".join(traceback.format_exception(cause))


@not_as_jobs
def test_04_cause_and_context_can_share_an_earlier_exception(synapse_executor):
    cause = cause_of(synapse_executor, errors.FailWithTwoBranches)
    assert type(cause.__cause__) is OSError
    assert type(cause.__cause__.__context__) is KeyError
    assert type(cause.__context__) is KeyError
    assert cause.__cause__.__context__ is cause.__context__


@not_as_jobs
def test_04_traceback_shows_the_frames_of_the_action_and_of_everything_it_calls(synapse_executor):
    check_frames(cause_of(synapse_executor, errors.FailDeeply))


def test_04_traceback_from_a_job_shows_the_frames_of_the_action_and_of_everything_it_calls(medley):
    check_frames(medley[1])


def check_frames(cause):
    again = at("deeper", "return self.deeper(depth - 1)")
    parse = 'assert all(json.loads(text) for text in ("1", "[broken"))'
    frames = shown(cause)
    assert frames[:6] == [
        at("execute", "self.deeper(3)"),
        again,
        again,
        again,
        at("deeper", parse),
        at("<genexpr>", parse),
    ]
    assert [(Path(file).parent.name, name) for file, name, *_ in frames[6:]] == [
        ("json", "loads"),
        ("json", "decode"),
        ("json", "raw_decode"),
    ]
    assert all(text for *_, text in frames)


OTHER_FORMS = {
    "in init": (errors.FailInInit, [at("__init__", 'raise Broken("in init", 4)')]),
    "function": (errors.fail_function, [at("fail_function", 'raise Broken("in a function", part["a"]["b"]["c"])')]),
    "async": (
        errors.FailAsync,
        [at("execute", "await asyncio.gather(self.inner())"), at("inner", 'raise Broken("in a task", 5)')],
    ),
}


@not_as_jobs
@pytest.mark.parametrize("name", OTHER_FORMS, ids=lambda name: name.replace(" ", "_"))
def test_04_traceback_shows_the_frames_of_every_form_of_action(synapse_executor, name):
    action, frames = OTHER_FORMS[name]
    assert shown(cause_of(synapse_executor, action)) == frames


@not_as_jobs
def test_04_traceback_shows_the_frames_of_an_action_defined_in_the_test(synapse_executor):
    class Here(BaseAction):
        def execute(self):
            raise ValueError("here")  # this line

    frame = traceback.extract_tb(cause_of(synapse_executor, Here).__traceback__)[-1]
    number = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# this line" in text)
    assert (frame.filename, frame.name, frame.lineno) == (__file__, "execute", number)
    assert frame.line == 'raise ValueError("here")  # this line'


@not_as_jobs
def test_04_pytest_report_shows_the_actions_own_lines(synapse_executor):
    with pytest.raises(ExecutionError) as caught:
        synapse_executor.execute(errors.FailFromCause)
    chain = caught.getrepr(style="long", chain=True).chain
    entries = {
        entry.reprfileloc.lineno: "\n".join(entry.lines)
        for report, _, _ in chain
        for entry in report.reprentries
        if entry.reprfileloc and Path(entry.reprfileloc.path).resolve() == Path(errors.__file__)
    }
    assert list(entries) == [
        line('look_up({}, "missing")'),
        line("return table[key]"),
        line("raise problem from error"),
    ]
    lookup, table, last = entries.values()
    assert "    def execute(self) -> None:" in lookup
    assert '>           look_up({}, "missing")' in lookup
    assert "    def look_up(table: dict[str, int], key: str) -> int:\n>       return table[key]" in table
    assert "E       KeyError: 'missing'" in table
    assert ">           raise problem from error" in last
    assert "E           lab.errors.Broken: ('outer', 7)" in last
    assert "E           first" in last


@not_as_jobs
def test_04_traceback_marks_the_failing_part_of_the_line(synapse_executor):
    text = "".join(traceback.format_tb(cause_of(synapse_executor, errors.fail_function).__traceback__))
    marked = 'raise Broken("in a function", part["a"]["b"]["c"])'
    assert f"    {marked}\n" + " " * 34 + "~~~~~~~~~~~~~~^^^^^\n" in text


# Row 5: awkward exceptions


def same(error: BaseException, name: str) -> bool:
    return portrait_of_error(error) == portrait_of_error(errors.ERRORS[name]())


def text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # noqa: BLE001 - whatever an author's __str__ raises
        return f"<str() failed: {type(problem).__name__}>"


@not_as_jobs
@pytest.mark.parametrize("name", errors.ERRORS, ids=lambda name: name.replace(" ", "_"))
def test_05_awkward_exception_arrives_unchanged(synapse_executor, synapse_mode, name):
    expected = errors.ERRORS[name]()
    error = failure_of(synapse_executor, errors.Raise, {"name": name})
    assert str(error) == f"raise failed: {type(expected).__name__}: {text_of(expected)}"
    if synapse_mode == "remote" and name in OF_INSTALLED_PACKAGES:
        assert isinstance(error.__cause__, RemoteException)
        assert (type(error.__cause__).__name__, str(error.__cause__)) == (type(expected).__name__, str(expected))
        return
    assert portrait_of_error(error.__cause__) == portrait_of_error(expected)
    assert shown(error.__cause__) == [at("execute", 'raise ERRORS[self.params["name"]]()')]


# A group that contains one of these may not arrive at all, so they are tested alone.
# Classes that what comes from a backend is not rebuilt as.
OF_INSTALLED_PACKAGES = ["pydantic's"]
BREAKING = ["frozen dataclass", "read-only attributes", "reduce that exits", "reduce to exit"]


@not_as_jobs
def test_05_all_awkward_exceptions_arrive_in_one_group(synapse_executor, synapse_mode):
    but = [*BREAKING, *(OF_INSTALLED_PACKAGES if synapse_mode == "remote" else [])]
    check_group(cause_of(synapse_executor, errors.RaiseAll, {"but": but}), but)


def test_05_all_awkward_exceptions_arrive_from_a_job(medley):
    check_group(medley[2])


def check_group(cause, but=tuple(BREAKING)):
    names = [name for name in errors.ERRORS if name not in but]
    assert type(cause) is BaseExceptionGroup
    assert len(cause.exceptions) == len(names)
    assert [name for name, error in zip(names, cause.exceptions, strict=True) if not same(error, name)] == []
    assert all(shown(error) == [at("raised", "raise error")] for error in cause.exceptions)


@as_a_job
@pytest.mark.parametrize("name", ["reduce to exit"])
def test_05_exception_that_breaks_its_handlers_arrives(synapse_executor, name):
    assert same(cause_of(synapse_executor, errors.Raise, {"name": name}), name)


@on_this_machine
def test_05_attribute_that_cannot_be_pickled_does_not_affect_the_others(synapse_executor, synapse_mode):
    error = cause_of(synapse_executor, errors.RaiseWithUnpicklableParts)
    assert type(error) is ValueError
    assert error.code == 7
    assert error.scale(3) == 6
    assert (error.args[0], error.args[2]) == ("text", 3)
    stuck = (error.args[1], error.lock, error.socket, error.generator, error.inner)
    if synapse_mode == "local":
        lock = type(threading.Lock())
        assert [type(part).__name__ for part in stuck] == [lock.__name__, lock.__name__, "socket", "generator", "dict"]
        assert type(error.socket) is socket.socket
    else:
        words = [
            "<unlocked _thread.lock",
            "<unlocked _thread.lock",
            "<socket.socket",
            "<generator",
            "{'lock': <unlocked",
        ]
        assert [part[: len(word)] for part, word in zip(stuck, words, strict=True)] == words


class Bare(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Second(Exception):
    def __init__(self, one, two) -> None:
        super().__init__(one)
        self.two = two


class RaiseOwn(BaseAction):
    def execute(self):
        raise Bare(code=3) from Second(1, 2)


@not_as_jobs
def test_05_exception_classes_of_the_test_are_preserved(synapse_executor):
    class Inner(Exception):
        def __init__(self, one, two):
            super().__init__(one)
            self.two = two

    class Fail(BaseAction):
        def execute(self):
            raise Bare(code=3) from Inner(1, 2)

    check_own_classes(cause_of(synapse_executor, Fail), Inner)


def test_05_exception_classes_of_the_test_are_preserved_by_a_job(medley):
    check_own_classes(medley[3], Second)


def check_own_classes(cause, inner):
    assert type(cause) is Bare
    assert (cause.args, cause.code) == (("code 3",), 3)
    assert type(cause.__cause__) is inner
    assert (cause.__cause__.args, cause.__cause__.two) == ((1,), 2)


@not_as_jobs
def test_05_exception_class_unknown_to_the_test_arrives_under_its_name(synapse_executor):
    cause = cause_of(synapse_executor, errors.RaiseHidden)
    assert type(cause).__qualname__ == "RaiseHidden.execute.<locals>.Hidden"
    assert type(cause).__module__ == "lab.errors"
    assert isinstance(cause, Exception)
    assert (cause.args, cause.code) == (("hidden 4",), 4)


@not_as_jobs
def test_05_circular_cause_is_shown_once(synapse_executor):
    cause = cause_of(synapse_executor, errors.RaiseCycle)
    assert (type(cause), cause.args) == (ValueError, ("first",))
    assert (type(cause.__cause__), cause.__cause__.args) == (KeyError, ("second",))
    text = "".join(traceback.format_exception(cause))
    assert (text.count("ValueError: first"), text.count("KeyError: 'second'")) == (1, 1)


@not_as_jobs
def test_05_members_of_a_group_can_share_their_context(synapse_executor):
    cause = cause_of(synapse_executor, errors.RaiseSharedContext)
    assert [member.args for member in cause.exceptions] == [(0,), (1,), (2,)]
    assert [type(member.__context__) for member in cause.exceptions] == [KeyError, KeyError, KeyError]


@not_as_jobs
def test_05_infinite_recursion_is_reported_as_a_recursion_error(synapse_executor):
    cause = cause_of(synapse_executor, errors.RaiseWithoutEnd)
    assert type(cause) is RecursionError
    assert "maximum recursion depth exceeded" in str(cause)
    assert shown(cause)[:100] == [at("execute", "self.execute()")] * 100
    assert len(shown(cause)) > sys.getrecursionlimit() // 2


# Row 6: exits

EXITS = {
    "number": (3, "leave called sys.exit(3)"),
    "text": ("text", "leave called sys.exit('text')"),
    "nothing": (None, "leave called sys.exit(None)"),
    "bare": (None, "leave called sys.exit(None)"),
}


@not_as_jobs
@pytest.mark.parametrize("how", EXITS)
def test_06_exit_raises_an_error_that_names_it(synapse_executor, how):
    code, text = EXITS[how]
    run = synapse_executor.run(errors.Leave, {"how": how})
    assert type(run.error) is ExecutionError
    assert str(run.error) == text
    assert type(run.error.__cause__) is SystemExit
    assert run.error.__cause__.code == code
    assert [event.name for event in run.events] == ["leaving"]


def test_06_exit_of_an_async_action_raises_an_error_that_names_it(synapse_executor):
    error = failure_of(synapse_executor, errors.LeaveAsync)
    assert str(error) == "leave_async called sys.exit(4)"
    assert type(error.__cause__) is SystemExit
    assert error.__cause__.code == 4


@not_as_jobs
def test_06_next_call_works_after_an_exit(synapse_executor, synapse_mode):
    first = synapse_executor.run(errors.Leave, {"how": "number"})
    assert str(first.error) == "leave called sys.exit(3)"
    second = synapse_executor.run("echo", {"value": 1})
    assert second.result == 1
    if synapse_mode == "task":
        assert second.pid == first.pid
    if synapse_mode == "local":
        assert second.pid == os.getpid()


@not_as_jobs
def test_06_pytest_reports_an_exit_as_a_failure(synapse_executor):
    with pytest.raises(ExecutionError, match=r"leave called sys\.exit\(3\)"):
        synapse_executor.execute(errors.Leave, {"how": "number"})

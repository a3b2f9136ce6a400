"""Exceptions further: what their authors do to them, long chains, groups of their own kind, and every frame."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime import transport
from synapse_runtime.tracing import frames_of, pack, unpack


def through(error: BaseException) -> BaseException:
    """Send an exception to another process and back, as far as its bytes can tell."""
    return unpack(transport.loads_at_home(transport.dumps(pack(error))))


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - of any kind
        return caught


class KeywordOnly(Exception):
    """Neither `__new__` nor `__init__` can be called with `args`."""

    def __new__(cls, *, code: int) -> KeywordOnly:
        return super().__new__(cls)

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ReadOnlyArgs(Exception):
    @property
    def args(self) -> tuple[str, ...]:
        return ("always this",)


class OwnReduce(Exception):
    """Knows how to pickle itself, and forgets what others have added."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} ({code})")
        self.text, self.code = text, code

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnReduce, (self.text, self.code)


class FailsToRead(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.extra = "kept"

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("cannot be read")


class Errors(ExceptionGroup):
    """A group as Python's documentation writes one: with arguments of its own."""

    def __new__(cls, errors: list[Exception], exit_code: int) -> Errors:
        self = super().__new__(Errors, f"exit code: {exit_code}", errors)
        self.exit_code = exit_code
        return self

    def derive(self, excs: Any) -> Errors:
        return Errors(excs, self.exit_code)


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())
        self.lock = threading.Lock()
        self.code = 7

    def __str__(self) -> str:
        return str(self.args[0])


class DeepOSError(OSError):
    def __init__(self, lock: Any) -> None:
        super().__init__(2, "No such file")
        self.lock = lock


class Unprintable:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [KeywordOnly(code=3), ReadOnlyArgs("x"), OwnReduce("broken", 3), FailsToRead("x", 1)],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_author_did_class_text_args_and_attributes_come_back(error):
    copy = through(raised(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    "error", [KeywordOnly(code=3), OwnReduce("broken", 3), ValueError("x"), Errors([ValueError()], 1)]
)
def test_notes_come_back_whatever_the_class(error):
    error.add_note("first")
    error.add_note("second ☃")
    assert through(error).__notes__ == ["first", "second ☃"]


def test_a_lock_among_the_arguments_becomes_text_and_the_rest_stays():
    copy = through(raised(HoldsALock("held")))
    assert type(copy) is HoldsALock
    assert copy.args[0] == "held"
    assert copy.args[1].startswith("<unlocked _thread.lock")
    assert copy.lock.startswith("<unlocked _thread.lock")
    assert copy.code == 7
    assert str(copy) == "held"


def test_what_has_not_even_a_text_is_told_by_its_type():
    error = ValueError("x")
    error.thing = Unprintable()
    assert through(error).thing == "<Unprintable>"


def test_an_os_error_that_holds_a_lock_keeps_its_number():
    copy = through(raised(DeepOSError(threading.Lock())))
    assert type(copy) is DeepOSError
    assert copy.errno == 2
    assert str(copy) == "[Errno 2] No such file"


def test_a_class_that_is_defined_in_a_function_comes_back_as_itself():
    class Local(Exception):
        pass

    copy = through(raised(Local("x")))
    assert type(copy) is Local
    assert copy.args == ("x",)


def test_a_pydantic_error_keeps_its_problems_its_text_and_its_notes():
    class Params(BaseModel):
        epochs: int
        rate: float

    with pytest.raises(PydanticValidationError) as caught:
        Params(epochs="many")
    caught.value.add_note("while reading params")
    copy = through(through(caught.value))
    assert type(copy) is PydanticValidationError
    assert copy.errors() == caught.value.errors()
    assert str(copy) == str(caught.value)
    assert copy.args == caught.value.args
    assert copy.__notes__ == ["while reading params"]


def test_a_class_of_another_process_is_stood_in_for_by_one_of_its_name(tmp_path):
    code = """
    import sys
    from pathlib import Path
    from synapse_runtime import tracing, transport
    sys.path.insert(0, sys.argv[1])
    from only_there import Strange
    try:
        raise Strange("lost", 3)
    except Strange as error:
        Path(sys.argv[1], "packed").write_bytes(transport.dumps(tracing.pack(error)))
    """
    (tmp_path / "only_there.py").write_text("class Strange(Exception):\n    pass\n")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
    error = unpack(transport.loads_at_home((tmp_path / "packed").read_bytes()))
    assert isinstance(error, Exception)
    assert (type(error).__name__, type(error).__module__) == ("Strange", "only_there")
    assert error.args == ("lost", 3)
    assert "only_there.Strange: ('lost', 3)" in "".join(traceback.format_exception(error))


def test_a_cause_that_is_the_context_too_stays_both():
    def fail() -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = through(caught.value)
    assert copy.__context__ is copy.__cause__
    assert type(copy.__cause__) is KeyError


def test_cause_and_context_may_differ_and_each_keeps_its_own_frames():
    cause = raised(OSError("the cause"))

    def fail() -> None:
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer") from cause

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = through(caught.value)
    assert type(copy.__cause__) is OSError
    assert type(copy.__context__) is KeyError
    assert "".join(traceback.format_exception(copy.__context__)).count('{}["missing"]') == 1


def test_a_suppressed_context_stays_suppressed():
    def fail() -> None:
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer") from None

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = through(caught.value)
    assert copy.__cause__ is None
    assert copy.__suppress_context__
    assert "KeyError" not in "".join(traceback.format_exception(copy))


def chain(error: BaseException) -> list[BaseException]:
    links = [error]
    while links[-1].__context__ is not None:
        links.append(links[-1].__context__)
    return links


@pytest.mark.parametrize("length", [1, 10, 90])
def test_a_chain_comes_back_whole(length):
    errors = [ValueError(number) for number in range(length)]
    for error, context in itertools.pairwise(errors):
        error.__context__ = context
    assert [error.args for error in chain(through(errors[0]))] == [(number,) for number in range(length)]


def test_a_chain_of_any_length_comes_back_at_least_in_its_nearer_part():
    errors = [ValueError(number) for number in range(3000)]
    for error, context in itertools.pairwise(errors):
        error.__context__ = context
    links = chain(through(errors[0]))
    assert [error.args for error in links[:50]] == [(number,) for number in range(50)]


@pytest.mark.parametrize("kind", ["cause", "context"])
def test_a_chain_that_bites_its_tail_comes_to_an_end(kind):
    error = ValueError("tail")
    other = KeyError("head")
    setattr(error, f"__{kind}__", other)
    setattr(other, f"__{kind}__", error)
    copy = through(error)
    assert type(getattr(copy, f"__{kind}__")) is KeyError


def test_a_group_of_a_kind_of_its_own_keeps_kind_message_members_and_attributes():
    group = Errors([ValueError(1), HoldsALock("held")], 3)
    copy = through(raised(group))
    assert type(copy) is Errors
    assert copy.message == "exit code: 3"
    assert str(copy) == "exit code: 3 (2 sub-exceptions)"
    assert [type(member) for member in copy.exceptions] == [ValueError, HoldsALock]
    assert copy.exit_code == 3


def test_each_member_of_a_group_has_its_own_frames_cause_and_notes():
    member = raised(ValueError("member"))
    member.__cause__ = KeyError("why")
    member.add_note("noted")
    (copy,) = through(ExceptionGroup("all", [member])).exceptions
    assert copy.__notes__ == ["noted"]
    assert type(copy.__cause__) is KeyError
    assert copy.__traceback__.tb_frame.f_code.co_name == "raised"


def test_a_group_of_what_is_no_plain_exception_comes_back():
    copy = through(BaseExceptionGroup("all", [KeyboardInterrupt(), ValueError("x")]))
    assert type(copy) is BaseExceptionGroup
    assert [type(member) for member in copy.exceptions] == [KeyboardInterrupt, ValueError]


def three(depth: int) -> None:
    if depth:
        three(depth - 1)
    marker = "a line of source"
    raise RuntimeError(marker)


class Method:
    def call(self) -> None:
        three(2)


def test_frames_show_the_same_lines_as_the_original_did():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    original = caught.value.with_traceback(caught.value.__traceback__)

    def shown(error: BaseException) -> list[tuple[Any, ...]]:
        summary = traceback.extract_tb(error.__traceback__)
        return [(frame.filename, frame.lineno, frame.name, frame.line) for frame in summary]

    copy = through(original)
    assert shown(copy) == shown(original)
    assert shown(copy)[-1][3] == "raise RuntimeError(marker)"
    text = "".join(traceback.format_exception(copy))
    assert text.count("three(depth - 1)") == 2
    assert text.endswith("RuntimeError: a line of source\n")


def test_each_frame_knows_its_functions_name_first_line_and_module():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    copy = through(caught.value)
    codes, tb = [], copy.__traceback__
    while tb is not None:
        codes.append((tb.tb_frame.f_code, tb.tb_frame.f_globals["__name__"]))
        tb = tb.tb_next
    assert [(code.co_qualname, code.co_firstlineno, module) for code, module in codes[1:3]] == [
        ("Method.call", Method.call.__code__.co_firstlineno, __name__),
        ("three", three.__code__.co_firstlineno, __name__),
    ]


def test_frames_survive_a_second_trip():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    once = through(caught.value)
    assert frames_of(through(once).__traceback__) == frames_of(once.__traceback__)


def test_pytest_shows_the_function_of_a_frame_that_came_back_and_hides_what_asks_for_it():
    def hidden() -> None:
        __tracebackhide__ = True
        three(0)

    with pytest.raises(RuntimeError) as caught:
        hidden()
    copy = through(caught.value)
    info = pytest.ExceptionInfo.from_exception(copy)
    entry = info.traceback[-1]
    assert entry.frame.code.name == "three"
    assert str(entry.getsource()).startswith("def three(depth: int) -> None:")
    by_name = {each.frame.code.name: each for each in info.traceback}
    assert by_name["hidden"].ishidden(info)
    assert not by_name["three"].ishidden(info)


def test_a_recursion_without_end_comes_back_with_all_its_frames():
    def endless(number: int) -> None:
        endless(number + 1)

    with pytest.raises(RecursionError) as caught:
        endless(0)
    copy = through(caught.value)
    assert len(frames_of(copy.__traceback__)) == len(frames_of(caught.value.__traceback__))
    assert "times]" in "".join(traceback.format_exception(copy))


def test_an_exception_that_was_never_raised_has_no_frames():
    assert through(ValueError("x")).__traceback__ is None


def test_what_travels_is_plain_enough_for_pickle_alone():
    packed = pack(raised(HoldsALock("held")))
    assert pickle.loads(pickle.dumps(packed)) == packed

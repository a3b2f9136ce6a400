"""Tests for sending awkward exceptions: custom constructors and pickling, long chains, custom groups, all frames."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime import serialization
from synapse_runtime.core.remote_exceptions import decode_exception, encode_exception, frames_of


def round_trip(error: BaseException) -> BaseException:
    """Encode and decode an exception, as if it was sent to another process."""
    return decode_exception(serialization.loads_in_caller(serialization.dumps(encode_exception(error))))


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any exception
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
    """Has its own `__reduce__`, which drops attributes that were added."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} ({code})")
        self.text, self.code = text, code

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnReduce, (self.text, self.code)


class LosesItsText(Exception):
    """Is pickled without the object that its text begins with."""

    def __init__(self, source: object, text: str) -> None:
        super().__init__(f"{source}: {text}")

    def __reduce__(self) -> tuple[Any, ...]:
        return LosesItsText, (None, "gone")


class FailsToRead(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.extra = "kept"

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("cannot be read")


class Errors(ExceptionGroup):
    """A group with its own arguments, as in Python's documentation."""

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
def test_awkward_exception_keeps_class_text_args_and_attributes(error):
    copy = round_trip(raised(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    "error", [KeywordOnly(code=3), OwnReduce("broken", 3), ValueError("x"), Errors([ValueError()], 1)]
)
def test_notes_are_kept_for_any_class(error):
    error.add_note("first")
    error.add_note("second ☃")
    assert round_trip(error).__notes__ == ["first", "second ☃"]


def test_lock_in_args_becomes_text_and_the_rest_is_kept():
    copy = round_trip(raised(HoldsALock("held")))
    assert type(copy) is HoldsALock
    assert copy.args[0] == "held"
    assert copy.args[1].startswith("<unlocked _thread.lock")
    assert copy.lock.startswith("<unlocked _thread.lock")
    assert copy.code == 7
    assert str(copy) == "held"


def test_exception_in_args_keeps_its_text_and_is_the_one_in_the_chain():
    reason = raised(LosesItsText("the pool", "refused"))
    error = ConnectionError(reason)
    error.__context__ = reason
    copy = round_trip(error)
    assert str(copy) == str(error) == "the pool: refused"
    assert copy.args[0] is copy.__context__
    assert type(copy.args[0]) is LosesItsText
    assert [entry.name for entry in traceback.extract_tb(copy.args[0].__traceback__)] == ["raised"]


def test_exception_in_its_own_args_ends():
    error = ValueError("x")
    error.args = (error, "x")
    assert round_trip(error).args[1] == "x"


def test_exception_whose_str_fails_shows_its_type():
    error = ValueError("x")
    error.thing = Unprintable()
    assert round_trip(error).thing == "<Unprintable>"


def test_os_error_that_holds_a_lock_keeps_its_errno():
    copy = round_trip(raised(DeepOSError(threading.Lock())))
    assert type(copy) is DeepOSError
    assert copy.errno == 2
    assert str(copy) == "[Errno 2] No such file"


def test_class_defined_in_a_function_is_the_same_class():
    class Local(Exception):
        pass

    copy = round_trip(raised(Local("x")))
    assert type(copy) is Local
    assert copy.args == ("x",)


def test_pydantic_error_keeps_errors_text_and_notes():
    class Params(BaseModel):
        epochs: int
        rate: float

    with pytest.raises(PydanticValidationError) as caught:
        Params(epochs="many")
    caught.value.add_note("while reading params")
    copy = round_trip(round_trip(caught.value))
    assert type(copy) is PydanticValidationError
    assert copy.errors() == caught.value.errors()
    assert str(copy) == str(caught.value)
    assert copy.args == caught.value.args
    assert copy.__notes__ == ["while reading params"]


def test_class_of_another_process_is_replaced_by_one_of_its_name(tmp_path):
    code = """
    import sys
    from pathlib import Path
    from synapse_runtime.core import remote_exceptions
    from synapse_runtime import serialization
    sys.path.insert(0, sys.argv[1])
    from only_there import Strange
    try:
        raise Strange("lost", 3)
    except Strange as error:
        Path(sys.argv[1], "packed").write_bytes(serialization.dumps(remote_exceptions.encode_exception(error)))
    """
    (tmp_path / "only_there.py").write_text("class Strange(Exception):\n    pass\n")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
    error = decode_exception(serialization.loads_in_caller((tmp_path / "packed").read_bytes()))
    assert isinstance(error, Exception)
    assert (type(error).__name__, type(error).__module__) == ("Strange", "only_there")
    assert error.args == ("lost", 3)
    assert "only_there.Strange: ('lost', 3)" in "".join(traceback.format_exception(error))


def test_cause_that_is_also_the_context_stays_both():
    def fail() -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = round_trip(caught.value)
    assert copy.__context__ is copy.__cause__
    assert type(copy.__cause__) is KeyError


def test_cause_and_context_may_differ_and_each_keeps_its_frames():
    cause = raised(OSError("the cause"))

    def fail() -> None:
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer") from cause

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = round_trip(caught.value)
    assert type(copy.__cause__) is OSError
    assert type(copy.__context__) is KeyError
    assert "".join(traceback.format_exception(copy.__context__)).count('{}["missing"]') == 1


def test_suppressed_context_stays_suppressed():
    def fail() -> None:
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("outer") from None

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    copy = round_trip(caught.value)
    assert copy.__cause__ is None
    assert copy.__suppress_context__
    assert "KeyError" not in "".join(traceback.format_exception(copy))


def chain(error: BaseException) -> list[BaseException]:
    links = [error]
    while links[-1].__context__ is not None:
        links.append(links[-1].__context__)
    return links


@pytest.mark.parametrize("length", [1, 10, 90])
def test_chain_is_kept_completely(length):
    errors = [ValueError(number) for number in range(length)]
    for error, context in itertools.pairwise(errors):
        error.__context__ = context
    assert [error.args for error in chain(round_trip(errors[0]))] == [(number,) for number in range(length)]


def test_very_long_chain_is_truncated():
    errors = [ValueError(number) for number in range(3000)]
    for error, context in itertools.pairwise(errors):
        error.__context__ = context
    links = chain(round_trip(errors[0]))
    assert [error.args for error in links[:50]] == [(number,) for number in range(50)]


@pytest.mark.parametrize("kind", ["cause", "context"])
def test_circular_chain_ends(kind):
    error = ValueError("tail")
    other = KeyError("head")
    setattr(error, f"__{kind}__", other)
    setattr(other, f"__{kind}__", error)
    copy = round_trip(error)
    assert type(getattr(copy, f"__{kind}__")) is KeyError


def test_custom_group_keeps_class_message_members_and_attributes():
    group = Errors([ValueError(1), HoldsALock("held")], 3)
    copy = round_trip(raised(group))
    assert type(copy) is Errors
    assert copy.message == "exit code: 3"
    assert str(copy) == "exit code: 3 (2 sub-exceptions)"
    assert [type(member) for member in copy.exceptions] == [ValueError, HoldsALock]
    assert copy.exit_code == 3


def test_each_member_of_a_group_keeps_frames_cause_and_notes():
    member = raised(ValueError("member"))
    member.__cause__ = KeyError("why")
    member.add_note("noted")
    (copy,) = round_trip(ExceptionGroup("all", [member])).exceptions
    assert copy.__notes__ == ["noted"]
    assert type(copy.__cause__) is KeyError
    assert copy.__traceback__.tb_frame.f_code.co_name == "raised"


def test_group_of_base_exceptions_is_kept():
    copy = round_trip(BaseExceptionGroup("all", [KeyboardInterrupt(), ValueError("x")]))
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


def test_frames_show_the_same_lines_as_the_original():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    original = caught.value.with_traceback(caught.value.__traceback__)

    def shown(error: BaseException) -> list[tuple[Any, ...]]:
        summary = traceback.extract_tb(error.__traceback__)
        return [(frame.filename, frame.lineno, frame.name, frame.line) for frame in summary]

    copy = round_trip(original)
    assert shown(copy) == shown(original)
    assert shown(copy)[-1][3] == "raise RuntimeError(marker)"
    text = "".join(traceback.format_exception(copy))
    assert text.count("three(depth - 1)") == 2
    assert text.endswith("RuntimeError: a line of source\n")


def test_each_frame_has_function_name_first_line_and_module():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    copy = round_trip(caught.value)
    codes, tb = [], copy.__traceback__
    while tb is not None:
        codes.append((tb.tb_frame.f_code, tb.tb_frame.f_globals["__name__"]))
        tb = tb.tb_next
    assert [(code.co_qualname, code.co_firstlineno, module) for code, module in codes[1:3]] == [
        ("Method.call", Method.call.__code__.co_firstlineno, __name__),
        ("three", three.__code__.co_firstlineno, __name__),
    ]


def test_frames_are_kept_if_pickled_twice():
    with pytest.raises(RuntimeError) as caught:
        Method().call()
    once = round_trip(caught.value)
    assert frames_of(round_trip(once).__traceback__) == frames_of(once.__traceback__)


def test_pytest_shows_functions_of_rebuilt_frames_and_respects_tracebackhide():
    def hidden() -> None:
        __tracebackhide__ = True
        three(0)

    with pytest.raises(RuntimeError) as caught:
        hidden()
    copy = round_trip(caught.value)
    info = pytest.ExceptionInfo.from_exception(copy)
    entry = info.traceback[-1]
    assert entry.frame.code.name == "three"
    assert str(entry.getsource()).startswith("def three(depth: int) -> None:")
    by_name = {each.frame.code.name: each for each in info.traceback}
    assert by_name["hidden"].ishidden(info)
    assert not by_name["three"].ishidden(info)


def test_infinite_recursion_keeps_all_frames():
    def endless(number: int) -> None:
        endless(number + 1)

    with pytest.raises(RecursionError) as caught:
        endless(0)
    copy = round_trip(caught.value)
    assert len(frames_of(copy.__traceback__)) == len(frames_of(caught.value.__traceback__))
    assert "times]" in "".join(traceback.format_exception(copy))


def test_exception_that_was_never_raised_has_no_frames():
    assert round_trip(ValueError("x")).__traceback__ is None


def test_encoded_exception_can_be_pickled_by_pickle():
    packed = encode_exception(raised(HoldsALock("held")))
    assert pickle.loads(pickle.dumps(packed)) == packed


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class WithSlots(Exception):
    __slots__ = ("code", "nothing", "unset")

    def __init__(self, text: str, code: Any) -> None:
        super().__init__(text)
        self.code, self.nothing = code, None


class OwnOSError(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "nothing there", path)


class Exits(Exception):
    """Exits the process that pickles or unpickles it."""

    def __init__(self, when: str) -> None:
        super().__init__(when)
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "pickle":
            sys.exit("not to be pickled")
        return sys.exit, (9,)


def test_exception_shared_by_two_branches_of_a_chain_stays_shared():
    root, outer = KeyError("root"), ValueError("outer")
    middle = OSError("middle")
    middle.__context__ = root
    outer.__cause__, outer.__context__ = middle, root
    copy = round_trip(outer)
    assert type(copy.__context__) is KeyError
    assert copy.__cause__.__context__ is copy.__context__


def test_members_of_a_group_keep_shared_exceptions():
    root, member = KeyError("root"), ValueError(1)
    other = ValueError(2)
    member.__context__ = other.__context__ = root
    group = ExceptionGroup("all", [member, other, member])
    group.__cause__ = member
    copy = round_trip(group)
    first, second, third = copy.exceptions
    assert first.__context__ is second.__context__
    assert first is third
    assert copy.__cause__ is first


def test_group_that_contains_its_own_cause_ends():
    error = ValueError("inner")
    error.__context__ = ExceptionGroup("all", [error])
    (member,) = round_trip(error).__context__.exceptions
    assert member.args == ("inner",)


@pytest.mark.parametrize(
    "error",
    [Frozen(3), WithSlots("x", 7), OwnOSError("a.txt"), OSError(18, "Invalid link", "a.txt", None, "b.txt")],
    ids=lambda error: type(error).__name__,
)
def test_frozen_and_slotted_exceptions_keep_their_chain(error):
    BaseException.__setattr__(error, "__cause__", KeyError("why"))
    copy = round_trip(raised(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))
    for name in ("code", "nothing", "unset", "errno", "strerror", "filename", "filename2"):
        assert getattr(copy, name, "none such") == getattr(error, name, "none such")
    assert type(copy.__cause__) is KeyError
    assert copy.__traceback__.tb_frame.f_code.co_name == "raised"


def test_slot_value_that_cannot_be_pickled_becomes_text():
    assert round_trip(WithSlots("x", threading.Lock())).code.startswith("<unlocked _thread.lock")


@pytest.mark.parametrize("code", ["[].appendd", "undefined_name", "import no_such_module.inner"])
def test_attributes_of_builtin_exceptions_are_kept_except_obj(code):
    with pytest.raises((AttributeError, NameError, ImportError)) as caught:
        exec(code, {})
    copy = round_trip(caught.value)
    assert copy.name == caught.value.name is not None
    assert getattr(copy, "obj", None) is None


@pytest.mark.parametrize("when", ["pickle", "unpickle"])
def test_exception_that_exits_when_pickled_or_unpickled_is_kept(when):
    copy = round_trip(raised(Exits(when)))
    assert (type(copy), copy.args, copy.when) == (Exits, (when,), when)


def test_removed_added_and_changed_attributes_are_kept_as_they_were():
    class Tagged(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(code)
            self.code, self.tags = code, ["a"]

    removed = Tagged(3)
    del removed.tags
    assert vars(round_trip(removed)) == {"code": 3}
    changed = OwnReduce("broken", 3)
    changed.code, changed.added = 4, [1]
    assert vars(round_trip(changed)) == {"text": "broken", "code": 4, "added": [1]}


def test_shared_attributes_stay_shared():
    error = ValueError("x")
    error.one = error.other = [1]
    copy = round_trip(error)
    assert copy.one is copy.other


def test_attribute_recreated_by_the_constructor_is_not_replaced_by_text():
    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("locked")
            self.lock = threading.Lock()

        def __reduce__(self) -> Any:
            return type(self), ()

    assert round_trip(Locked()).lock.acquire()


def test_group_with_a_custom_constructor_keeps_its_args():
    group = Errors([ValueError(1), KeywordOnly(code=2)], 3)
    copy = round_trip(raised(group))
    assert repr(copy.args) == repr(group.args)
    assert copy.args == (list(copy.exceptions), 3)
    plain = round_trip(ExceptionGroup("all", (ValueError(1),)))
    assert plain.args == ("all", plain.exceptions)


def test_replacement_of_a_local_class_keeps_its_qualified_name(tmp_path):
    code = """
    import sys
    from pathlib import Path
    from synapse_runtime.core import remote_exceptions
    from synapse_runtime import serialization
    def outer():
        class Hidden(Exception):
            pass
        return Hidden(4)
    Path(sys.argv[1]).write_bytes(serialization.dumps(remote_exceptions.encode_exception(outer())))
    """
    packed = tmp_path / "packed"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(packed)], check=True)
    error = decode_exception(serialization.loads_in_caller(packed.read_bytes()))
    assert (type(error).__qualname__, error.args) == ("outer.<locals>.Hidden", (4,))


def fail_in_part(depth: int) -> Any:
    if depth:
        return (
            "☃", fail_in_part(
                depth - 1
            ),
        )  # fmt: skip
    part: Any = {"a": {"b": None}}
    return len("☃☃☃ and a rather long text, to move what fails beyond column 64"), part["a"]["b"]["c"]


@pytest.mark.parametrize("trips", [1, 2])
def test_python_marks_the_same_parts_of_the_lines_as_in_the_original(trips):
    with pytest.raises(TypeError) as caught:
        fail_in_part(2)
    copy = caught.value
    for _ in range(trips):
        copy = round_trip(copy)
    text = "".join(traceback.format_tb(copy.__traceback__))
    assert text == "".join(traceback.format_tb(caught.value.__traceback__))
    assert "~~~~~~~~~~~~~~^^^^^" in text
    assert frames_of(copy.__traceback__) == frames_of(caught.value.__traceback__)


def test_frames_without_positions_have_none(tmp_path):
    code = """
    import traceback
    from synapse_runtime.core.remote_exceptions import encode_exception, decode_exception
    try:
        1 / 0
    except ZeroDivisionError as error:
        copy = decode_exception(encode_exception(error))
    frame, = traceback.extract_tb(copy.__traceback__)
    print(frame.lineno, frame.colno, copy.__traceback__.tb_lasti)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    command = [sys.executable, "-X", "no_debug_ranges", str(script)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "5 None -1\n"


def test_rebuilding_frames_executes_none_of_their_lines():
    with pytest.raises(TypeError) as caught:
        fail_in_part(0)
    packed = encode_exception(caught.value)
    lines = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_code.co_filename == __file__:
            lines.add((frame.f_code.co_name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        decode_exception(packed)
    finally:
        sys.settrace(before)
    first = fail_in_part.__code__.co_firstlineno
    assert {line for name, line in lines if name == "fail_in_part"} <= {first}


def test_falsy_exception_is_kept():
    class Empty(Exception):
        def __init__(self, *, code: int) -> None:
            super().__init__("nothing")

        def __len__(self) -> int:
            return 0

    assert type(round_trip(Empty(code=1))) is Empty


def test_group_of_an_unknown_class_becomes_an_exception_group():
    packed = replace(encode_exception(Errors([ValueError(1)], 3)), cls=None)
    assert type(decode_exception(packed)) is ExceptionGroup
    packed = replace(encode_exception(BaseExceptionGroup("all", [KeyboardInterrupt()])), cls=None)
    assert type(decode_exception(packed)) is BaseExceptionGroup

"""Tests for sending exceptions between processes."""

from __future__ import annotations

import pickle
import threading
import traceback

import pytest
from pydantic import BaseModel, ValidationError

from synapse_runtime.core.remote_exceptions import decode_exception, encode_exception
from synapse_runtime.errors import ConfigError, ExecutionTimeout


class NeedsMore(Exception):
    def __init__(self, message, *, code):
        super().__init__(message)
        self.code = code


class NeedsOther(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.pair = (one, two)


class HoldsALock(Exception):
    def __init__(self):
        super().__init__("held")
        self.lock = threading.Lock()
        self.count = 3


class CannotSpeak(Exception):
    def __str__(self):
        raise RuntimeError("mute")


class CannotReduce(Exception):
    def __reduce__(self):
        raise TypeError("no")


class ReducesToTrouble(Exception):
    def __reduce__(self):
        return ReducesToTrouble, (1, 2, 3), {"bad": threading}


def round_trip(error: BaseException) -> BaseException:
    return decode_exception(pickle.loads(pickle.dumps(encode_exception(error))))


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any exception
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        KeyError("k"),
        OSError(2, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        NeedsMore("m", code=7),
        NeedsOther("a", "b"),
        CannotSpeak("x"),
        CannotReduce("x"),
        ReducesToTrouble("x"),
        SystemExit(3),
        ValueError("x" * 1_000_000),
        ConfigError("broken", path="c.yaml", line=3),
        ExecutionTimeout("late", details="stack", title="Here:"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_class_args_and_attributes_are_kept(error):
    copy = round_trip(raised(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)


def test_only_the_attribute_that_cannot_be_pickled_is_replaced():
    copy = round_trip(raised(HoldsALock()))
    assert type(copy) is HoldsALock
    assert copy.count == 3
    assert "lock" in copy.lock


def test_notes_cause_and_context_are_kept():
    try:
        try:
            {}["missing"]
        except KeyError as key:
            problem = ValueError("outer")
            problem.add_note("a note")
            raise problem from key
    except ValueError as caught:
        copy = round_trip(caught)
    assert copy.__notes__ == ["a note"]
    assert type(copy.__cause__) is KeyError
    assert copy.__suppress_context__


def test_context_is_kept():
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - what this test is about
    except ValueError as caught:
        copy = round_trip(caught)
    assert type(copy.__context__) is KeyError
    assert not copy.__suppress_context__


def test_circular_chain_ends():
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert round_trip(first).__cause__.args == ("2",)


def test_nested_group_is_kept():
    group = ExceptionGroup("all", [ValueError(1), ExceptionGroup("inner", [NeedsMore("m", code=2)])])
    copy = round_trip(raised(group))
    assert type(copy) is ExceptionGroup
    assert copy.message == "all"
    assert copy.exceptions[1].exceptions[0].code == 2


def test_pydantic_error_is_kept():
    class Model(BaseModel):
        x: int

    with pytest.raises(ValidationError) as caught:
        Model(x="a")
    assert round_trip(caught.value).errors() == caught.value.errors()


def test_frames_have_their_source_and_first_line():
    def deeper():
        value = 1
        raise ValueError(value)

    try:
        deeper()
    except ValueError as caught:
        original = caught
    copy = round_trip(original)
    assert "".join(traceback.format_tb(copy.__traceback__)).count("raise ValueError(value)") == 1
    last = copy.__traceback__.tb_next
    assert last.tb_frame.f_code.co_firstlineno == deeper.__code__.co_firstlineno
    assert last.tb_lineno == original.__traceback__.tb_next.tb_lineno


def test_class_that_cannot_be_imported_is_replaced_by_one_of_its_name():
    packed = encode_exception(raised(NeedsMore("m", code=7)))
    object.__setattr__(packed, "whole", None)
    object.__setattr__(packed, "cls", pickle.dumps(0))
    copy = decode_exception(packed)
    assert type(copy).__name__ == "NeedsMore"
    assert isinstance(copy, Exception)
    assert copy.args == ("m",)

"""What threads have together, or one after the other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from synapse_runtime.aside import Together


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def together(told: list[str]) -> Together:
    @contextlib.contextmanager
    def change() -> Iterator[None]:
        told.append("made")
        yield
        told.append("undone")

    return Together(change)


def test_a_change_is_made_for_the_first_and_undone_after_the_last(together, told):
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with together():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with together():
        thread.start()
        assert inside.wait(10)
    assert told == ["made"]
    leave.set()
    thread.join()
    assert told == ["made", "undone"]
    with together():
        assert told == ["made", "undone", "made"]


def test_a_change_is_undone_where_a_block_fails(together, told):
    with pytest.raises(LookupError), together():
        raise LookupError
    assert told == ["made", "undone"]

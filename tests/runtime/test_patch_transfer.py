"""Patches of a test in another process: mocks keep what they are, and what an action does to objects comes back."""

from __future__ import annotations

import collections
import io
import itertools
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock
from unittest.mock import call

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_runtime import serialization
from synapse_runtime.core import patches
from synapse_runtime.core.patches import EVERY_KEY, MISSING, Patch
from synapse_runtime.errors import PatchNotSerializable
from synapse_runtime.executors.patch_transfer import ReceivedPatches, SentPatches, encode_patches

# Stands for the plugin's module, which both processes can import: here the other process is this one.
target = types.ModuleType("target_of_patches")


@pytest.fixture(autouse=True)
def _target(monkeypatch: pytest.MonkeyPatch) -> None:
    vars(target).update(value="original", table={"a": 1}, Thing=Thing)
    monkeypatch.setitem(sys.modules, target.__name__, target)
    monkeypatch.setattr(patches, "sources", [])
    monkeypatch.setattr(serialization, "_by_value", {__name__})


class Thing:
    """A class that tests patch."""

    size = 1

    def act(self, number: int, *, times: int = 1) -> int:
        """Return a number."""
        return number * times


def sent_with(*found: Patch) -> SentPatches:
    """Return the patches as they are sent to a worker."""
    patches.sources[:] = [lambda: found]
    sent = encode_patches()
    assert sent is not None
    return sent


def patched(value: Any, key: str = "value") -> Patch:
    """Return the patch of a variable of the module."""
    patch = Patch(target, key, False, vars(target).get(key, MISSING))
    setattr(target, key, value)
    return patch


def after(value: Any, action: Callable[[Any], object]) -> Any:
    """Return a value to which an action in another process has done something to its copy."""
    sent = sent_with(patched(value))
    received = ReceivedPatches(sent.data)
    with received.applied():
        copy = target.value
        assert copy is not value or isinstance(value, type)  # a class is known by its id
        action(copy)
    assert target.value is value
    changes = received.changes()
    if changes:
        sent.apply_changes(changes)
    return value


class TestObjects:
    @pytest.mark.parametrize(
        ("value", "action", "expected"),
        [
            ([1], lambda copy: copy.append(2), [1, 2]),
            ([1, 2], lambda copy: copy.reverse(), [2, 1]),
            ([1, [2]], lambda copy: copy[1].append(3), [1, [2, 3]]),
            ({"a": 1}, lambda copy: copy.update(b=2), {"a": 1, "b": 2}),
            ({"a": 1, "b": 2}, lambda copy: copy.pop("a"), {"b": 2}),
            ({"a": {1}}, lambda copy: copy["a"].add(2), {"a": {1, 2}}),
            (collections.Counter("a"), lambda copy: copy.update("ab"), {"a": 2, "b": 1}),
            (collections.defaultdict(list), lambda copy: copy["a"].append(1), {"a": [1]}),
            (collections.deque([1], maxlen=2), lambda copy: copy.extend([2, 3]), collections.deque([2, 3], maxlen=2)),
            (([],), lambda copy: copy[0].append(1), ([1],)),
        ],
    )
    def test_containers(self, value: Any, action: Callable[[Any], object], expected: Any) -> None:
        assert after(value, action) == expected

    def test_the_same_object_is_one_object_afterwards(self) -> None:
        shared: list[int] = []
        value = {"a": shared, "b": [shared]}
        after(value, lambda copy: copy["b"][0].append(1))
        assert value["a"] is shared
        assert shared == [1]

    def test_new_objects_may_refer_to_known_ones(self) -> None:
        value: dict[str, Any] = {"items": []}
        after(value, lambda copy: copy.update(all=[copy["items"], copy]))
        assert value["all"][0] is value["items"]
        assert value["all"][1] is value

    def test_attributes_of_an_instance(self) -> None:
        value = types.SimpleNamespace(seen=[], last=None, gone=1)

        def act(copy: Any) -> None:
            copy.seen.append(1)
            copy.last = 2
            del copy.gone

        after(value, act)
        assert vars(value) == {"seen": [1], "last": 2}

    def test_streams(self) -> None:
        assert after(io.StringIO("ab"), lambda copy: (copy.read(1), copy.write("X"))).getvalue() == "aX"
        assert after(io.BytesIO(), lambda copy: copy.write(b"X")).tell() == 1
        assert after(io.StringIO(), lambda copy: copy.close()).closed

    def test_iterators_go_on(self) -> None:
        value = types.SimpleNamespace(numbers=iter([1, 2, 3]))
        after(value, lambda copy: next(copy.numbers))
        assert list(value.numbers) == [2, 3]

    def test_functions(self) -> None:
        seen: list[int] = []
        count = 0

        def fake(number: int, made: list[int] = []) -> int:  # noqa: B006 - what comes back
            nonlocal count
            count += 1
            seen.append(number)
            made.append(number)
            fake.last = number  # type: ignore[attr-defined]
            return count

        after(fake, lambda copy: (copy(1), copy(2)))
        assert (seen, count, fake.__defaults__, fake.last) == ([1, 2], 2, ([1, 2],), 2)  # type: ignore[attr-defined]

    def test_class_of_the_test(self) -> None:
        class Fake:
            made: ClassVar[list[int]] = []
            count = 0

            def __init__(self) -> None:
                type(self).count += 1
                self.made.append(type(self).count)

        after(Fake, lambda copy: (copy(), copy()))
        assert (Fake.count, Fake.made) == (2, [1, 2])

    def test_nothing_is_sent_home_if_nothing_has_changed(self) -> None:
        received = ReceivedPatches(sent_with(patched({"a": [1], "f": lambda: 1})).data)
        with received.applied():
            pass
        assert received.changes() == b""

    def test_calls_at_the_same_time_lose_nothing(self) -> None:
        seen: list[int] = []
        fake = mock.Mock(side_effect=seen.append)
        sent = sent_with(patched(fake))
        both = [ReceivedPatches(sent.data) for _ in range(2)]
        for number, received in enumerate(both):
            with received.applied():
                target.value(number)
        for received in both:
            sent.apply_changes(received.changes())
        assert fake.call_args_list == [call(0), call(1)]
        assert (fake.call_count, seen) == (2, [0, 1])

    def test_what_cannot_be_sent_back_is_shown_as_text(self) -> None:
        value: list[Any] = []
        after(value, lambda copy: copy.extend([1, sys.stdout, (2, {"a": [sys.stdout]})]))
        assert value[0] == 1
        assert "TextIO" in repr(value[1]) or "EncodedFile" in repr(value[1])
        assert repr(value[2][1]["a"][0]) == repr(value[1])

    def test_what_cannot_be_sent_is_named(self) -> None:
        with pytest.raises(
            PatchNotSerializable, match=r"the patch of target_of_patches\.value cannot be sent"
        ) as caught:
            sent_with(patched(item for item in [1]))
        assert "cannot pickle 'generator' object" in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None


class TestMocks:
    def test_configuration(self) -> None:
        fake = mock.MagicMock(name="fake", side_effect=[1, KeyError("a"), mock.DEFAULT], return_value=5, other=3)
        fake.__len__.return_value = 4
        fake.child.deep.return_value = 6

        def act(copy: Any) -> None:
            assert copy(0) == 1
            with pytest.raises(KeyError, match="a"):
                copy()
            assert (copy(), len(copy), copy.child.deep(7), copy.other) == (5, 4, 6, 3)
            with pytest.raises(StopIteration):
                copy()

        after(fake, act)
        assert fake.mock_calls == [call(0), call(), call(), call.__len__(), call.child.deep(7), call()]
        fake.child.deep.assert_called_once_with(7)
        fake.__len__.assert_called_once_with()
        assert "name='fake'" in repr(fake)

    @pytest.mark.parametrize(
        "new", [mock.create_autospec(Thing), mock.MagicMock(spec=Thing), mock.Mock(spec_set=Thing)]
    )
    def test_spec(self, new: Any) -> None:
        def act(copy: Any) -> None:
            assert isinstance(copy, type if new.return_value is not mock.DEFAULT and isinstance(new, type) else Thing)
            with pytest.raises(AttributeError):
                copy.missing  # noqa: B018

        after(new, act)

    def test_autospec_of_a_class(self) -> None:
        fake = mock.create_autospec(Thing)
        fake.return_value.act.return_value = 4

        def act(copy: Any) -> None:
            assert copy().act(1, times=2) == 4
            with pytest.raises(TypeError, match="too many positional arguments"):
                copy().act(1, 2)
            with pytest.raises(AttributeError):
                copy().missing  # noqa: B018

        after(fake, act)
        fake.return_value.act.assert_called_once_with(1, times=2)

    def test_autospec_of_a_function(self) -> None:
        fake = mock.create_autospec(Thing.act, return_value=3)

        def act(copy: Any) -> None:
            assert copy(None, 1, times=2) == 3
            with pytest.raises(TypeError, match="missing a required argument"):
                copy(None)

        after(fake, act)
        fake.assert_called_once_with(None, 1, times=2)

    def test_children_that_the_action_creates(self) -> None:
        fake = mock.MagicMock()
        after(fake, lambda copy: (copy.session().get("u", json={"a": 1}).json(), copy["k"], list(copy.items)))
        fake.session.assert_called_once_with()
        fake.session.return_value.get.assert_called_once_with("u", json={"a": 1})
        fake.session().get().json.assert_called_once_with()
        fake.__getitem__.assert_called_once_with("k")
        fake.items.__iter__.assert_called_once_with()

    def test_reset_by_the_action(self) -> None:
        fake = mock.Mock()
        fake(1)
        after(fake, lambda copy: (copy.reset_mock(), copy(2)))
        assert (fake.mock_calls, fake.call_count) == ([call(2)], 1)

    def test_configured_by_the_action(self) -> None:
        fake = mock.Mock()
        after(fake, lambda copy: copy.configure_mock(return_value=3, name_of_test="x"))
        assert (fake(), fake.name_of_test) == (3, "x")

    def test_arguments_are_the_objects_of_the_test(self) -> None:
        fake = mock.Mock()
        fake.owner = mock.sentinel.owner
        after(fake, lambda copy: copy(copy.owner, copy, mock.ANY))
        assert fake.call_args.args[0] is mock.sentinel.owner
        assert fake.call_args.args[1] is fake
        fake.assert_called_once_with(mock.ANY, mock.ANY, "anything")

    def test_attached_mocks(self) -> None:
        manager, fake = mock.Mock(), mock.Mock()
        manager.attach_mock(fake, "fake")
        after(fake, lambda copy: copy(1))
        assert manager.mock_calls == [call.fake(1)]

    def test_call_is_a_pair_or_a_triple_as_before(self) -> None:
        fake = mock.Mock()
        after(fake, lambda copy: copy(1, a=2))
        assert fake.call_args[0] == (1,)
        assert fake.call_args[1] == {"a": 2}
        (args, kwargs), (name, *both) = fake.call_args, fake.mock_calls[0]
        assert (args, kwargs) == ((1,), {"a": 2})
        assert (name, *both) == ("", (1,), {"a": 2})


class TestPatches:
    def test_items_and_attributes_are_as_before_afterwards(self) -> None:
        found = [patched(2), patched(MISSING, "absent"), Patch(target.table, "a", True, 1), patched(Thing, "Thing")]
        target.table.pop("a")
        sent = sent_with(*found[:1], found[2])
        vars(target).update(value="worker's", table={"a": "worker's"})
        received = ReceivedPatches(sent.data)
        with received.applied():
            assert (target.value, target.table) == (2, {})
            del target.value
        assert (target.value, target.table) == ("worker's", {"a": "worker's"})

    def test_a_replacement_that_calls_the_original_calls_that_of_the_worker(self) -> None:
        original = Thing.act
        replacement = Patch(Thing, "act", False, original)
        Thing.act = lambda self, number: original(self, number) + 1  # type: ignore[assignment,method-assign]
        serialization._by_value.clear()  # so that the class is found by its path
        try:
            sent = sent_with(replacement)
            Thing.act = lambda self, number: 100  # type: ignore[assignment,method-assign]
            with ReceivedPatches(sent.data).applied():
                assert Thing().act(1) == 101
        finally:
            Thing.act = original  # type: ignore[method-assign]

    def test_patch_that_changes_nothing_here_may_change_something_there(self) -> None:
        sent = sent_with(Patch(target, "value", False, target.value))
        target.value = "changed by an earlier action"
        with ReceivedPatches(sent.data).applied():
            assert target.value == "original"
        assert target.value == "changed by an earlier action"

    def test_every_key_is_removed_and_put_back_in_order(self) -> None:
        sent = sent_with(Patch(target.table, "a", True, 1), Patch(target.table, EVERY_KEY, True, MISSING))
        target.table = {"z": 0, "b": 2, "a": 3}
        with ReceivedPatches(sent.data).applied():
            assert target.table == {"a": 1}
        assert [*target.table.items()] == [("z", 0), ("b", 2), ("a", 3)]

    def test_in_another_process(self) -> None:
        """A process that has nothing of this module gets a mock of a function that it has."""
        fake = mock.MagicMock(side_effect=lambda text: text.upper())
        import string

        before = string.capwords
        string.capwords = fake
        try:
            sent = sent_with(Patch(string, "capwords", False, before))
        finally:
            string.capwords = before
        code = (
            "import string, sys\n"
            "from synapse_runtime.executors.patch_transfer import ReceivedPatches\n"
            "received = ReceivedPatches(bytes.fromhex(sys.argv[1]))\n"
            "with received.applied():\n"
            "    print(string.capwords('abc'), file=sys.stderr)\n"
            "print(received.changes().hex())\n"
        )
        done = subprocess.run([sys.executable, "-c", code, sent.data.hex()], capture_output=True, text=True, check=True)
        assert done.stderr == "ABC\n"
        sent.apply_changes(bytes.fromhex(done.stdout))
        fake.assert_called_once_with("abc")


_VALUES = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from(["a", "b"]), _VALUES),
        st.tuples(st.just("item"), st.sampled_from(["x", "y"]), _VALUES),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b"]), st.none()),
        st.tuples(st.just("drop"), st.sampled_from(["x", "y"]), st.none()),
        st.tuples(st.just("mock"), st.sampled_from(["a", "b"]), _VALUES),
        st.tuples(st.just("undo"), st.none(), st.none()),
        st.tuples(st.just("call"), st.none(), st.integers(0, 3)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(steps=_STEPS)
def test_any_sequence_of_patches_and_calls_is_as_in_one_process(steps: list[tuple[str, str | None, Any]]) -> None:
    """Each call sees what it would see here, and leaves the mocks as it would here."""
    outcomes = [_play(steps, elsewhere=elsewhere) for elsewhere in (False, True)]
    assert outcomes[0] == outcomes[1]


def _play(steps: list[tuple[str, str | None, Any]], *, elsewhere: bool) -> list[Any]:
    here, there = ({"a": 1, "b": 2, "table": {"x": 1}} for _ in range(2))
    vars(target).update(here)
    found: list[Patch] = []
    mocks: list[mock.MagicMock] = []
    outcome: list[Any] = []
    table = target.table

    def note(container: Any, key: str, *, is_item: bool) -> None:
        names = container if is_item else vars(container)
        found.append(Patch(container, key, is_item, names.get(key, MISSING)))

    def act(number: int) -> None:
        seen = {name: vars(target).get(name, MISSING) for name in ("a", "b")}
        outcome.append([repr(each(number)) if isinstance(each, mock.Mock) else each for each in seen.values()])
        outcome.append(dict(target.table))

    for kind, key, value in steps:
        if kind in ("set", "mock"):
            note(target, str(key), is_item=False)
            if kind == "mock":
                value = mock.MagicMock(return_value=value)
                mocks.append(value)
            setattr(target, str(key), value)
        elif kind == "delete" and hasattr(target, str(key)):
            note(target, str(key), is_item=False)
            delattr(target, str(key))
        elif kind == "item":
            note(table, str(key), is_item=True)
            table[key] = value
        elif kind == "drop" and key in table:
            note(table, key, is_item=True)
            del table[key]
        elif kind == "undo" and found:
            last = found.pop()
            names = last.container if last.is_item else vars(last.container)
            names.update({last.key: last.original}) if last.original is not MISSING else names.pop(last.key, None)
        elif kind == "call" and elsewhere:
            _call_elsewhere(found, there, act, value)
        elif kind == "call":
            act(value)
    return [outcome, [each.mock_calls for each in mocks]]


def _call_elsewhere(found: list[Patch], there: dict[str, Any], act: Callable[[int], None], value: int) -> None:
    """Call an action in a module that has none of the patches."""
    patches.sources[:] = [lambda: found]
    sent = encode_patches()
    mine = {name: vars(target)[name] for name in ("a", "b", "table") if name in vars(target)}
    for name in ("a", "b"):
        vars(target).pop(name, None)
    vars(target).update({**there, "table": dict(there["table"])})
    received = ReceivedPatches(sent.data) if sent is not None else None
    if received is None:
        act(value)
    else:
        with received.applied():
            act(value)
        changes = received.changes()
    for name in ("a", "b"):
        vars(target).pop(name, None)
    vars(target).update(mine)
    if sent is not None and received is not None and changes:
        sent.apply_changes(changes)


def test_names_of_all_kinds_of_private_details() -> None:
    """What is used of `mock` exists: a mock's children, and the special methods of a new one."""
    fake = mock.MagicMock()
    assert fake._mock_children == {}
    assert callable(type(fake)._mock_set_magics)
    assert list(itertools.islice(fake.mock_calls, 1)) == []

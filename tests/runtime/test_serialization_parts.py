"""Tests for naming each kind of part that cannot be pickled, and for modules that are pickled by value."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from synapse_runtime import serialization
from synapse_runtime.errors import ExecutionError, ResultNotSerializable
from tests.patience import patience


class Box(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    content: object = None


@dataclasses.dataclass
class Part:
    inner: object
    other: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenPart:
    inner: object


class Callable(SimpleNamespace):
    def __call__(self):
        """Like a torch model."""


class Slotted:
    __slots__ = ("inner", "unset")

    def __init__(self, inner):
        self.inner = inner


class Private(BaseModel):
    _lock: object = PrivateAttr(default_factory=threading.Lock)


class OmitsItsLock:
    """Cannot be pickled because of an attribute that is not the one with a lock, which it omits."""

    def __init__(self):
        self.lock = LOCK
        self.stream = sys.stdout

    def __getstate__(self):
        return {"stream": self.stream}


class CannotIterate(dict):
    def items(self):
        raise SystemExit


Pair = namedtuple("Pair", "first second")
LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "result"),
        ({"a": 1, "model": SimpleNamespace(lock=LOCK)}, 'result["model"].lock'),
        ([0, 1, (2, LOCK)], "result[2][1]"),
        ({("k", 1): LOCK}, "result[('k', 1)]"),
        (Part(Part([LOCK])), "result.inner.inner[0]"),
        (Box(content={"x": LOCK}), 'result.content["x"]'),
        (Pair(1, LOCK), "result[1]"),
        (OrderedDict(a=LOCK), 'result["a"]'),
        ({LOCK}, "result"),
        ({"file": [sys.stdout]}, 'result["file"][0]'),
        (FrozenPart([LOCK]), "result.inner[0]"),
        (Callable(lock=LOCK), "result.lock"),
        (Slotted(Slotted(LOCK)), "result.inner.inner"),
        (Private(), "result._lock"),
        (OmitsItsLock(), "result.stream"),
        ([CannotIterate(a=LOCK)], "result[0]"),
        ({"deep": [[[LOCK]]], "near": {"x": LOCK}}, 'result["near"]["x"]'),
        ([list(range(100_000)), LOCK], "result[1]"),
        ([Part(LOCK)] * 20_000, "result[0].inner"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_names_the_innermost_part(value, path):
    assert serialization.explain(value, "result")[0] == path


def test_error_has_path_type_reason_and_fix():
    with pytest.raises(ResultNotSerializable) as caught:
        serialization.dumps_named({"model": SimpleNamespace(lock=LOCK)}, "result")
    assert str(caught.value) == (
        "result[\"model\"].lock cannot be sent between processes: _thread.lock: cannot pickle '_thread.lock' object. "
        "Use plain data instead, or the path of a file that contains it."
    )
    assert isinstance(caught.value, ExecutionError)
    assert isinstance(caught.value.__cause__, TypeError)


def test_search_ends_for_a_value_that_contains_itself():
    value: list[object] = [LOCK]
    value.insert(0, value)
    path, _ = serialization.explain(value, "result")
    assert path == "result[1]"


def test_part_at_fault_is_found_in_objects_that_refer_to_each_other():
    model = SimpleNamespace()
    model.trainer = SimpleNamespace(model=model)
    model.lock = LOCK
    assert serialization.explain([model], "result") == ("result[0].lock", LOCK)


def test_search_depth_is_limited():
    nested = LOCK
    for _ in range(50):
        nested = [nested]
    assert serialization.explain(nested, "result") == ("result" + "[0]" * 50, LOCK)
    for _ in range(100):
        nested = [nested]
    assert serialization.explain(nested, "result")[0] == "result" + "[0]" * serialization._MAX_DEPTH


@pytest.mark.parametrize(("limit", "value"), [("_MAX_PARTS", 10), ("_MAX_SECONDS", 0.0)])
def test_search_that_takes_too_long_returns_the_part_it_has_reached(monkeypatch, limit, value):
    monkeypatch.setattr(serialization, limit, value)
    assert serialization.explain([1] * 20 + [LOCK], "result")[0] == "result"


def test_unpickling_is_checked_without_copying_arrays():
    class Greedy:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ResultNotSerializable, match=r"result\[1\] cannot be sent between processes"):
        serialization.dumps_named([b"x" * 2_000_000, Greedy()], "result")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**70,
        1j,
        b"\x00",
        "snow ☃",
        [1, [2, {"a": (3,)}]],
        {1: {2: {3: {4: {5: {6: 7}}}}}},
        list(range(1000)),
        {3, 4},
        Path("a/b"),
        Part(Part(1)),
        Box(content=[1]),
        Pair(1, 2),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_round_trip_keeps_value_and_type(value):
    for copy in (serialization.loads(serialization.dumps(value)), serialization.round_trip(value)):
        assert copy == value
        assert type(copy) is type(value)


def test_arrays_keep_type_shape_and_content():
    array = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
    for copy in (serialization.loads(serialization.dumps(array)), serialization.round_trip(array)):
        assert copy.dtype == array.dtype
        assert numpy.array_equal(copy, array)
        assert not numpy.shares_memory(copy, array)


def test_large_buffers_are_pickled_out_of_band_and_loaded_from_the_given_buffers():
    value = {"large": numpy.arange(20_000.0), "small": numpy.arange(10.0), "strided": numpy.arange(40_000.0)[::2]}
    buffers: list[pickle.PickleBuffer] = []
    data = serialization.dumps(value, buffers)
    assert [buffer.raw().nbytes for buffer in buffers] == [160_000]
    assert len(data) < 165_000  # non-contiguous data is in the pickle
    for loads in (serialization.loads, serialization.loads_in_caller):
        copy = loads(data, serialization.read_only(buffers))
        assert all(numpy.array_equal(copy[name], array) for name, array in value.items())
        assert [array.flags.writeable for array in copy.values()] == [False, True, True]
        assert numpy.shares_memory(copy["large"], value["large"])
    assert len(serialization.dumps(value)) > 320_000


def test_copied_result_has_read_only_large_buffers():
    array = numpy.arange(20_000.0)
    copy, same, small = serialization.copy_result([array, array, array[:5]], "result")
    assert copy is same
    assert not numpy.shares_memory(copy, array)
    assert [copy.flags.writeable, small.flags.writeable] == [False, True]
    array[0] = 7
    assert copy[0] == 0


def test_round_trip_keeps_shared_and_circular_references():
    shared = [1]
    value: dict[str, object] = {"a": shared, "b": shared}
    value["self"] = value
    copy = serialization.round_trip(value)
    assert copy["a"] is copy["b"]
    assert copy["self"] is copy
    assert copy["a"] is not shared


def test_round_trip_keeps_local_classes_and_functions():
    class Local:
        def __init__(self):
            self.kind = Local

    def function():
        return Local

    value = Local()
    copy, same, module = serialization.round_trip([value, function, sys])
    assert type(copy) is Local
    assert copy is not value
    assert copy.kind is Local
    assert same is function
    assert module is sys


def test_snapshot_does_not_change_with_the_original():
    values = [1]
    snapshot = serialization.snapshot({"values": values})
    values.append(2)
    assert snapshot == {"values": [1]}


def test_dumps_leaves_no_module_registered_and_works_in_several_threads(tmp_path, monkeypatch):
    from cloudpickle import list_registry_pickle_by_value

    (tmp_path / "by_value_threads.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("by_value_threads")
    serialization.register_pickle_by_value(module.__name__)
    failures = []

    def work():
        try:
            for _ in range(50):
                serialization.dumps(module.Thing())
        except Exception as error:  # noqa: BLE001 - any exception is a failure
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(30))
    assert failures == []
    assert list_registry_pickle_by_value() == set()
    del sys.modules["by_value_threads"]


SPEAKER = """\
import json

WORD = "hi"

def helper():
    return json.dumps(WORD)

class Speaker:
    def speak(self):
        return helper()
"""

READ = """\
import pickle, sys
from pathlib import Path
from synapse_runtime import serialization
value = serialization.loads(Path(sys.argv[1]).read_bytes())
print(value.speak())
"""


@pytest.mark.parametrize("registered", [True, False])
def test_only_definitions_of_registered_modules_load_without_the_module(tmp_path, monkeypatch, registered):
    name = f"by_value_{registered}".lower()
    (tmp_path / f"{name}.py").write_text(SPEAKER)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    if registered:
        serialization.register_pickle_by_value(name)
    packed = tmp_path / "packed"
    packed.write_bytes(serialization.dumps(module.Speaker()))
    done = subprocess.run([sys.executable, "-c", READ, str(packed)], capture_output=True, text=True, cwd="/")
    if registered:
        assert done.stdout == '"hi"\n'
    else:
        assert f"No module named '{name}'" in done.stderr
    del sys.modules[name]


def test_registering_an_unknown_module_is_harmless():
    serialization.register_pickle_by_value("no_such_module_anywhere")
    assert serialization.loads(serialization.dumps({Part})) == {Part}


def test_plain_data_is_pickled_by_pickle():
    assert serialization.dumps({"a": [1, (2.0, None)]}) == pickle.dumps({"a": [1, (2.0, None)]}, protocol=5)

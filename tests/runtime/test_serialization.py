"""Tests for pickling by reference and by value, and for finding the part that cannot be pickled."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import signal
import subprocess
import sys
import threading
from typing import Generic, TypeVar

import pytest
from pydantic import BaseModel

from synapse_runtime import serialization
from synapse_runtime.errors import ActionInterrupted, ResultNotSerializable

calls: list[str] = []


class Settings(BaseModel):
    rate: float = 0.1


@dataclasses.dataclass
class Model:
    settings: Settings
    lock: object = None

    def speak(self):
        calls.append("here")


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"model": Model(Settings(), threading.Lock())}, 'result["model"].lock'),
        ([1, (2, threading.Lock())], "result[1][1]"),
        (threading.Lock(), "result"),
        ({3: threading.Lock()}, "result[3]"),
    ],
)
def test_error_names_the_part_that_cannot_be_pickled(value, part):
    with pytest.raises(ResultNotSerializable) as caught:
        serialization.dumps_named(value, "result")
    assert str(caught.value).startswith(f"{part} cannot be sent between processes: ")


def test_part_that_can_be_pickled_but_not_unpickled_is_named():
    class Greedy:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ResultNotSerializable, match=r"result\[0\] cannot be sent between processes"):
        serialization.dumps_named([Greedy()], "result")


def test_round_trip_copies_data_and_keeps_classes_and_functions():
    value = {"m": Model(Settings(rate=1)), "c": Color.RED, "f": test_error_names_the_part_that_cannot_be_pickled}
    copy = serialization.round_trip(value)
    assert copy == value
    assert copy["m"] is not value["m"]
    assert type(copy["m"]) is Model
    assert copy["f"] is value["f"]


def test_classes_of_a_registered_module_are_pickled_by_value_and_load_as_the_originals(tmp_path):
    serialization.register_pickle_by_value(__name__)
    method = Model.speak
    (tmp_path / "sent.pkl").write_bytes(serialization.dumps((Model(Settings(rate=2)), Color.RED, Model)))
    code = (
        "import sys; from pathlib import Path; from synapse_runtime import serialization as t; "
        "v = t.loads(Path(sys.argv[1]).read_bytes()); Path(sys.argv[2]).write_bytes(t.dumps(v)); "
        "print('tests.runtime.test_serialization' in sys.modules)"
    )
    paths = [str(tmp_path / "sent.pkl"), str(tmp_path / "returned.pkl")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    model, color, cls = serialization.loads_in_caller((tmp_path / "returned.pkl").read_bytes())
    assert done.stdout == "False\n"
    assert (type(model), color, cls) == (Model, Color.RED, Model)
    assert Model.speak is method
    model.speak()
    assert calls == ["here"]


def test_private_names_of_cloudpickle_exist():
    from cloudpickle import cloudpickle

    for name in ("_make_skeleton_class", "_make_skeleton_enum", "_class_setstate"):
        assert callable(getattr(cloudpickle, name))
    assert hasattr(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID, "values")


def test_snapshot_of_an_object_that_cannot_be_copied_is_its_repr():
    lock = threading.Lock()
    assert serialization.snapshot(lock) == repr(lock)


T = TypeVar("T")
U = TypeVar("U")


class Box(BaseModel, Generic[T]):
    content: T


class Two(BaseModel, Generic[T, U]):
    one: T
    other: U


class Folder(BaseModel):
    name: str
    inside: Box[Folder] | None = None


class Exits:
    """Exits the process that pickles or unpickles it."""

    def __init__(self, end: BaseException | None = None) -> None:
        self.end = end

    def __reduce__(self):
        if self.end is None:
            return sys.exit, (9,)
        raise self.end


def run_in_other_process(tmp_path, value, code):
    """Send a value to another process that runs the code with it as `v`, and return the value of `v` after that."""
    serialization.register_pickle_by_value(__name__)
    (tmp_path / "sent.pkl").write_bytes(serialization.dumps(value))
    lines = [
        "import sys; from pathlib import Path; from synapse_runtime import serialization as t",
        "v = t.loads(Path(sys.argv[1]).read_bytes())",
        code,
        "Path(sys.argv[2]).write_bytes(t.dumps(v))",
    ]
    paths = [str(tmp_path / "sent.pkl"), str(tmp_path / "returned.pkl")]
    subprocess.run([sys.executable, "-c", "\n".join(lines), *paths], cwd=tmp_path, check=True)
    return serialization.loads_in_caller((tmp_path / "returned.pkl").read_bytes())


def test_model_in_a_function_is_pickled_without_the_functions_variables():
    word = "this word stays here"
    lock = threading.Lock()

    class Local(BaseModel):
        text: str

    assert word.encode() not in serialization.dumps(Local)
    assert word.encode() not in serialization.dumps([Local(text="x")])
    assert Local.__pydantic_parent_namespace__["word"] == word
    assert not lock.locked()


def test_generic_model_created_in_a_worker_loads_as_the_callers_class(tmp_path):
    made = run_in_other_process(
        tmp_path, [Box, Two], "B, T = v; v = [B[int](content=1), B[dict[str, int]], B[B[int]], B, T[int, B]]"
    )
    assert [type(made[0]), *made[1:]] == [Box[int], Box[dict[str, int]], Box[Box[int]], Box, Two[int, Box]]
    assert made[0] == Box[int](content=1)


def test_generic_model_loads_as_the_class_of_the_worker(tmp_path):
    assert run_in_other_process(tmp_path, (Box, Box[int](content=1)), "v = type(v[1]) is v[0][int]") is True


def test_model_that_contains_a_generic_model_of_itself_validates_all_levels(tmp_path):
    given = {"name": "a", "inside": {"content": {"name": "b", "inside": {"content": {"name": "c"}}}}}
    code = "F, B, given = v; v = [F.model_validate(given), B[F].model_validate({'content': given}).content]"
    for made in run_in_other_process(tmp_path, [Folder, Box, given], code):
        assert made == Folder.model_validate(given)
        assert made.inside.content.inside.content.name == "c"
        assert type(made.inside) is Box[Folder]


def test_class_in_a_function_keeps_its_qualified_name(tmp_path):
    class Local:
        class Inner:
            pass

    names = run_in_other_process(tmp_path, [Local, Local.Inner], "v = [c.__qualname__ for c in v]")
    assert names == [Local.__qualname__, Local.Inner.__qualname__]


@pytest.mark.parametrize("end", [SystemExit(3), GeneratorExit(), None], ids=["exit", "generator exit", "unpickle"])
def test_hook_that_exits_is_a_failure_like_any_other(end):
    with pytest.raises(pickle.PickleError, match="a pickling hook raised"):
        serialization.round_trip([Exits(end)])
    with pytest.raises(ResultNotSerializable, match=r"result\[0\] cannot be sent between processes: .*Exits: "):
        serialization.dumps_named([Exits(end)], "result")
    assert serialization.snapshot(Exits(end)).startswith("<tests.runtime.test_serialization.Exits object")
    if end is None:
        for loads in (serialization.loads, serialization.loads_in_caller):
            with pytest.raises(pickle.PickleError, match="a pickling hook raised"):
                loads(serialization.dumps(Exits(end)))


class Interrupted:
    def __reduce__(self):
        signal.raise_signal(signal.SIGINT)
        return Interrupted, ()


@pytest.mark.parametrize(
    ("value", "error"),
    [(Interrupted(), KeyboardInterrupt), (Exits(ActionInterrupted()), ActionInterrupted)],
    ids=["Ctrl-C", "timeout"],
)
def test_ctrl_c_and_timeout_are_raised_from_a_hook(value, error):
    for go in (serialization.dumps, serialization.round_trip, serialization.snapshot):
        with pytest.raises(error):
            go([value])


def test_private_form_of_pickled_classes_is_as_expected():
    from cloudpickle import cloudpickle

    class Local(BaseModel):
        pass

    make, _arguments, (attributes, slots), *rest = cloudpickle._dynamic_class_reduce(Local)
    assert make is cloudpickle._make_skeleton_class
    assert rest == [None, None, cloudpickle._class_setstate]
    assert "__pydantic_parent_namespace__" in attributes
    assert "__qualname__" not in attributes
    assert slots == {}
    assert len(cloudpickle._dynamic_class_reduce(Color)) == 6
    assert Box[int].__pydantic_generic_metadata__ == {"origin": Box, "args": (int,), "parameters": ()}


def test_snapshot_of_an_object_with_an_unpicklable_part_is_its_repr_in_local_mode_too():
    lock = threading.Lock()

    def closure():
        return lock

    assert serialization.snapshot(closure) == repr(closure)
    assert serialization.snapshot({"f": closure}) == repr({"f": closure})
    assert serialization.snapshot({"f": run_in_other_process}) == {"f": run_in_other_process}


def test_snapshot_pickles_its_value_once():
    class Counted:
        times = 0

        def __reduce__(self):
            Counted.times += 1
            return Counted, ()

    assert type(serialization.snapshot([Counted()])[0]) is Counted
    assert Counted.times == 1


def test_snapshot_of_an_object_whose_repr_fails_is_its_type_name():
    class Mute:
        lock = None

        def __init__(self):
            self.lock = threading.Lock()

        def __repr__(self):
            raise SystemExit

    assert serialization.snapshot(Mute()).endswith("<locals>.Mute>")


def test_pickling_hook_may_take_a_snapshot():
    class Talks:
        def __reduce__(self):
            serialization.snapshot([Color.RED])
            return list, ()

    assert serialization.loads(serialization.dumps(Talks())) == []


def test_function_pickled_by_value_keeps_its_file_name():
    def inner():
        return 1 / 0

    copy = serialization.loads(serialization.dumps(inner))
    assert copy is not inner
    assert copy.__code__.co_filename == __file__
    with pytest.raises(ZeroDivisionError) as caught:
        copy()
    assert str(caught.traceback[-1].path) == __file__

"""Pickling: by reference, by value, and which part cannot."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import threading

import pytest
from pydantic import BaseModel

from synapse_runtime import transport
from synapse_runtime.errors import ResultNotSerializable

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
def test_the_part_that_cannot_travel_is_named(value, part):
    with pytest.raises(ResultNotSerializable) as caught:
        transport.dumps_named(value, "result")
    assert str(caught.value).startswith(f"{part} cannot travel between processes: ")


def test_what_pickles_but_cannot_be_read_is_found():
    class Greedy:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ResultNotSerializable, match=r"result\[0\] cannot travel"):
        transport.dumps_named([Greedy()], "result")


def test_a_round_trip_copies_data_and_keeps_classes_and_functions():
    value = {"m": Model(Settings(rate=1)), "c": Color.RED, "f": test_the_part_that_cannot_travel_is_named}
    copy = transport.round_trip(value)
    assert copy == value
    assert copy["m"] is not value["m"]
    assert type(copy["m"]) is Model
    assert copy["f"] is value["f"]


def test_classes_of_a_registered_module_travel_by_value_and_come_home_as_themselves(tmp_path):
    transport.ship_by_value(__name__)
    method = Model.speak
    (tmp_path / "there.pkl").write_bytes(transport.dumps((Model(Settings(rate=2)), Color.RED, Model)))
    code = (
        "import sys; from pathlib import Path; from synapse_runtime import transport as t; "
        "v = t.loads(Path(sys.argv[1]).read_bytes()); Path(sys.argv[2]).write_bytes(t.dumps(v)); "
        "print('tests.runtime.test_transport' in sys.modules)"
    )
    paths = [str(tmp_path / "there.pkl"), str(tmp_path / "back.pkl")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    model, color, cls = transport.loads_at_home((tmp_path / "back.pkl").read_bytes())
    assert done.stdout == "False\n"
    assert (type(model), color, cls) == (Model, Color.RED, Model)
    assert Model.speak is method
    model.speak()
    assert calls == ["here"]


def test_the_names_of_cloudpickle_that_we_stand_on_are_there():
    from cloudpickle import cloudpickle

    for name in ("_make_skeleton_class", "_make_skeleton_enum", "_class_setstate"):
        assert callable(getattr(cloudpickle, name))
    assert hasattr(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID, "values")


def test_a_snapshot_of_what_cannot_be_copied_is_its_repr():
    lock = threading.Lock()
    assert transport.snapshot(lock) == repr(lock)

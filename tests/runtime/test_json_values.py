"""Values as plain JSON: exact for builtin types, rebuilt where the type is known, without importing or running code."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, field_validator

from synapse_runtime.json_values import decode_value, encode_value, not_decoded


def round_trip(value: Any, import_root: str | None = None) -> tuple[Any, bool]:
    data, is_exact = encode_value(value)
    return decode_value(json.loads(json.dumps(data, allow_nan=False)), import_root), is_exact


def same(one: Any, other: Any) -> bool:
    """Return whether two values of builtin types are equal, of the same types, and in the same order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return bool(one == other)


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(max_size=9)
)
_KEYS = st.text(max_size=3) | st.sampled_from(["$type", "$tuple", "$", "$float"]) | st.integers() | st.booleans()
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.text(max_size=2), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=15,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure
@given(_VALUES)
def test_builtin_values_are_exact(value):
    found, is_exact = round_trip(value)
    assert same(found, value)
    # Hypothesis may use one list twice, which JSON cannot express.
    if is_exact:
        assert not_decoded(found) is None or "$" in json.dumps(encode_value(value)[0])


@pytest.mark.parametrize(
    "value",
    [
        {"$type": "builtins:eval", "value": "1"},
        [{"$tuple": [1, 2]}, {"$dict": []}],
        {"$": {"$": {"$": 1}}},
        {"$float": "nan"},
        10**400,
        -(2**64),
        [math.nan, -math.inf, -0.0, 1e-320],
        "\ud800 alone",
        b"\x00\xff",
        (),
        ((),),
        {(1, "a"): {2.5: b""}},
    ],
    ids=repr,
)
def test_values_that_look_like_tags_and_others_that_json_lacks_are_exact(value):
    found, is_exact = round_trip(value)
    assert same(found, value)
    assert is_exact


@pytest.mark.parametrize(
    "value",
    [
        Path("weights/w.npz"),
        pathlib.PureWindowsPath("C:/w"),
        dt.datetime(2024, 1, 15, 12, 30, 1, 5, tzinfo=dt.UTC),
        dt.date(2024, 1, 15),
        dt.time(1, 2, 3),
        dt.timedelta(days=-1, microseconds=3),
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        complex(1, -math.inf),
        range(1, 9, 2),
        bytearray(b"abc"),
        collections.OrderedDict(b=1, a=2),
        collections.Counter("aab"),
        collections.deque([1, (2,)]),
    ],
    ids=repr,
)
def test_types_of_the_standard_library_are_rebuilt(value):
    found, is_exact = round_trip({"value": [value]})
    assert found == {"value": [value]}
    assert type(found["value"][0]) is type(value)
    assert not is_exact  # an equal value, but pickle may keep more of it


PLUGIN = """\
import dataclasses
import enum

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        object.__setattr__(self, "y", self.y + 1)


class Result(BaseModel):
    model_config = ConfigDict(frozen=True)
    loss: float = Field(alias="Loss")
    color: Color = Color.RED
    points: list[Point] = []

    @field_validator("loss")
    @classmethod
    def doubled(cls, value):
        return 2 * value

    class Inner(BaseModel, extra="allow"):
        name: str


class NotData:
    def __init__(self):
        self.made = True
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """A plugin's directory, and its module."""
    (tmp_path / "values_of_a_plugin.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(tmp_path)
    import values_of_a_plugin

    yield str(tmp_path), values_of_a_plugin
    del sys.modules["values_of_a_plugin"]


def test_models_dataclasses_and_enums_of_the_plugin_are_rebuilt_as_they_were(plugin):
    root, module = plugin
    point = module.Point(3)
    object.__setattr__(point, "y", 9)
    result = module.Result(Loss=0.5, color=module.Color.BLUE, points=[point])
    inner = module.Result.Inner(name="a", more=(1, 2))
    value = {"result": result, "inner": inner, "flags": module.Flags.A | module.Flags.B}
    found, _ = round_trip(value, root)
    assert found == value
    assert found["result"].loss == 1.0, "a validator ran a second time"
    assert found["result"].points[0].y == 9, "__post_init__ ran a second time"
    assert found["inner"].more == (1, 2)


def test_without_the_plugin_they_stay_readable_dicts(plugin):
    _, module = plugin
    found, _ = round_trip(module.Result(Loss=0.5))
    assert found == {
        "$type": "values_of_a_plugin:Result",
        "fields": {"loss": 1.0, "color": {"$type": "values_of_a_plugin:Color", "name": "RED"}, "points": []},
        "set": ["loss"],
    }
    assert not_decoded([1, {"a": found}]) == "a values_of_a_plugin:Result"


@pytest.mark.parametrize(
    "data",
    [
        {"$type": "values_of_a_plugin:Result", "fields": {"loss": 1.0}},
        {"$type": "values_of_a_plugin:Result", "fields": {"loss": 1, "color": 2, "points": 3, "more": 4}},
        {"$type": "values_of_a_plugin:Point", "fields": {"x": 1, "y": 2, "__class__": 3}},
        {"$type": "values_of_a_plugin:NotData", "fields": {"made": True}},
        {"$type": "values_of_a_plugin:Color", "name": "__class__"},
        {"$type": "values_of_a_plugin:Color", "name": ["RED"]},
        {"$type": "values_of_a_plugin:Result.__init__", "fields": {}},
        {"$type": "values_of_a_plugin:BaseModel", "fields": {}},
        {"$type": "os:system", "value": "touch /tmp/pwned"},
        {"$type": "subprocess:Popen", "fields": {"args": "touch"}},
        {"$type": "antigravity:x", "fields": {}},
        {"$type": "builtins:object", "fields": {}},
        {"$type": "pathlib:Path", "value": 7},
        {"$type": "pathlib:Path"},
        {"$type": "decimal:Decimal", "value": "many"},
        {"$type": "datetime:timedelta", "value": [10**10, 0, 0]},
        {"$type": ["list"], "value": 7},
        {"$type": "x", "fields": 7},
        {"$bytes": "%"},
        {"$int": "12"[:0]},
        {"$set": [[]]},
        {"$dict": [[[], 1]]},
        {"$dict": [1]},
        {"$float": "1.5"},
        {"$unknown": 1},
        {"$tuple": [1], "more": 2},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_rebuilt_stays_a_dict(plugin, data):
    before = set(sys.modules)
    found = decode_value(data, plugin[0])
    assert isinstance(found, dict)
    assert found.keys() == data.keys()
    assert set(sys.modules) == before


def test_modules_that_are_not_imported_are_not_imported(tmp_path):
    (tmp_path / "not_imported.py").write_text("raise SystemExit('imported')\n")
    data = {"$type": "not_imported:Result", "fields": {}}
    assert decode_value(data, str(tmp_path)) == data


class Size(enum.IntEnum):
    LARGE = 3


class Loss(float):
    pass


class Pair(collections.namedtuple("Pair", "a b")):
    pass


@dataclasses.dataclass
class Node:
    children: list[Any]


class Login(BaseModel):
    password: SecretStr

    @field_validator("password")
    @classmethod
    def check(cls, value):
        return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Loss(1.5), {"value": 1.5}),
        (Pair(1, 2), {"value": {"$tuple": [1, 2]}}),
        (Size.LARGE, {"name": "LARGE"}),
        (Login(password="hunter2"), {"fields": {"password": {"$type": "pydantic.types:SecretStr"}}}),
        (object, {"repr": "<class 'object'>"}),
    ],
    ids=repr,
)
def test_values_of_other_types_keep_their_content_or_their_text(value, expected):
    data, is_exact = encode_value(value)
    assert not is_exact
    for key, part in expected.items():
        assert data[key] == part or "SecretStr" in str(part)
    assert "hunter2" not in json.dumps(data)


def test_cycles_and_deep_nesting_are_left_out_and_repeated_values_are_written_again():
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert encode_value(cycle) == ([1, {"$omitted": "it contains itself, or is nested too deeply"}], False)
    node = Node([])
    node.children.append(node)
    assert "$omitted" in json.dumps(encode_value(node)[0])
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    data, is_exact = encode_value(deep)
    assert not is_exact
    assert "$omitted" in json.dumps(data)
    shared = [1]
    assert encode_value([shared, shared]) == ([[1], [1]], False)
    assert encode_value([(1,), "a", "a"]) == ([{"$tuple": [1]}, "a", "a"], True)


def test_values_that_occur_often_do_not_grow_without_bounds():
    value: Any = ["x"]
    for _ in range(60):
        value = [value, value]
    data, _ = encode_value(value)
    assert len(json.dumps(data)) < 20_000_000


def test_data_nested_too_deeply_are_returned_as_they_are():
    data: Any = 0
    for _ in range(900):
        data = [data]
    assert decode_value(data)

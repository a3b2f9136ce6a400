"""Actions about params and results."""

from __future__ import annotations

import array
import ipaddress
import re
import threading
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum, auto
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import numpy
from lab.portrait import named, portrait
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

T = TypeVar("T")


class EchoParams(BaseModel):
    value: Any = None


class Echo(BaseAction[EchoParams]):
    """Returns its param `value`."""

    def execute(self) -> Any:
        return self.params.value


# Values


class Color(Enum):
    RED = "red"
    GREEN = "green"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


class Word(StrEnum):
    HELLO = "hello"


class Access(Flag):
    READ = auto()
    WRITE = auto()


@dataclass
class Point:
    x: float
    y: float
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, order=True)
class Pixel:
    point: Point
    color: Color = Color.RED


class Size(NamedTuple):
    width: int
    height: int


class Slotted:
    __slots__ = ("name", "size")

    def __init__(self, name: str, size: Size) -> None:
        self.name, self.size = name, size

    def __repr__(self) -> str:
        return f"Slotted({self.name!r}, {self.size!r})"


class Plain:
    """A class with attributes only."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Labels(list[str]):
    source = ""


class Report(BaseModel):
    accuracy: float
    best: Color = Color.RED
    where: Path = Path("nowhere")
    points: list[Point] = []
    by_day: dict[date, Size] = {}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    _secret: int = PrivateAttr(default=7)


class Box(BaseModel, Generic[T]):
    content: T


def builtin_values() -> dict[str, Any]:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    return {
        "none": None,
        "true": True,
        "zero": 0,
        "large": 2**70,
        "small": -(2**70),
        "float": 0.1 + 0.2,
        "negative zero": -0.0,
        "nan": float("nan"),
        "inf": float("inf"),
        "complex": complex(-0.0, float("inf")),
        "empty text": "",
        "unicode": "snow ☃ 한국어 \U0001f600 e\u0301",
        "control characters": "\x00\x1e\r\n\u2028\x85",
        "half a character": "\ud800",
        "bytes": bytes(range(256)),
        "bytearray": bytearray(b"abc"),
        "empty containers": [[], (), {}, set(), frozenset()],
        "tuple in list": [(1, (2, [3]))],
        "one tuple": (1,),
        "set": {1, "a", None, (1, 2)},
        "frozenset": frozenset({frozenset({1})}),
        "ordered keys": {"b": 1, "a": 2},
        "keys of all kinds": {1: "a", None: "b", (1, 2): "c", False: "false", 1.5: "d", b"x": "e", Color.RED: "f"},
        "range": range(3, 30, 3),
        "slice": slice(1, None, 2),
        "ellipsis": ...,
        "not implemented": NotImplemented,
        "deep": deep,
        "long list": list(range(1000)),
        "a type": int,
        "a class": Point,
        "a function": builtin_values,
        "a module": re,
    }


def library_values() -> dict[str, Any]:
    return {
        "path": Path("some/where.txt"),
        "absolute path": Path("/some/where"),
        "pure path": PurePosixPath("a/b"),
        "datetime": datetime(2024, 2, 29, 23, 59, 59, 999_999),
        "in utc": datetime(2024, 2, 29, tzinfo=UTC),
        "in a zone": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        "with an offset": datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=9), "KST")),
        "date": date(1, 1, 1),
        "time": time(12, 30, tzinfo=UTC),
        "timedelta": timedelta(days=-1, microseconds=1),
        "decimal": Decimal("1.10"),
        "fraction": Fraction(1, 3),
        "uuid": uuid.UUID(int=5),
        "pattern": re.compile(r"\w+", re.IGNORECASE),
        "address": ipaddress.ip_network("10.0.0.0/8"),
        "ordered dict": OrderedDict(b=1, a=2),
        "default dict": defaultdict(list, {"a": [1]}),
        "counter": Counter("hello"),
        "deque": deque([1, 2], maxlen=2),
        "namespace": types.SimpleNamespace(a=1, b=[2]),
        "array": array.array("d", [1.0, 2.0]),
    }


def class_values() -> dict[str, Any]:
    labels = Labels(["cat", "dog"])
    labels.source = "the archive"
    point = Point(1.0, -0.0, ["a"])
    return {
        "enum": Color.GREEN,
        "int enum": Priority.HIGH,
        "str enum": Word.HELLO,
        "flags": Access.READ | Access.WRITE,
        "no flags": Access(0),
        "dataclass": point,
        "frozen dataclass with slots": Pixel(point, Color.GREEN),
        "named tuple": Size(1, 2),
        "slots": Slotted("box", Size(1, 2)),
        "object": Plain(a=1, point=point),
        "list with attributes": labels,
        "model": Report(accuracy=0.5, points=[point], by_day={date(2024, 1, 1): Size(3, 4)}),
        "model with unset fields": Report(accuracy=0.5),
        "unchecked model": Report.model_construct(accuracy="none"),
        "open model": Open(extra=[1], more=Color.RED),
        "generic model": Box[int](content=1),
        "nested generic model": Box[list[Box[str]]](content=[Box[str](content="x")]),
        "list of models": [Report(accuracy=1.0), Box[int](content=2)],
    }


def array_values() -> dict[str, Any]:
    grid = numpy.arange(12, dtype=numpy.float64).reshape(3, 4)
    return {
        "floats": grid,
        "nan": numpy.array([numpy.nan, -0.0, numpy.inf], dtype=numpy.float32),
        "columns first": numpy.asfortranarray(grid),
        "every second": grid[:, ::2],
        "big endian": grid.astype(">i4"),
        "empty": numpy.empty((0, 3)),
        "of no dimension": numpy.array(5),
        "bool": grid > 5,
        "complex": grid.astype(numpy.complex128),
        "text": numpy.array(["a", "한국어"]),
        "bytes": numpy.array([b"a", b"bc"]),
        "time": numpy.array(["2024-01-01", "NaT"], dtype="datetime64[D]"),
        "records": numpy.array([(1, 2.5, "x")], dtype=[("n", "i4"), ("v", "f8"), ("s", "U3")]),
        "objects": numpy.array([None, {"a": 1}, Color.RED], dtype=object),
        "masked": numpy.ma.array([1, 2, 3], mask=[0, 1, 0]).filled(-1),
        "scalar": numpy.float32(0.1),
        "int scalar": numpy.int64(3),
        "bool scalar": numpy.bool_(True),
        "dtype": numpy.dtype("f4"),
        "many": [grid, {"grid": grid}],
    }


KINDS = {
    "builtin": builtin_values,
    "library": library_values,
    "class": class_values,
    "array": array_values,
}


class Make(BaseAction):
    """Returns the value of a kind and name, created in its own process."""

    def execute(self) -> Any:
        return KINDS[self.params["kind"]]()[self.params["name"]]


class MakeAll(BaseAction):
    """Returns all values of all kinds."""

    def execute(self) -> Any:
        return {kind: make() for kind, make in KINDS.items()}


def random_bytes(megabytes: int) -> bytes:
    return numpy.random.default_rng(megabytes).bytes(megabytes * 1_000_000)


class MakeMuch(BaseAction):
    """Returns bytes that cannot be compressed."""

    def execute(self) -> Any:
        return random_bytes(self.params["megabytes"])


class MakeMuchInPieces(BaseAction):
    """Returns the same amount, half of it in an array, half in text."""

    def execute(self) -> Any:
        data = random_bytes(self.params["megabytes"])
        half = len(data) // 2
        return {"array": numpy.frombuffer(data[:half], dtype=numpy.uint8).copy(), "text": data[half:].hex()[:half]}


class MakeArrays(BaseAction):
    """Returns a large array, the same array again in a list, a copy with columns first, and a small one."""

    def execute(self) -> Any:
        large = numpy.arange(100_000.0).reshape(100, 1000)
        return {"large": large, "again": [large, "text"], "columns": numpy.asfortranarray(large), "small": large[0]}


class WriteInto(BaseAction):
    """Writes into an array in its params."""

    def execute(self) -> Any:
        array = self.params["array"]
        array[0] = 7
        return int(array[0]) + int(array[-1])


class MakeKnot(BaseAction):
    """Returns a list that contains itself, and one object twice."""

    def execute(self) -> Any:
        thing = Plain(name="thing")
        knot: list[Any] = [thing, thing]
        thing.knot = knot
        knot.append(knot)
        return knot


# Params


class See(BaseAction[EchoParams]):
    """Returns a description of the param that arrived, as text, which cannot change on the way back."""

    def execute(self) -> str:
        return repr(portrait(self.params.value, named))


class SeeAll(BaseAction):
    """Like `See`, for params without a model."""

    def execute(self) -> str:
        return repr(portrait(self.params, named))


class CountedParams(BaseModel):
    """Writes a line to a file whenever one of its validators is called, in any process."""

    tally: Path
    number: int = 1

    def _count(self, what: str) -> None:
        with self.tally.open("a") as file:
            file.write(f"{what}\n")

    @field_validator("number")
    @classmethod
    def _number(cls, value: int, info: Any) -> int:
        with info.data["tally"].open("a") as file:
            file.write("number\n")
        return value

    @model_validator(mode="after")
    def _whole(self) -> CountedParams:
        self._count("whole")
        return self


class Counted(BaseAction[CountedParams]):
    def execute(self) -> CountedParams:
        return self.params


class Layer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int
    color: Color = Color.RED


class TrainParams(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(default=3, ge=1)
    rate: float = Field(default=0.5, gt=0, alias="learning_rate")
    where: Path = Path("nowhere")
    day: date | None = None
    layers: list[Layer] = Field(default_factory=list)
    sizes: tuple[int, ...] = ()
    names: set[str] = set()
    by_color: dict[Color, float] = {}
    point: Point | None = None

    @field_validator("names")
    @classmethod
    def _no_cat(cls, names: set[str]) -> set[str]:
        if "cat" in names:
            raise ValueError("no cats here")
        return names


class Train(BaseAction[TrainParams]):
    """Returns its params, and creates the file `STARTED` when it is instantiated."""

    def __init__(self, params: TrainParams, ctx: Any) -> None:
        super().__init__(params, ctx)
        if ctx.env.get_str("STARTED"):
            Path(ctx.env.get_str("STARTED")).touch()

    def execute(self) -> TrainParams:
        return self.params


class BrokenParams(BaseModel):
    """Has a validator with a bug."""

    value: int = 0

    @field_validator("value")
    @classmethod
    def _value(cls, value: int) -> int:
        raise RuntimeError(f"a bug, met at {value}")


class Broken(BaseAction[BrokenParams]):
    def execute(self) -> None:
        return None


class Change(BaseAction[EchoParams]):
    """Changes its params."""

    def execute(self) -> Any:
        self.params.value["list"].append("changed")
        self.params.value["dict"]["inner"]["changed"] = True
        del self.params.value["gone"]
        return self.params.value


@action(name="change_unchecked")
def change_unchecked(params: Any, context: Any) -> Any:
    params["value"]["list"].append("changed")
    params["value"]["dict"]["inner"]["changed"] = True
    del params["value"]["gone"]
    return params.pop("value")


class Greedy(BaseModel):
    """Changes its input while validating it, like many models that accept old forms of their params."""

    size: int = 0

    @model_validator(mode="before")
    @classmethod
    def _old_form(cls, data: Any) -> Any:
        return {"size": data.pop("old_size")} if "old_size" in data else data


class GreedyParams(BaseModel):
    inner: Greedy


class Upgrade(BaseAction[GreedyParams]):
    def execute(self) -> int:
        return self.params.inner.size


# Values that cannot be pickled


class Model:
    def __init__(self) -> None:
        self.weights = [1, 2]
        self.lock = threading.Lock()


class CallableModel(Model):
    """A callable object, like the models of torch."""

    def __call__(self) -> None: ...


class SlottedModel:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


@dataclass
class Holder:
    name: str
    content: Any


class HolderModel(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    content: Any


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _read_one_way, ("this",)


def _read_one_way(what: str) -> None:
    raise RuntimeError(f"{what} cannot be read")


def _with_its_trainer() -> Model:
    """Return a model that refers to its trainer, which refers to the model."""
    model = Model.__new__(Model)
    model.trainer = Plain(model=model)
    model.lock = threading.Lock()
    return model


def _nested(depth: int, content: Any) -> Any:
    for _ in range(depth):
        content = [content]
    return content


def _numbers() -> Any:
    yield from (1, 2)


# Each with the path in its error message, and the type of the part that cannot be pickled.
STUCK: dict[str, tuple[Any, str, str]] = {
    "attribute of an item": (lambda: {"ok": 1, "model": Model()}, '["model"].lock', "_thread.lock"),
    "the whole": (threading.Lock, "", "_thread.lock"),
    "in lists": (lambda: [1, [2, (3, threading.Lock())]], "[1][1][1]", "_thread.lock"),
    "dataclass": (lambda: {"held": Holder("x", Model())}, '["held"].content.lock', "_thread.lock"),
    "pydantic model": (lambda: HolderModel(content=[Model()]), ".content[0].lock", "_thread.lock"),
    "attribute of an object": (lambda: Plain(a=1, deep=Plain(model=Model())), ".deep.model.lock", "_thread.lock"),
    "keys of other kinds": (
        lambda: {1: {(2, "x"): {Color.RED: Model()}}},
        "[1][(2, 'x')][Color.RED].lock",
        "_thread.lock",
    ),
    "generator inside": (lambda: {"items": _numbers()}, '["items"]', "generator"),
    "beside much": (lambda: {"many": list(range(100_000)), "model": Model()}, '["model"].lock', "_thread.lock"),
    "closure": (lambda: {"f": (lambda lock: lambda: lock)(threading.Lock())}, '["f"]', "function"),
    "callable object": (lambda: {"model": CallableModel()}, '["model"].lock', "_thread.lock"),
    "slots": (lambda: {"model": SlottedModel()}, '["model"].lock', "_thread.lock"),
    "deep": (lambda: _nested(20, threading.Lock()), "[0]" * 20, "_thread.lock"),
    "what knows each other": (_with_its_trainer, ".lock", "_thread.lock"),
}
NO_LOCK = "cannot pickle '_thread.lock' object"
NO_GENERATOR = "cannot pickle 'generator' object"


def stuck_text(whole: str, name: str) -> str:
    """Return the error message for one of `STUCK`."""
    _, path, kind = STUCK[name]
    why = NO_GENERATOR if kind == "generator" else NO_LOCK
    return (
        f"{whole}{path} cannot be sent between processes: {kind}: {why}. "
        "Use plain data instead, or the path of a file that contains it."
    )


class ReturnStuck(BaseAction):
    def execute(self) -> Any:
        return STUCK[self.params["name"]][0]()


class ReturnLockAsKey(BaseAction):
    def execute(self) -> Any:
        return {"table": {threading.Lock(): 1}}


class ReturnGenerator(BaseAction):
    def execute(self) -> Any:
        return _numbers()


class ReturnOneWay(BaseAction):
    """Returns a value that cannot be unpickled, together with the given number of bytes."""

    def execute(self) -> Any:
        return {"much": b"x" * self.params["size"], "model": Plain(part=OneWay())}


class ChangeableResults(BaseAction):
    """Returns the same list of the class each time."""

    kept: list[int] = [1, 2]  # noqa: RUF012 - shared on purpose

    def execute(self) -> Any:
        return self.kept


# Result models


class Score(BaseModel):
    accuracy: float
    name: str = "?"


class Scored(BaseAction[EchoParams]):
    """Returns its param, which should be a score."""

    result_model = Score

    def execute(self) -> Any:
        return Score(accuracy=0.5) if self.params.value == "a score" else self.params.value


@action(result=Score)
def scored(params: Any, context: Any) -> Any:
    return params["value"]


class BrokenScore(BaseModel):
    accuracy: float

    @field_validator("accuracy")
    @classmethod
    def _accuracy(cls, value: float) -> float:
        raise RuntimeError("a bug")


class ScoredByBroken(BaseAction):
    result_model = BrokenScore

    def execute(self) -> Any:
        return {"accuracy": 1.0}

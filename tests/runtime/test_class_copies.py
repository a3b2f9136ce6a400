"""Classes that are pickled by value: another process has the same class, and none of its code has run twice."""

from __future__ import annotations

import abc
import datetime
import enum
import functools
import inspect
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

import cloudpickle
import pytest

from synapse_runtime import class_copies, serialization
from synapse_runtime.class_copies import stand_in_modules
from synapse_runtime.errors import ResultNotSerializable
from tests.patience import patience


class Size(enum.Enum):
    LARGE = ("l", 90)
    SMALL = ("s", 10)
    BIG = ("l", 90)

    def __init__(self, letter, weight):
        self.letter = letter
        self.weight = weight

    def smallest(self):
        return Size.SMALL


class Bits(enum.IntFlag):
    RW = 3
    ALL = 7


class Permission(enum.Flag):
    R = 1
    W = 2
    X = 4
    RWX = 7


class Coordinate(bytes, enum.Enum):
    def __new__(cls, value, label):
        member = bytes.__new__(cls, [value])
        member._value_ = value
        member.label = label
        return member

    PX = (0, "P.X")
    PY = (1, "P.Y")


class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 1


class Name(enum.StrEnum):
    A = enum.auto()
    B = enum.auto()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Pair:
    a: int
    b: int = 2


class Pairs(Pair, enum.Enum):
    ONE = (1,)


class Outer:
    class Inner(enum.Enum):
        A = 1


class Optimizer:
    registry: dict[str, Any] = {}  # noqa: RUF012
    count = 0

    def __init_subclass__(cls, /, tag, **keywords):
        super().__init_subclass__(**keywords)
        cls.tag = tag
        Optimizer.registry[tag] = cls
        Optimizer.count += 1


class Adam(Optimizer, tag="adam"):
    pass


class Sgd(Optimizer, tag="sgd"):
    pass


class Table(type):
    def __new__(mcs, name, bases, namespace, *, table):
        cls = super().__new__(mcs, name, bases, namespace)
        cls.table = table
        return cls

    def __init__(cls, name, bases, namespace, *, table):
        super().__init__(name, bases, namespace)


class Row(metaclass=Table, table="rows"):
    def where(self):
        return self.table


class Parent:
    size = 1
    label = None


class Child(Parent):
    size = 1
    label = None


class Slots:
    __slots__ = ("__hidden", "shown")

    def __init__(self):
        self.shown = 1
        self.__hidden = 2

    def both(self):
        return self.shown, self.__hidden


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def area(self):
        return 4


T = TypeVar("T")


class Seen(Generic[T]):
    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        cls.is_seen = True


class SeenInt(Seen[int]):
    pass


class Point(NamedTuple):
    x: int
    y: int = 2

    def total(self):
        return self.x + self.y


class Options(TypedDict, total=False):
    a: int


@runtime_checkable
class HasSize(Protocol):
    def size(self) -> int: ...


class Sized(HasSize):
    def size(self):
        return 3


@dataclass(frozen=True, slots=True, order=True)
class Version:
    major: int


class Sealed(type):
    def __setattr__(cls, name, value):
        raise AttributeError("sealed")


class Closed(metaclass=Sealed):
    size = 1


class Lazy:
    @functools.cached_property
    def size(self):
        return 4


class Named:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner):
        return self.name


class WithNamed:
    field = Named()


class Fallback(enum.Enum):
    @staticmethod
    def _generate_next_value_(name, start, count, last_values):
        return name.lower()

    @classmethod
    def _missing_(cls, value):
        return cls.A

    A = enum.auto()
    B = enum.auto()


class Measured(enum.Enum):
    def __init__(self, size, weight):
        self.size = size

    def twice(self):
        return 2 * self.size


class Measures(Measured):
    SMALL = (3, 4)


# A value, an expression about it as `v`, and its value.
CASES = {
    "enum with __init__": (Size.LARGE, "v.letter, v.weight, v.smallest().letter", ("l", 90, "s")),
    "aliases of an enum": (Size.LARGE, "type(v).BIG is v, [*type(v).__members__], type(v)(('l', 90)) is v, len(type(v))",  # noqa: E501
                           (True, ["LARGE", "SMALL", "BIG"], True, 2)),
    "flag of combined values": (Bits.RW, "int(v), str(v), int(v & 1), type(v)(7).name", (3, "3", 1, "ALL")),
    "flag": (Permission.R | Permission.W, "v.value, [m.name for m in v], ~v, type(v).RWX.value",
             (3, ["R", "W"], Permission.X, 7)),
    "enum with __new__": (Coordinate.PY, "bytes(v), v.label, type(v)(1) is v", (b"\1", "P.Y", True)),
    "enum of dates": (Day.FIRST, "v.year, v.name", (2020, "FIRST")),
    "enum of texts": (Name.B, "v == 'b', type(v)('a').name", (True, "A")),
    "enum of integers": (Level.HIGH, "v + 1, v > type(v).LOW, type(v)(1).name", (3, True, "LOW")),
    "enum of dataclasses": (Pairs.ONE, "v.a, v.b, v.name", (1, 2, "ONE")),
    "nested enum": (Outer.Inner.A, "v.name, type(v).__qualname__", ("A", "Outer.Inner")),
    "keywords of a class": (Adam, "v.tag, v.__mro__[1].registry['sgd'].tag, v.__mro__[1].count", ("adam", "sgd", 2)),
    "instance of such a class": (Sgd(), "v.tag", "sgd"),
    "keywords of a metaclass": (Row(), "v.where()", "rows"),
    "attributes equal to a base's": (Child, "'size' in vars(v), 'label' in vars(v)", (True, True)),
    "slots": (Slots(), "v.both(), hasattr(v, '__dict__')", ((1, 2), False)),
    "abstract base class": (Square(), "v.area(), type(v).__abstractmethods__", (4, frozenset())),
    "named tuple": (Point(1), "v.total(), v._fields, type(v)(3).y", (3, ("x", "y"), 2)),
    "typed dict": (Options, "v(a=1), v.__total__, [*v.__annotations__]", ({"a": 1}, False, ["a"])),
    "protocol": (Sized(), "v.size(), isinstance(v, type(v).__mro__[1])", (3, True)),
    "dataclass with slots": (Version(1), "v, v < type(v)(2), hasattr(v, '__dict__')", (Version(1), True, False)),
    "metaclass that forbids changes": (Closed, "v.size", 1),
    "cached property": (Lazy(), "v.size, vars(v)", (4, {"size": 4})),
    "descriptor with a name": (WithNamed, "v.field", "field"),
    "enum with hooks": (Fallback.B, "v.value, type(v)('x') is type(v).A", ("b", True)),
    "enum whose base has __init__": (Measures.SMALL, "v.twice()", 6),
    "generic class": (SeenInt, "v.is_seen, v.__orig_bases__[0].__args__", (True, (int,))),
}  # fmt: skip
PROGRAM = """\
import sys
from synapse_runtime import serialization
for data, expression in serialization.loads(sys.stdin.buffer.read()):
    v = serialization.loads(data)
    sys.stdout.buffer.write(serialization.dumps((eval(expression), v)))
"""


@pytest.fixture(scope="module", autouse=True)
def _by_value():
    """Pickle the classes of this module by value, as those of test modules that use the plugin."""
    serialization.register_pickle_by_value(__name__)
    yield
    serialization._by_value.discard(__name__)


@pytest.fixture(scope="module")
def answers(_by_value):
    """For each case what another process finds, and the value as it comes back."""
    calls = [(serialization.dumps(value), expression) for value, expression, _ in CASES.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=serialization.dumps(calls),
        stdout=subprocess.PIPE,
        cwd="/",
        check=True,
        timeout=patience(60),
    )
    answers = {}
    data = memoryview(done.stdout)
    for case in CASES:
        unpickler = serialization._CallerUnpickler(stream := _Stream(data), ())
        answers[case] = unpickler.load()
        data = data[stream.position :]
    return answers


class _Stream:
    """A stream that knows how much of it has been read."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def read(self, size):
        self.position += size
        return bytes(self.data[self.position - size : self.position])

    def readline(self):
        raise AssertionError("not used in this protocol")


@pytest.mark.parametrize("case", CASES)
def test_class_is_the_same_in_another_process(answers, case):
    value, _, expected = CASES[case]
    found, returned = answers[case]
    assert found == expected
    if isinstance(value, enum.Enum | type):
        assert returned is value


@pytest.mark.parametrize("case", CASES)
def test_class_is_read_back_where_it_is_written(case):
    serialization.round_trip(CASES[case][0], code_too=True)


def test_reading_back_runs_no_code_of_classes():
    class Registered(Optimizer, tag="registered"):
        pass

    before = Optimizer.count, dict(Optimizer.registry), vars(Optimizer)["__init_subclass__"]
    serialization.round_trip(Registered(), code_too=True)
    assert (Optimizer.count, dict(Optimizer.registry), vars(Optimizer)["__init_subclass__"]) == before
    del Optimizer.registry["registered"]
    Optimizer.count -= 1


def test_class_that_cannot_be_created_elsewhere_fails_in_strict_local_mode():
    class Broken:
        def __reduce__(self):
            return _refuse, ()

    def make():
        value = Broken()

        class Holder:
            held = value

        return Holder()

    with pytest.raises(ResultNotSerializable, match="refused"):
        serialization.copy_params(make(), "params")


def _refuse():
    raise RuntimeError("refused")


def test_importable_base_that_requires_keywords(tmp_path, monkeypatch):
    (tmp_path / "registry_lib.py").write_text(
        "class Base:\n"
        "    tags = []\n"
        "    def __init_subclass__(cls, *, tag=None, required=None, **keywords):\n"
        "        Base.tags.append(tag)\n"
        "class Strict:\n"
        "    def __init_subclass__(cls, *, tag):\n"
        "        cls.tag = tag\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import registry_lib

    class Plain(registry_lib.Base):
        pass

    class Tagged(registry_lib.Strict, tag="t"):
        pass

    program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n" + (
        "from synapse_runtime import serialization\n"
        "plain, tagged = serialization.loads(sys.stdin.buffer.read())\n"
        "import registry_lib\n"
        "print(registry_lib.Base.tags, tagged.tag, 'tag' in vars(registry_lib.Strict))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=serialization.dumps((Plain, Tagged)),
        stdout=subprocess.PIPE,
        check=True,
        timeout=patience(60),
    )
    # The hook of an importable class runs there as it has run here, if it can do without the unknown keywords.
    assert done.stdout.decode() == "[None] t False\n"


def cube(number):
    return number**3


class Crate:
    def __init__(self, size):
        self.size = size


def test_definitions_are_found_by_name_while_a_worker_runs_a_call(monkeypatch):
    name = cube.__module__
    data = serialization.dumps((cube, Crate(3)))
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
    with stand_in_modules():
        copy, crate = serialization.loads(data)
        assert pickle.loads(pickle.dumps(copy)) is copy
        assert type(pickle.loads(pickle.dumps(crate))) is type(crate)
        module = sys.modules[name]
        assert module.cube is copy
        for by_value in (copy, type(crate)):
            assert "cloudpickle" in cloudpickle.dumps(by_value).decode("latin-1")
        assert "number**3" in inspect.getsource(copy)
        assert module.CASES.keys() == CASES.keys()  # imported when it is asked for
        assert sys.modules[name] is module
        with pytest.raises(AttributeError, match="nothing"):
            module.nothing  # noqa: B018
    assert name not in sys.modules


def test_importable_module_is_not_replaced():
    data = serialization.dumps(cube)
    module = sys.modules[cube.__module__]
    with stand_in_modules():
        copy = serialization.loads(data)
        assert sys.modules[cube.__module__] is module
        assert module.cube is cube
        assert copy(2) == 8


def test_names_of_cloudpickle_that_this_depends_on():
    """`reduce_class` takes apart what cloudpickle returns: when its form changes, this says so."""
    from cloudpickle import cloudpickle

    class Local:
        pass

    make, arguments, (attributes, _), *_, set_state = cloudpickle._class_reduce(Local)
    assert (make, set_state) == (cloudpickle._make_skeleton_class, cloudpickle._class_setstate)
    metaclass, name, bases, namespace, tracker_id, _ = arguments
    assert (metaclass, name, bases, namespace) == (type, "Local", (object,), {"__module__": __name__})
    assert cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[Local] == tracker_id
    assert class_copies.find_class(tracker_id) is Local
    assert class_copies.find_class("unknown") is None
    assert isinstance(attributes, dict)

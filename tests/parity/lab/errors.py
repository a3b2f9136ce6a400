"""Actions that fail in many ways."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

# Failures with a chain and frames; the tests find lines of this part by their text, so each text occurs once.


class Broken(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


def look_up(table: dict[str, int], key: str) -> int:
    return table[key]


class FailFromCause(BaseAction):
    def execute(self) -> None:
        try:
            look_up({}, "missing")
        except KeyError as error:
            problem = Broken("outer", 7)
            problem.add_note("first")
            problem.add_note("second ☃\nin two lines")
            raise problem from error


class FailWhileHandling(BaseAction):
    def execute(self) -> None:
        try:
            self.first()
        except ValueError:
            self.second()

    def first(self) -> None:
        raise ValueError("the first")

    def second(self) -> None:
        raise Broken("the second", 2)


class FailFromNone(BaseAction):
    def execute(self) -> None:
        try:
            int("many")
        except ValueError:
            raise Broken("alone", 1) from None


class FailWithTwoBranches(BaseAction):
    """Cause and context differ, and share what came before."""

    def execute(self) -> None:
        try:
            raise KeyError("root")
        except KeyError:
            try:
                raise OSError("while cleaning up")
            except OSError as caught:
                problem = caught
            raise Broken("outer", 3) from problem


class FailDeeply(BaseAction):
    def execute(self) -> None:
        self.deeper(3)

    def deeper(self, depth: int) -> None:
        if depth:
            return self.deeper(depth - 1)
        assert all(json.loads(text) for text in ("1", "[broken"))


class FailInInit(BaseAction):
    def __init__(self, params: Any, ctx: Any) -> None:
        super().__init__(params, ctx)
        raise Broken("in init", 4)

    def execute(self) -> None: ...


class FailAsync(BaseAction):
    async def execute(self) -> None:
        await asyncio.gather(self.inner())

    async def inner(self) -> None:
        await asyncio.sleep(0)
        raise Broken("in a task", 5)


@action(name="fail_function")
def fail_function(params: Any, context: Any) -> None:
    part = {"a": {"b": None}}
    raise Broken("in a function", part["a"]["b"]["c"])


# Awkward exceptions


class NeedsTwo(Exception):
    def __init__(self, one: str, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.pair = (one, two)


class NeedsKeywords(Exception):
    def __new__(cls, *, code: int) -> NeedsKeywords:
        return super().__new__(cls)

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ReadOnlyArgs(Exception):
    @property
    def args(self) -> tuple[Any, ...]:  # type: ignore[override]
        return ("always this",)


class FailsInStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class EndlessStr(Exception):
    def __str__(self) -> str:
        return f"{self!s}"


class FailsInRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class FailsInReduce(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class ExitsInReduce(Exception):
    def __reduce__(self) -> Any:
        sys.exit("not to be pickled")


class ReducesToNumber(Exception):
    def __reduce__(self) -> Any:
        return 42


class ReducesToNone(Exception):
    def __reduce__(self) -> Any:
        return print, ()


class ReducesToAnother(Exception):
    def __reduce__(self) -> Any:
        return ValueError, self.args


class ReducesToWrongArguments(Exception):
    def __reduce__(self) -> Any:
        return type(self), (1, 2, 3), {"bad": threading}

    def __init__(self, only: str) -> None:
        super().__init__(only)


class ReducesToExit(Exception):
    """Can be pickled, and exits the process that unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (9,)


class FailsInSetState(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.extra = "kept"

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not to be read")


class ReadsItselfDifferently(Exception):
    """Its constructor changes the message."""

    def __init__(self, message: str) -> None:
        super().__init__(f"changed: {message}")


class WithSlots(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class WithProperty(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self._code = code

    @property
    def code(self) -> int:
        return self._code * 2


class AnyAttribute(Exception):
    """Has every attribute, like a proxy."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyAttribute(name)


class ReadOnlyAttributes(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.__dict__["code"] = code

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"{name} is read-only")


class NeverEqual(Exception):
    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


@dataclass
class DataError(Exception):
    code: int
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class OwnOSError(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "nothing there", path)
        self.tries = 3


class TwoParents(ValueError, KeyError):
    """Has two base classes."""


class OwnBase(BaseException):
    """Not an `Exception`, so handlers of `Exception` do not catch it."""


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], exit_code: int) -> OwnGroup:
        self = super().__new__(cls, f"exit code: {exit_code}", errors)
        self.exit_code = exit_code
        return self

    def derive(self, excs: Any) -> OwnGroup:
        return OwnGroup(excs, self.exit_code)


class OneField(BaseModel):
    number: int
    rate: float = 0.5


def _pydantic() -> Exception:
    try:
        OneField(number="many", rate=[])  # type: ignore[arg-type]
    except ValueError as error:
        return error.with_traceback(None)
    raise AssertionError("unreachable")


def _natural(code: str) -> Exception:
    """Return what Python itself raises for a piece of code."""
    try:
        exec(compile(code, "<code>", "exec"), {})
    except Exception as error:  # noqa: BLE001 - of any kind
        return error.with_traceback(None)
    raise AssertionError("unreachable")


def _noted(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


def _with(error: BaseException, **attributes: Any) -> BaseException:
    error.__dict__.update(attributes)
    return error


def _chained(first: BaseException, *causes: BaseException) -> BaseException:
    error = first
    for cause in causes:
        error.__cause__ = cause
        error = cause
    return first


def _long_chain() -> BaseException:
    errors: list[BaseException] = [ValueError(number) for number in range(30)]
    return _chained(errors[0], *errors[1:])


def _changed() -> BaseException:
    error = DataError(3, ["a"])
    error.args = ("other", [1, {"two": 2}])
    del error.tags
    error.code = 4
    return error


# Each can be created in any process, and compares equal.
ERRORS: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("plain"),
    "no arguments": ValueError,
    "arguments of all kinds": lambda: ValueError(None, 1.5, ("a", [b"c"]), {"d": {1}}),
    "required arguments": lambda: NeedsTwo("a", 2),
    "keyword-only arguments": lambda: NeedsKeywords(code=3),
    "read-only args": lambda: ReadOnlyArgs("x"),
    "failing str": lambda: FailsInStr("x", 1),
    "endless str": lambda: EndlessStr("x"),
    "failing repr": lambda: FailsInRepr("x"),
    "failing reduce": lambda: _with(FailsInReduce("x"), code=7),
    "reduce that exits": lambda: ExitsInReduce("x"),
    "reduce to a number": lambda: ReducesToNumber("x"),
    "reduce to none": lambda: ReducesToNone("x"),
    "reduce to another": lambda: ReducesToAnother("x"),
    "reduce to wrong arguments": lambda: ReducesToWrongArguments("x"),
    "reduce to exit": lambda: ReducesToExit("x"),
    "failing setstate": lambda: FailsInSetState("x", 1),
    "changed message": lambda: ReadsItselfDifferently("x"),
    "slots": lambda: WithSlots("x", 7),
    "property": lambda: WithProperty(4),
    "any attribute": lambda: AnyAttribute("x"),
    "read-only attributes": lambda: ReadOnlyAttributes(5),
    "never equal": lambda: NeverEqual("x"),
    "dataclass": lambda: DataError(3, ["a"]),
    "frozen dataclass": lambda: FrozenError(3),
    "group": lambda: ExceptionGroup("all", [ValueError(1), ExceptionGroup("inner", [NeedsTwo("a", 1), KeyError("k")])]),
    "group of its own kind": lambda: OwnGroup([ValueError(1), NeedsKeywords(code=2)], 3),
    "group of base exceptions": lambda: BaseExceptionGroup("all", [OwnBase("x"), GeneratorExit()]),
    "a megabyte": lambda: ValueError("0123456789☃" * 95_000),
    "a megabyte in an attribute": lambda: _with(ValueError("x"), data=bytes(range(256)) * 4096),
    "unicode": lambda: ValueError("snow ☃ 한국어 \U0001f600", "\ud800", "\x00\x1e\r\n"),
    "notes": lambda: _noted(NeedsTwo("a", 2), "first", "second ☃", ""),
    "long chain": _long_chain,
    "os error": lambda: FileNotFoundError(2, "No such file", "a.txt"),
    "os error with two files": lambda: OSError(18, "Invalid link", "a.txt", None, "b.txt"),
    "os error of its own": lambda: OwnOSError("a.txt"),
    "connection error": lambda: ConnectionResetError(104, "reset"),
    "unicode error": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "unicode encode error": lambda: UnicodeEncodeError("ascii", "☃", 0, 1, "bad"),
    "key error": lambda: KeyError("k"),
    "stop iteration": lambda: StopIteration({"value": 1}),
    "json error": lambda: json.JSONDecodeError("bad", "{x", 1),
    "syntax error": lambda: SyntaxError("bad", ("a.py", 3, 5, "x = = 1", 3, 6)),
    "import error": lambda: ImportError("bad", name="some.module", path="/some/where"),
    "attribute error by python": lambda: _natural("[].appendd"),
    "name error by python": lambda: _natural("undefined_name"),
    "import error by python": lambda: _natural("import no_such_module.inner"),
    "syntax error by python": lambda: _natural("exec('x = = 1')"),
    "division": lambda: _natural("1 / 0"),
    "assertion": lambda: AssertionError("assert 1 == 2"),
    "pydantic's": _pydantic,
    "called process": lambda: subprocess.CalledProcessError(3, ["a", "b"], "out", "err"),
    "timeout": lambda: TimeoutError("late"),
    "cancelled": lambda: asyncio.CancelledError("stop"),
    "generator exit": lambda: GeneratorExit("x"),
    "base exception of its own": lambda: _with(OwnBase("x"), code=1),
    "two parents": lambda: TwoParents("x"),
    "recursion": lambda: RecursionError("too deep"),
    "memory": lambda: MemoryError("too much"),
    "a warning": lambda: UserWarning("careful"),
    "changed after it was made": _changed,
    "chain of awkward ones": lambda: _chained(NeedsTwo("a", 2), FailsInReduce("x"), WithSlots("y", 1), OwnOSError("z")),
}


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - of any kind
        return caught


class Raise(BaseAction):
    """Raises the error of this name."""

    def execute(self) -> None:
        raise ERRORS[self.params["name"]]()


class RaiseAll(BaseAction):
    """Raises all errors in one group, except the named ones."""

    def execute(self) -> None:
        made = [raised(make()) for name, make in ERRORS.items() if name not in self.params["but"]]
        raise BaseExceptionGroup("all", made)


class RaiseWithUnpicklableParts(BaseAction):
    """Raises an error with parts that cannot be pickled."""

    def execute(self) -> None:
        lock = threading.Lock()
        closed = socket.socket()
        closed.close()
        error = ValueError("text", lock, 3)
        raise _with(
            error,
            code=7,
            lock=lock,
            socket=closed,
            generator=(number for number in range(3)),
            scale=lambda number: number * 2,
            inner={"lock": lock},
        )


class RaiseCycle(BaseAction):
    """Raises an error that is the cause of its own cause."""

    def execute(self) -> None:
        first, second = ValueError("first"), KeyError("second")
        first.__cause__, second.__cause__ = second, first
        raise first


class RaiseSharedContext(BaseAction):
    """Raises a group of errors that were all raised while handling the same one."""

    def execute(self) -> None:
        members = []
        try:
            raise KeyError("the reason of all")
        except KeyError:
            for number in range(3):
                members.append(raised(ValueError(number)))
        raise ExceptionGroup("all", members)


class RaiseHidden(BaseAction):
    """Raises an error of a local class, which cannot be imported."""

    def execute(self) -> None:
        class Hidden(Exception):
            def __init__(self, *, code: int) -> None:
                super().__init__(f"hidden {code}")
                self.code = code

        raise Hidden(code=4)


class RaiseWithoutEnd(BaseAction):
    def execute(self) -> None:
        self.execute()


# Exits


class ExitParams(BaseModel):
    how: str


class Leave(BaseAction[ExitParams]):
    def execute(self) -> None:
        self.log("leaving")
        match self.params.how:
            case "number":
                sys.exit(3)
            case "text":
                sys.exit("text")
            case "nothing":
                raise SystemExit(None)
            case "bare":
                raise SystemExit


class LeaveAsync(BaseAction):
    async def execute(self) -> None:
        await asyncio.sleep(0)
        raise SystemExit(4)


# Errors by recipe

RECIPE_CLASSES: dict[str, type[BaseException]] = {
    cls.__name__: cls
    for cls in (
        *(ValueError, KeyError, RuntimeError, AssertionError, StopIteration, LookupError, Warning, GeneratorExit),
        *(Broken, NeedsTwo, FailsInStr, FailsInReduce, ReducesToNumber, ReducesToAnother, ReadOnlyArgs, OwnBase),
        *(DataError, TwoParents),
    )
}


@dataclass
class Recipe:
    """Describes an error, so that any process can create it."""

    cls: str
    args: list[Any]
    attributes: dict[str, Any]
    notes: list[str]
    cause: Recipe | None = None
    context: Recipe | None = None
    suppress: bool = False

    def make(self) -> BaseException:
        cls = RECIPE_CLASSES[self.cls]
        error = cls(*([*self.args, 1, 2][:2] if cls in (Broken, NeedsTwo, DataError) else self.args))
        error.__dict__.update(self.attributes)
        for note in self.notes:
            error.add_note(note)
        error.__cause__ = self.cause and self.cause.make()
        error.__context__ = self.context and self.context.make()
        error.__suppress_context__ = self.suppress
        return error


class RaiseRecipe(BaseAction):
    """Raises the error of a single recipe, or the errors of several in a group."""

    def execute(self) -> None:
        recipes = self.params["recipes"]
        if len(recipes) == 1:
            raise recipes[0].make()
        raise BaseExceptionGroup("all", [recipe.make() for recipe in recipes])

"""Context managers that run around an action, in its process, and the seeds of random number generators."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from synapse_runtime.errors import is_from_code

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


@dataclass(frozen=True)
class Around:
    """A context manager that runs around an action, in its process.

    Attributes:
        factory: A context manager, or a function or class that returns one.
        args: The arguments of the function or class.
        kwargs: The keyword arguments.
    """

    factory: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (_is_context_manager(self.factory) or callable(self.factory)):
            raise TypeError(f"around: expected a context manager or a function that returns one, got {self.factory!r}")
        if (self.args or self.kwargs) and not callable(self.factory):
            raise TypeError(f"around: {self.factory!r} is a context manager already, so it takes no arguments")

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return getattr(self.factory, "__qualname__", None) or type(self.factory).__qualname__

    def enter(self, stack: contextlib.ExitStack) -> None:
        """Enter the context manager.

        Raises:
            Exception: Whatever it raises, with a note; or a `TypeError` if it is none.
        """
        try:
            manager = self.factory
            if self.args or self.kwargs or not _is_context_manager(manager):
                manager = manager(*self.args, **self.kwargs)
            if not _is_context_manager(manager):
                raise TypeError(f"expected a context manager, {self.name} returned {manager!r}")
            stack.enter_context(manager)
        except BaseException as error:
            if is_from_code(error):
                error.add_note(f"while entering {self.name}, which runs around the action")
            raise


def _is_context_manager(value: Any) -> bool:
    return hasattr(type(value), "__enter__") and hasattr(type(value), "__exit__")


@contextlib.contextmanager
def entered(managers: Sequence[Around]) -> Iterator[None]:
    """Enter the context managers, the first one first, during the block."""
    with contextlib.ExitStack() as stack:
        for manager in managers:
            manager.enter(stack)
        yield


@dataclass(frozen=True)
class Seed:
    """The seed of random number generators.

    Attributes:
        value: The seed.
        libraries: The libraries with generators that the caller has imported, so that a worker seeds them too.
    """

    value: int
    libraries: tuple[str, ...] = ()

    @classmethod
    def of_this_process(cls, value: int | None) -> Seed | None:
        """Return the seed for the libraries that this process has imported; None without a value."""
        return None if value is None else cls(value, tuple(name for name in _GENERATORS if name in sys.modules))


def _seed_numpy(numpy: Any, value: int, stack: contextlib.ExitStack) -> None:
    stack.callback(numpy.random.set_state, numpy.random.get_state())
    numpy.random.seed(value % 2**32)


def _seed_torch(torch: Any, value: int, stack: contextlib.ExitStack) -> None:
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    torch.manual_seed(value % 2**63)


_GENERATORS: Final[dict[str, Callable[[Any, int, contextlib.ExitStack], None]]] = {
    "numpy": _seed_numpy,
    "torch": _seed_torch,
}


@contextlib.contextmanager
def seeded(seed: Seed | None) -> Iterator[None]:
    """Seed the generators of `random` and of libraries during the block; put their states back afterwards.

    Args:
        seed: The seed; None to do nothing. A library that cannot be imported here is left out.
    """
    if seed is None:
        yield
        return
    import random

    with contextlib.ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        random.seed(seed.value)
        for name in (name for name in _GENERATORS if name in seed.libraries or name in sys.modules):
            with contextlib.suppress(ImportError):
                _GENERATORS[name](importlib.import_module(name), seed.value, stack)
        yield

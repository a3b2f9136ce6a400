"""Code that tests patch, and actions that use it."""

import contextlib
import datetime
import os
import random
import time
from collections.abc import Iterator
from typing import Any

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

LIMIT = 3
CONFIG = {"rate": 1, "deep": {"x": 1}}
entered: list[str] = []


def load(path: str = "p", *, mode: str = "r") -> Any:
    """Return what the tests replace."""
    return f"{path}:{mode}"


async def fetch(url: str) -> str:
    """Raise an error: tests have no network."""
    raise OSError(f"no network: {url}")


class Client:
    """A client of a service."""

    timeout = 5

    def get(self, url: str, scale: int = 1) -> Any:
        """Raise an error: tests have no network."""
        raise OSError(f"no network: {url}")

    @classmethod
    def create(cls) -> "Client":
        """Return a client."""
        return cls()

    @staticmethod
    def clean(url: str) -> str:
        """Return the URL without its end."""
        return url.strip("/")

    @property
    def name(self) -> str:
        """Return the real name."""
        return "real"


client = Client()


@contextlib.contextmanager
def limited(limit: int, label: str = "") -> Iterator[None]:
    """Change the limit."""
    global LIMIT
    before, LIMIT = LIMIT, limit
    entered.append(label)
    try:
        yield
    finally:
        LIMIT = before


class Answer(BaseAction[dict[str, Any]]):
    """An action that calls a method of its own."""

    factor = 2

    def execute(self) -> str:
        """Return the answer."""
        return self.helper() * self.factor

    def helper(self) -> str:
        """Return what the tests replace."""
        return "real"


@action
def evaluate(params: dict[str, Any], context: Any) -> Any:
    """Return the value of an expression, in this module."""
    return eval(params["code"], {**globals(), "ctx": context})


@action
def variables(params: dict[str, Any], context: Any) -> Any:
    """Return variables as `os.environ` and the context have them."""
    return {name: (os.environ.get(name), context.env.get_str(name)) for name in params["names"]}


@action
def throw_dice(params: dict[str, Any], context: Any) -> list[float]:
    """Return a random number of each generator."""
    import numpy as np

    return [random.random(), float(np.random.random())]


@action
def now(params: dict[str, Any], context: Any) -> tuple[str, float]:
    """Return the time, by two clocks."""
    return datetime.datetime.now().isoformat(), time.time()

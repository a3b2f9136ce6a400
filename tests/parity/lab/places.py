"""Actions of each form that counts as an action, in a module of the plugin."""

import asyncio
from typing import Any, ClassVar

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

FACTOR = 2


class Number(BaseModel):
    number: int = 1


class Times(BaseAction[Number]):
    """A class that uses the plugin's own modules."""

    factor: ClassVar[int] = FACTOR

    def execute(self) -> int:
        return self.factor * self.params.number


class Threefold(Times):
    """An action that inherits its params and `execute`."""

    factor = 3


class Outer:
    class Inner(Times):
        """An action nested in a class."""

        factor = 5


@action
def bare(params: dict[str, Any], context: Any) -> int:
    return FACTOR * params["number"]


@action(name="renamed", params=Number)
def with_model(params: Number, context: Any) -> int:
    return FACTOR * params.number


@action(params=Number)
async def async_function(params: Number, context: Any) -> int:
    await asyncio.sleep(0)
    return FACTOR * params.number


class Async(BaseAction[Number]):
    async def execute(self) -> int:
        numbers = await asyncio.gather(*(self._one() for _ in range(FACTOR)))
        return sum(numbers)

    async def _one(self) -> int:
        await asyncio.sleep(0)
        return self.params.number


class Plain:
    """Any class with a params model and `execute`."""

    params_model = Number

    def __init__(self, params: Number, context: Any) -> None:
        self._number = params.number

    def execute(self) -> int:
        return FACTOR * self._number


class Dispatching:
    """A class with its own `dispatch`."""

    params_model = Number

    @classmethod
    def dispatch(cls, params: Number, context: Any) -> int:
        return FACTOR * params.number


class Yielding(BaseAction[Number]):
    def execute(self) -> Any:
        yield self.params.number


class AsyncYielding(BaseAction[Number]):
    async def execute(self) -> Any:
        yield self.params.number


@action
def yielding(params: dict[str, Any], context: Any) -> Any:
    yield 1


@action
async def async_yielding(params: dict[str, Any], context: Any) -> Any:
    yield 1


@action
def returning_a_generator(params: dict[str, Any], context: Any) -> Any:
    return (number for number in range(3))

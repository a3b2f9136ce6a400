"""Actions about params and results."""

from typing import Any

from pydantic import BaseModel

from synapse_runtime.action import BaseAction


class EchoParams(BaseModel):
    value: Any = None


class Echo(BaseAction[EchoParams]):
    """Returns what it gets."""

    def execute(self) -> Any:
        return self.params.value

"""A module that can be imported in any process except the one whose pid is in `NOT_IN_PROCESS`."""

import os

from pydantic import BaseModel

from synapse_runtime.action import BaseAction

if os.environ.get("NOT_IN_PROCESS") == str(os.getpid()):
    raise ImportError("not here")


class FarParams(BaseModel):
    epochs: int
    rate: float = 0.5


class Far(BaseAction[FarParams]):
    def execute(self) -> int:
        return self.params.epochs

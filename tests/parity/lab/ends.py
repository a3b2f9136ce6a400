"""Actions that end in unusual ways, at each stage of a run."""

import sys
from typing import Any

from pydantic import BaseModel, field_validator

from synapse_runtime.action import BaseAction


def end(how):
    if how == "exit":
        sys.exit("no GPU")
    if how == "exit 0":
        sys.exit(0)
    if how == "interrupt":
        raise KeyboardInterrupt("mine")
    if how == "generator":
        raise GeneratorExit


class Params(BaseModel):
    at_validation: str = ""
    at_run: str = ""
    at_result: str = ""
    at_result_check: str = ""

    @field_validator("at_validation")
    @classmethod
    def validate_end(cls, value: str) -> str:
        end(value)
        return value


class Checked(BaseModel):
    value: Any

    @field_validator("value")
    @classmethod
    def validate_end(cls, value: Any) -> Any:
        end(value)
        return value


class Ends(BaseAction[Params]):
    def execute(self):
        self.log("started")
        print("printed before")
        end(self.params.at_run)
        return EndsWhenPickled(self.params.at_result) if self.params.at_result else None


class EndsWhenPickled:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        end(self.how)
        return EndsWhenPickled, (self.how,)


class EndsAtResultCheck(BaseAction[Params]):
    result_model = Checked

    def execute(self):
        return {"value": self.params.at_result_check}


class EndsInDispatch:
    """Validates its params itself."""

    @classmethod
    def dispatch(cls, params, context):
        end(params["how"])

    def execute(self):
        raise AssertionError

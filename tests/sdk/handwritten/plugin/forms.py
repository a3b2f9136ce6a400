"""All forms of actions, and of their failures."""

import os
import time
from typing import Any

from pydantic import BaseModel, ValidationInfo, field_validator
from synapse_sdk.plugins.action import BaseAction
from synapse_sdk.plugins.context import PluginEnvironment, RuntimeContext
from synapse_sdk.plugins.decorators import action
from synapse_sdk.plugins.enums import PluginCategory

from .helpers import half


class NumberParams(BaseModel):
    number: int = 2


class NumberResult(BaseModel):
    number: int


class Unnamed(BaseAction[NumberParams]):
    """Takes name and category from the config file."""

    def execute(self):
        return [self.action_name, str(self.category), self.params.number]


class OwnRun(BaseAction[NumberParams]):
    def run(self):
        self.ctx.log("before", {})
        return {"from run": self.execute()}

    def execute(self):
        return half(self.params.number)


class OwnDispatch(BaseAction[NumberParams]):
    """Receives its params unvalidated."""

    @classmethod
    def dispatch(cls, params: dict[str, Any], ctx: RuntimeContext) -> Any:
        ctx.logger.info(f"{type(params).__name__} of {sorted(params)}")
        return cls(NumberParams(number=params["text"].count("o")), ctx).execute()

    def execute(self):
        return self.params.number


@action(name="function", params=NumberParams, result=NumberResult, category=PluginCategory.CUSTOM)
def function(params: NumberParams, context: RuntimeContext) -> NumberResult:
    context.log("called", {"number": params.number})
    return NumberResult(number=2 * params.number)


class CheckedParams(BaseModel):
    name: str
    project: int = 1

    @field_validator("project", mode="after")
    @classmethod
    def _exists(cls, value: int, info: ValidationInfo) -> int:
        if info.context["client"] is None and value == 404:
            raise ValueError("cannot check whether the project exists")
        return value


class Checked(BaseAction[CheckedParams]):
    """Validates its params with the platform's client, if there is one."""

    def execute(self):
        self.ctx.log("started", {})
        return self.params.model_dump()


class OtherResult(BaseAction[NumberParams]):
    result_model = NumberResult

    def execute(self):
        return {"number": "many"}


class Environment(BaseAction):
    def execute(self):
        env = self.ctx.env
        clients = [self.ctx.client, self.ctx.client_v1, self.ctx.v2_client, self.ctx.client_v2, self.ctx.checkpoint]
        return {
            "params": self.params,
            "job id": self.ctx.job_id,
            "clients": clients,
            "language": self.ctx.language,
            "env is one": isinstance(env, PluginEnvironment),
            "from config": [env.get_str("FROM_CONFIG"), os.environ["FROM_CONFIG"]],
            "given": [env.get_int("GIVEN"), env.get_list("LISTED"), env.get_bool("ON"), env.get_float("NONE", 0.5)],
            "directory": os.path.basename(os.getcwd()),
        }


class Fail(BaseAction[NumberParams]):
    def execute(self):
        self.set_progress(1, 2)
        try:
            return half(self.params.number)
        except ValueError as error:
            raise LookupError("no half") from error


class Sleep(BaseAction):
    def execute(self):
        self.logger.info("asleep")
        time.sleep(60)

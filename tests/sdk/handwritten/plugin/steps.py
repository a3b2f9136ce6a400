"""An action that works in steps."""

from dataclasses import dataclass, field

from pydantic import BaseModel
from synapse_sdk.plugins.action import BaseAction
from synapse_sdk.plugins.models.logger import LogLevel
from synapse_sdk.plugins.steps import BaseStep, BaseStepContext, Orchestrator, StepRegistry, StepResult


class StepsParams(BaseModel):
    files: list[str]
    fail: bool = False


@dataclass
class Files(BaseStepContext):
    names: list[str] = field(default_factory=list)
    found: int = 0


class Find(BaseStep[Files]):
    name = "find"
    progress_weight = 0.25
    progress_proportion = 25

    def execute(self, context):
        for number, name in enumerate(context.names, 1):
            context.set_progress(number, len(context.names))
            context.log("found", {"file": name}, name)
        context.found = len(context.names)
        context.log_message("{count} files", LogLevel.SUCCESS, count=context.found)
        context.set_metrics({"files": context.found})
        return StepResult(data={"files": context.found})

    def rollback(self, context, result):
        context.log("rolled back", dict(result.data))


class Skip(BaseStep[Files]):
    name = "skip"
    progress_weight = 0.25
    progress_proportion = 25

    def execute(self, context):
        raise AssertionError

    def can_skip(self, context):
        return True


class Store(BaseStep[Files]):
    name = "store"
    progress_weight = 0.5
    progress_proportion = 50

    def __init__(self, fail):
        self._fail = fail

    def execute(self, context):
        context.runtime_ctx.logger.info("storing")
        context.runtime_ctx.log_metric("store", "files", context.found)
        if self._fail:
            raise OSError("disk full")
        return StepResult()


class InSteps(BaseAction[StepsParams]):
    action_name = "steps"

    def run(self):
        context = Files(self.ctx, names=self.params.files)
        registry = StepRegistry[Files]()
        for step in (Find(), Skip(), Store(self.params.fail)):
            registry.register(step)
        done = Orchestrator(registry, context, progress_callback=self.set_progress).execute()
        return done | {"found": context.found, "skipped": [result.skipped for result in context.step_results]}

    def execute(self):
        raise NotImplementedError

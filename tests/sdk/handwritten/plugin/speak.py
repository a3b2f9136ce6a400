"""Actions that use every way of logging."""

from pydantic import BaseModel, Field
from synapse_sdk.i18n import LocalizedMessage
from synapse_sdk.plugins.action import BaseAction
from synapse_sdk.plugins.enums import PluginCategory
from synapse_sdk.plugins.models.logger import LogLevel
from synapse_sdk.plugins.types import ModelWeights, YOLODataset

from .codes import Codes


class SpeakParams(BaseModel):
    count: int = Field(default=3, ge=1, description="How many images")
    image: str = "out/prediction.png"


class SpeakResult(BaseModel):
    count: int
    category: str


class Speak(BaseAction[SpeakParams]):
    action_name = "speak"
    category = PluginCategory.NEURAL_NET
    input_type = YOLODataset
    output_type = ModelWeights
    result_model = SpeakResult

    @classmethod
    def get_log_message_code_class(cls):
        return Codes

    def execute(self) -> SpeakResult:
        count = self.params.count
        self.ctx.log_message("as it is: {braces}")
        self.ctx.log_message("{who} has {count:03d}", LogLevel.WARNING, who="Kim", count=count)
        self.ctx.log_message({"en": "{count} images", "ko": "이미지 {count}개"}, LogLevel.SUCCESS, count=count)
        self.ctx.log_message({"en": "hello", "ko": "안녕하세요"}, language="ko")
        self.ctx.log_message({"en": "no such language"}, language="fr")
        self.ctx.log_message(
            LocalizedMessage(en="localized {count}", ko="현지화 {count}"), LogLevel.DANGER, count=count
        )
        self.ctx.log_message(Codes.BEGUN, count=count)
        self.ctx.log_message(Codes.STORED, LogLevel.ERROR, language="ko", step="store", count=count)
        self.log_message("by the action's own method", LogLevel.DEBUG)
        self.log_message(self.get_log_message_code_class().STORED, count=count)

        self.logger.info("info")
        self.logger.debug("debug")
        self.logger.warning("warning")
        self.logger.error("error")
        self.logger.critical("critical")
        self.logger.log(LogLevel.SUCCESS, "logged", {"by": "the logger"}, "out/log.txt", "last")

        self.ctx.log("epoch", {"number": 1, "loss": 0.5}, "out/model.bin", LogLevel.INFO)
        self.log("epoch", {"number": 2})
        self.ctx.log_dev_event("for developers", {"batch": 8})
        self.ctx.log_dev_event("for developers, without data")
        self.ctx.log_metric("train", "loss", 0.25, accuracy=0.75)
        self.log_metric("validation", "epoch", 3, iou=0.5)
        self.ctx.log_visualization("validation", "epoch 3", 0, self.params.image, title="the first")
        self.log_visualization("validation", "epoch 3", 1, self.params.image)
        self.ctx.log_trials(
            trials={"one": {"loss": 0.1}}, base=["epoch"], hyperparameters=["rate"], metrics=["loss"], best_trial="one"
        )
        self.ctx.log_trials({"trials": {}, "best_trial": ""})

        self.set_progress(0, 10)
        self.ctx.set_progress(5, 10, "load")
        self.set_progress(10, 10, category="former name of step")
        self.logger.set_progress(1, 2, "by the logger")
        self.ctx.set_metrics({"loss": 0.5, "epoch": 1}, "train")
        self.set_metrics({"loss": 0.25}, "train")
        self.logger.set_metrics({"files": 2}, "by the logger")
        self.ctx.end_log()
        return SpeakResult(count=count, category=self.category)


class SpeakKorean(BaseAction):
    """Logs in the language of the variable SYNAPSE_LANGUAGE."""

    def execute(self):
        self.ctx.log_message({"en": "hello", "ko": "안녕하세요"})
        self.ctx.log_message(Codes.STORED, count=1)
        self.ctx.log_message(Codes.BEGUN, count=1)
        return self.ctx.env.get_str("SYNAPSE_LANGUAGE")

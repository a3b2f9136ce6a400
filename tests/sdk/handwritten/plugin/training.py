"""An action based on the SDK's training action."""

from pathlib import Path

from pydantic import BaseModel
from synapse_sdk.plugins.actions.train import BaseTrainAction
from synapse_sdk.plugins.actions.train.context import TrainContext
from synapse_sdk.plugins.types import ModelWeights


class TrainParams(BaseModel):
    data: str
    weights: str
    epochs: int = 2


class TrainResult(BaseModel):
    weights_path: str
    final_loss: float


class Train(BaseTrainAction[TrainParams]):
    """Has local data, so the steps that download data from the platform are missing."""

    action_name = "train"
    output_type = ModelWeights

    def create_context(self) -> TrainContext:
        context = super().create_context()
        context.dataset = {"path": self.params.data}
        return context

    def execute(self, data_path: Path, checkpoint):
        loss = float(len(data_path.read_text()))
        for epoch in range(self.params.epochs):
            loss /= 2
            self.set_progress(epoch + 1, self.params.epochs)
            self.report_metrics({"loss": loss}, epoch=epoch)
        Path(self.params.weights).write_text(str(loss))
        self.set_metrics({"final_loss": loss, "checkpoint": checkpoint}, "training")
        return TrainResult(weights_path=self.params.weights, final_loss=loss)

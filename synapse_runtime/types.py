"""Types of data that actions take and produce, for `input_type` and `output_type`."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "COCODataset",
    "DMDataset",
    "DMv1Dataset",
    "DMv2Dataset",
    "DataType",
    "Dataset",
    "InferenceResults",
    "Model",
    "ModelWeights",
    "ONNXModel",
    "PascalVOCDataset",
    "Result",
    "TensorRTModel",
    "TestResults",
    "YOLODataset",
]


class DataType:
    """Base class of all data types.

    Attributes:
        name: Its name in config files.
        format: Its file format, if it has one.
        description: A one-line description.

    Example:
        >>> YOLODataset.is_compatible_with(Dataset), YOLODataset.is_compatible_with(COCODataset)
        (True, False)
    """

    name: ClassVar[str] = "data"
    format: ClassVar[str | None] = None
    description: ClassVar[str] = ""

    @classmethod
    def is_compatible_with(cls, other: type[DataType]) -> bool:
        """Return whether one of the two is a subclass of the other."""
        return issubclass(cls, other) or issubclass(other, cls)


class Dataset(DataType):
    """Any dataset."""

    name = "dataset"
    description = "any dataset"


class DMDataset(Dataset):
    """A Datamaker dataset."""

    name = "dm_dataset"
    format = "dm"
    description = "a Datamaker dataset"


class DMv1Dataset(DMDataset):
    """A Datamaker dataset, version 1."""

    name = "dm_v1_dataset"
    format = "dm_v1"
    description = "a Datamaker dataset, version 1"


class DMv2Dataset(DMDataset):
    """A Datamaker dataset, version 2."""

    name = "dm_v2_dataset"
    format = "dm_v2"
    description = "a Datamaker dataset, version 2"


class YOLODataset(Dataset):
    """A YOLO dataset, with its `dataset.yaml`."""

    name = "yolo_dataset"
    format = "yolo"
    description = "a dataset for YOLO"


class COCODataset(Dataset):
    """A dataset in COCO format."""

    name = "coco_dataset"
    format = "coco"
    description = "a dataset in COCO format"


class PascalVOCDataset(Dataset):
    """A dataset in Pascal VOC format."""

    name = "pascal_voc_dataset"
    format = "pascal"
    description = "a dataset in Pascal VOC format"


class Model(DataType):
    """Any model."""

    name = "model"
    description = "any model"


class ModelWeights(Model):
    """Weights of a trained model."""

    name = "model_weights"
    format = "weights"
    description = "weights of a trained model"


class ONNXModel(Model):
    """A model in ONNX format."""

    name = "onnx_model"
    format = "onnx"
    description = "a model in ONNX format"


class TensorRTModel(Model):
    """A model in TensorRT format."""

    name = "tensorrt_model"
    format = "tensorrt"
    description = "a model in TensorRT format"


class Result(DataType):
    """Any result."""

    name = "result"
    description = "any result"


class TestResults(Result):
    """The metrics of a model test."""

    __test__ = False  # not a test class for pytest
    name = "test_results"
    format = "metrics"
    description = "the metrics of a model test"


class InferenceResults(Result):
    """The predictions of a model."""

    name = "inference_results"
    format = "predictions"
    description = "the predictions of a model"

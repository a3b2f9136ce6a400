"""Kinds of data that actions take and give, for `input_type` and `output_type`."""

from __future__ import annotations

from typing import ClassVar


class DataType:
    """Root of all kinds.

    Attributes:
        name: What config files call it.
        format: Its format on disk, where it has one.
        description: One line for people.

    Example:
        >>> YOLODataset.is_compatible_with(Dataset), YOLODataset.is_compatible_with(COCODataset)
        (True, False)
    """

    name: ClassVar[str] = "data"
    format: ClassVar[str | None] = None
    description: ClassVar[str] = ""

    @classmethod
    def is_compatible_with(cls, other: type[DataType]) -> bool:
        """Tell whether one of the two is a kind of the other."""
        return issubclass(cls, other) or issubclass(other, cls)


class Dataset(DataType):
    """Any dataset."""

    name = "dataset"
    description = "any dataset"


class DMDataset(Dataset):
    """A dataset of Datamaker's."""

    name = "dm_dataset"
    format = "dm"
    description = "a dataset of Datamaker's"


class DMv1Dataset(DMDataset):
    """One of its first format."""

    name = "dm_v1_dataset"
    format = "dm_v1"
    description = "a dataset of Datamaker's, version 1"


class DMv2Dataset(DMDataset):
    """One of its second format."""

    name = "dm_v2_dataset"
    format = "dm_v2"
    description = "a dataset of Datamaker's, version 2"


class YOLODataset(Dataset):
    """A dataset for YOLO, with its `dataset.yaml`."""

    name = "yolo_dataset"
    format = "yolo"
    description = "a dataset for YOLO"


class COCODataset(Dataset):
    """A dataset in COCO's format."""

    name = "coco_dataset"
    format = "coco"
    description = "a dataset in COCO's format"


class PascalVOCDataset(Dataset):
    """A dataset in Pascal VOC's format."""

    name = "pascal_voc_dataset"
    format = "pascal"
    description = "a dataset in Pascal VOC's format"


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
    """A model in ONNX's format."""

    name = "onnx_model"
    format = "onnx"
    description = "a model in ONNX's format"


class TensorRTModel(Model):
    """A model in TensorRT's format."""

    name = "tensorrt_model"
    format = "tensorrt"
    description = "a model in TensorRT's format"


class Result(DataType):
    """Any result."""

    name = "result"
    description = "any result"


class TestResults(Result):
    """What a test of a model measured."""

    __test__ = False  # nothing for pytest to collect
    name = "test_results"
    format = "metrics"
    description = "what a test of a model measured"


class InferenceResults(Result):
    """What a model predicted."""

    name = "inference_results"
    format = "predictions"
    description = "what a model predicted"

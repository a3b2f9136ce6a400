"""Enums of config files and plugins: categories, methods, types of data and annotations."""

from __future__ import annotations

from enum import StrEnum

from synapse_runtime.modes import MODES

__all__ = [
    "ACTION_DEFAULT_METHODS",
    "AnnotationCategory",
    "AnnotationTool",
    "AnnotationType",
    "ContainerKind",
    "DataType",
    "ExecutionMode",
    "MetricsCategory",
    "PackageManager",
    "PluginCategory",
    "RunMethod",
    "SmartToolType",
]


class PluginCategory(StrEnum):
    """The category of a plugin.

    Example:
        >>> PluginCategory("neural_net") is PluginCategory.NEURAL_NET
        True
    """

    NEURAL_NET = "neural_net"
    EXPORT = "export"
    UPLOAD = "upload"
    SMART_TOOL = "smart_tool"
    POST_ANNOTATION = "post_annotation"
    PRE_ANNOTATION = "pre_annotation"
    DATA_VALIDATION = "data_validation"
    CUSTOM = "custom"


class RunMethod(StrEnum):
    """How an action runs in production."""

    JOB = "job"
    TASK = "task"
    SERVE = "serve"
    RESTAPI = "restapi"


# How actions of these names run in production, unless the config file says otherwise.
ACTION_DEFAULT_METHODS = {
    "upload": RunMethod.JOB,
    "export": RunMethod.JOB,
    "download": RunMethod.JOB,
    "convert": RunMethod.JOB,
    "train": RunMethod.JOB,
    "test": RunMethod.JOB,
    "deployment": RunMethod.JOB,
    "inference": RunMethod.SERVE,
    "to_task": RunMethod.JOB,
    "auto_label": RunMethod.TASK,
}


# Where `run_plugin` runs an action.
ExecutionMode = StrEnum("ExecutionMode", [(name.upper(), name) for name in MODES], module=__name__)  # type: ignore[misc]


class PackageManager(StrEnum):
    """The package manager that installs a plugin's requirements."""

    PIP = "pip"
    UV = "uv"


class MetricsCategory(StrEnum):
    """The data set that metrics belong to."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class DataType(StrEnum):
    """The type of data that a plugin processes."""

    IMAGE = "image"
    TEXT = "text"
    VIDEO = "video"
    PCD = "pcd"
    AUDIO = "audio"
    DATA = "data"


class AnnotationCategory(StrEnum):
    """The type of data that is annotated."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    TEXT = "text"
    PCD = "pcd"
    PROMPT = "prompt"
    TIME_SERIES = "time_series"


class AnnotationType(StrEnum):
    """The type of annotation that a smart tool creates."""

    BBOX = "bbox"
    POLYGON = "polygon"
    POINT = "point"
    LINE = "line"
    MASK = "mask"
    LABEL = "label"


class AnnotationTool(StrEnum):
    """The tool that annotations are made with."""

    BOUNDING_BOX = "bounding_box"
    POLYGON = "polygon"
    POLYLINE = "polyline"
    KEYPOINT = "keypoint"
    SEGMENTATION = "segmentation"
    RELATION = "relation"
    CLASSIFICATION = "classification"
    ANNOTATION_GROUP = "annotationGroup"
    NAMED_ENTITY = "named_entity"
    BOUNDING_BOX_3D = "3d_bounding_box"
    SEGMENTATION_3D = "3d_segmentation"
    PROMPT = "prompt"
    ANSWER = "answer"
    TIME_RANGE = "time_range"


class SmartToolType(StrEnum):
    """The interaction mode of a smart tool."""

    INTERACTIVE = "interactive"
    AUTOMATIC = "automatic"
    SEMI_AUTOMATIC = "semi_automatic"


class ContainerKind(StrEnum):
    """The purpose of a container of the platform."""

    PLUGIN_RUNTIME = "plugin_runtime"
    CODE_SERVER = "code_server"

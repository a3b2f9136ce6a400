"""Create plugins with the SDK's own `synapse plugin create`, one of each category."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.cli.processes import status_of, terminal

# If both packages are installed, the `synapse` script is that of the package installed last.
SYNAPSE_OF_SDK = [sys.executable, "-W", "ignore", "-c", "from synapse_sdk.cli import cli; cli()"]

# The prompts of the command for each category that have no option; the first choice is selected.
QUESTIONS: dict[str, list[str]] = {
    "neural_net": ["Data type:", "Tasks"],
    "smart_tool": ["Annotation category:", "Annotation type:", "Smart tool type:"],
    "upload": ["Supported data types"],
    "export": [],
    "data_validation": [],
    "pre_annotation": [],
    "post_annotation": [],
    "custom": [],
}


@dataclass(frozen=True)
class Call:
    """One call of an action.

    Attributes:
        params: `{data}` is a dataset, `{out}` an output directory, `{new}` a text that is unique to the run.
    """

    category: str
    action: str
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.category}-{self.action}" + ("" if self.params else "-without_params")


# All actions with valid params; those with required params also without any.
CALLS = [
    Call("neural_net", "test"),
    Call("neural_net", "convert", {"path": "{data}", "target_format": "imagefolder", "output_dir": "{out}"}),
    Call("neural_net", "convert"),
    Call("neural_net", "download", {"dataset": 1}),
    Call("neural_net", "download"),
    Call("neural_net", "train", {"dataset": 1, "epochs": 2}),
    Call("neural_net", "train"),
    Call("neural_net", "deployment"),
    Call("neural_net", "inference"),
    Call("smart_tool", "auto_label", {"plugin": "detector", "version": "{new}"}),
    Call("smart_tool", "auto_label"),
    Call("upload", "upload", {"name": "photos", "path": "{data}", "storage": 1, "data_collection": 1}),
    Call("upload", "upload"),
    Call("export", "export"),
    Call("data_validation", "validate"),
    Call("pre_annotation", "pre_annotate"),
    Call("pre_annotation", "to_task", {"name": "tasks", "project": 1, "agent": 1}),
    Call("pre_annotation", "to_task"),
    Call("post_annotation", "post_annotate"),
    Call("custom", "main"),
]


def create_all(directory: Path) -> dict[str, Path]:
    """Create a plugin of each category, in parallel; return their directories."""
    env = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1"}
    with contextlib.ExitStack() as stack:
        children = {}
        for category in QUESTIONS:
            options = ["--path", str(directory), "--name", category, "--code", _code(category), "--category", category]
            command = [*SYNAPSE_OF_SDK, "plugin", "create", *options, "--yes"]
            children[category] = stack.enter_context(terminal(command, directory, env))
        for category, child in children.items():
            for question in QUESTIONS[category]:
                child.expect_exact(question)
                child.send("\r")
            assert status_of(child) == 0, child.before
    return {category: directory / f"synapse-{_code(category)}-plugin" for category in QUESTIONS}


def _code(category: str) -> str:
    return category.replace("_", "-")


def write_dataset(directory: Path) -> Path:
    """Write a dataset of one image with one bounding box, in the SDK's own format."""
    box = {"id": "abcdefghij", "classification": "car", "attrs": [], "data": [8, 8, 16, 16]}
    labels = {"classification": {"bounding_box": ["car"]}, "images": [{"bounding_box": [box]}]}
    for name in ("json", "original_files"):
        (directory / name).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(directory / "original_files" / "one.png")
    (directory / "json" / "one.json").write_text(json.dumps(labels))
    return directory

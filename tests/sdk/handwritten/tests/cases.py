"""Calls of this plugin's actions and their expected outcomes, also with the SDK's own executor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainly import outcome

Events = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        error: Class name and message of the exception.
        events: Kind, name, data, level, step and file of each event.
    """

    action: str
    params: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    result: Any = None
    error: tuple[str, str] | None = None
    events: Events = field(default_factory=list)

    def params_in(self, directory: Path) -> dict[str, Any]:
        """Return the params, with the action's files in this directory."""
        return {
            name: value.format(tmp=directory) if isinstance(value, str) else value
            for name, value in self.params.items()
        }

    def outcome(self) -> dict[str, Any]:
        """Return the expected outcome, as plain data."""
        plain = outcome(self.result, None, [list(event) for event in self.events])
        return plain | {"error": self.error and list(self.error)}


def message(text: str, level: str = "info", step: str | None = None, key: str | None = None) -> tuple[Any, ...]:
    return "message", text, {} if key is None else {"key": key}, level, step, None


def log(name: str, data: Any, level: str = "info", step: str | None = None, file: str | None = None) -> tuple[Any, ...]:
    return "log", name, data, level, step, file


def progress(current: int, total: int, step: str | None = None) -> tuple[Any, ...]:
    return "progress", "", {"current": current, "total": total}, "info", step, None


def metrics(values: Any, step: str) -> tuple[Any, ...]:
    return "metrics", "", values, "info", step, None


def metric(category: str, key: str, value: float, step: str | None = None, **more: float) -> tuple[Any, ...]:
    return log("metric", {"category": category, "key": key, "value": value, "metrics": more}, step=step)


SPOKEN = [
    message("as it is: {braces}"),
    message("Kim has 003", "warning"),
    message("3 images", "success"),
    message("안녕하세요"),
    message("no such language"),
    message("localized 3", "danger"),
    message("begun with 3 images", key="HANDWRITTEN_BEGUN"),
    message("이미지 3개 저장", "success", "store", key="HANDWRITTEN_STORED"),
    message("by the action's own method", "debug"),
    message("stored 3 images", "success", key="HANDWRITTEN_STORED"),
    message("info"),
    message("debug", "debug"),
    message("warning", "warning"),
    message("error", "error"),
    message("critical", "critical"),
    log("logged", {"by": "the logger"}, "success", "last", "out/log.txt"),
    log("epoch", {"number": 1, "loss": 0.5}, file="out/model.bin"),
    log("epoch", {"number": 2}),
    log("dev_event", {"message": "for developers", "data": {"batch": 8}}, "debug"),
    log("dev_event", {"message": "for developers, without data", "data": None}, "debug"),
    metric("train", "loss", 0.25, accuracy=0.75),
    metric("validation", "epoch", 3, iou=0.5),
    log(
        "visualization",
        {"category": "validation", "group": "epoch 3", "index": 0, "title": "the first"},
        file="out/prediction.png",
    ),
    log("visualization", {"category": "validation", "group": "epoch 3", "index": 1}, file="out/prediction.png"),
    log(
        "trials",
        {
            "base": ["epoch"],
            "trials": {"one": {"loss": 0.1}},
            "hyperparameters": ["rate"],
            "metrics": ["loss"],
            "best_trial": "one",
        },
    ),
    log("trials", {"trials": {}, "best_trial": ""}),
    progress(0, 10),
    progress(5, 10, "load"),
    progress(10, 10, "former name of step"),
    progress(1, 2, "by the logger"),
    metrics({"loss": 0.5, "epoch": 1}, "train"),
    metrics({"loss": 0.25}, "train"),
    metrics({"files": 2}, "by the logger"),
    message("Plugin run is complete.", key="PLUGIN_RUN_COMPLETE"),
]

CASES = {
    "speak": Case("speak", {"count": 3}, result={"SpeakResult": {"count": 3, "category": "neural_net"}}, events=SPOKEN),
    "speak_korean": Case(
        "speak_korean",
        env={"SYNAPSE_LANGUAGE": "ko"},
        result="ko",
        events=[
            message("안녕하세요"),
            message("이미지 1개 저장", "success", key="HANDWRITTEN_STORED"),
            message("begun with 1 images", key="HANDWRITTEN_BEGUN"),
        ],
    ),
    "unnamed": Case("unnamed", {"number": 5}, result=["unnamed", "neural_net", 5]),
    "own_run": Case("own_run", {"number": 4}, result={"from run": 2}, events=[log("before", {})]),
    "own_dispatch": Case("own_dispatch", {"text": "foo"}, result=2, events=[message("dict of ['text']")]),
    "checked": Case("checked", {"name": "x"}, result={"name": "x", "project": 1}, events=[log("started", {})]),
    "fail": Case("fail", {"number": 3}, error=("LookupError", "no half"), events=[progress(1, 2)]),
}

# Features that only the SDK has: steps and the base class of training actions.
FOUND = [
    progress(1, 1, "find"),
    log("found", {"file": "a"}, step="find", file="a"),
    message("1 files", "success", "find"),
    metrics({"files": 1}, "find"),
    progress(100, 100, "find"),
    progress(100, 100, "skip"),
    message("storing", step="store"),
    metric("store", "files", 1, "store"),
]
CASES_OF_SDK = {
    "steps": Case(
        "steps",
        {"files": ["a"]},
        result={
            "success": True,
            "steps_executed": 2,
            "steps_total": 3,
            "found": 1,
            "skipped": [False, True, False],
        },
        events=[*FOUND, progress(100, 100, "store")],
    ),
    "steps_fail": Case(
        "steps",
        {"files": ["a"], "fail": True},
        error=("RuntimeError", "Step 'store' failed: disk full"),
        events=[*FOUND, log("rolled back", {"files": 1}, step="store")],
    ),
    "train": Case(
        "train",
        {"data": "data/numbers.txt", "weights": "{tmp}/weights.txt"},
        result={"success": True, "steps_executed": 2, "steps_total": 2},
        events=[
            progress(1, 2, "train"),
            metric("train", "epoch", 0, "train", loss=1.5),
            progress(2, 2, "train"),
            metric("train", "epoch", 1, "train", loss=0.75),
            metrics({"final_loss": 0.75, "checkpoint": None}, "training"),
            progress(100, 100, "train"),
            progress(100, 100, "model_upload"),
        ],
    ),
}

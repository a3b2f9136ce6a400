"""Actions that emit events."""

from __future__ import annotations

import threading
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
from lab.values import Color, Point

from synapse_runtime.action import BaseAction


class Level(Enum):
    LOUD = "ERROR"


LONG = "0123456789☃" * 95_000


class Speak(BaseAction):
    """Emits an event with every method and argument."""

    def execute(self) -> str:
        ctx, logger = self.ctx, self.logger
        ctx.log("bare")
        ctx.log("full", {"a": 1, "b": [None, 2.5]}, "out/model.bin", level="debug", step="train")
        ctx.log("with path", {}, Path("out") / "x.txt", level="WARNING")
        ctx.log("with enum", level=Level.LOUD)
        self.log("from the action", {"c": (1, 2)}, file="y.txt")
        ctx.set_progress(0, 10)
        ctx.set_progress(5, 10, "load")
        self.set_progress(2.5, 2.5, step="train")
        ctx.set_metrics({"loss": 0.5, "epoch": 1}, "train")
        self.set_metrics({}, step="nothing")
        ctx.log_message("plain {braces}")
        ctx.log_message("{name} is {age:03d}", "warning", name="Kim", age=7)
        self.log_message("in a step", "error", step="train")
        logger.debug("debug")
        logger.info("info %s %d", "text", 3)
        logger.warning("warning %(a)s", {"a": [1]})
        logger.error("100%")
        logger.critical("critical")
        logger.log(25, "between")
        try:
            {}["missing"]
        except KeyError:
            logger.exception("failed at %s", "x")
        logger.info("with %s", "extra", extra={"run": 5}, stacklevel=1)
        return "done"


class SpeakOddly(BaseAction):
    """Emits events with awkward data."""

    def execute(self) -> None:
        self.log(
            "values", {"color": Color.RED, "point": Point(1.0, 2.0), "path": Path("a"), "set": {1}, "large": 2**70}
        )
        self.log("arrays", {"array": numpy.arange(3), "scalar": numpy.float32(0.5), "nan": float("nan")})
        self.log("keys", {1: "one", None: "none", "two": 2})  # type: ignore[dict-item]
        self.log("snow ☃ \U0001f600 \x1e\r\n\x00", {"half": "\ud800"})
        self.log_message("line one\nline two\x1e+ \r")
        self.log_message(LONG)
        self.log("long", {"text": LONG, "bytes": bytes(range(256)) * 100})
        self.log("code", {"class": Point, "type": int, "function": say_nothing})
        values = [1]
        self.log("now", {"values": values})
        values.append(2)
        self.log("later", {"values": values})
        self.set_metrics({"loss": numpy.float64(0.5)}, "train")


def say_nothing() -> None:
    """Used as event data, never called."""


class SpeakUnpicklably(BaseAction):
    """Emits events with data that cannot be pickled."""

    def execute(self) -> str:
        lock = threading.Lock()
        self.log("lock", {"lock": lock, "ok": 1})
        self.log("closure", {"closure": lambda: lock, "ok": 2})
        self.log("last")
        return "done"


class SpeakAndFail(BaseAction):
    def execute(self) -> None:
        self.log("before")
        self.set_progress(1, 2)
        self.logger.warning("soon")
        raise ValueError("failed")


class SpeakMuch(BaseAction):
    def execute(self) -> int:
        for number in range(250):
            self.log("log", {"number": number})
            self.set_progress(number, 250)
            self.set_metrics({"number": number}, "train")
            self.logger.info("message %d", number)
        return 1000


class SpeakMedley(BaseAction):
    """Emits the events of three other actions."""

    def execute(self) -> None:
        for other in (Speak, SpeakOddly, SpeakMuch):
            other.execute(self)


class SpeakWrongly(BaseAction):
    """Makes the named invalid call."""

    def execute(self) -> None:
        self.log("before")
        match self.params["call"]:
            case "progress beyond":
                self.set_progress(11, 10)
            case "progress of nan":
                self.set_progress(float("nan"), 10)
            case "metrics without step":
                self.set_metrics({}, "")
            case "metrics without names":
                self.set_metrics([1], "train")  # type: ignore[arg-type]
            case "unknown value":
                self.log_message("{name}", other=1)


class Play(BaseAction):
    """Makes the given calls: each a method of the context or its logger, with positional and keyword arguments."""

    def execute(self) -> int:
        for method, positional, named in self.params["calls"]:
            call: Any = self.ctx.logger if method.startswith("logger.") else self.ctx
            getattr(call, method.removeprefix("logger."))(*positional, **named)
        return len(self.params["calls"])

"""Events that an action emits while it runs, and the views of them that tests assert on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Event", "Progress", "StepMetrics"]

Kind = Literal["log", "progress", "metrics", "message"]
Level = Literal["debug", "info", "success", "warning", "danger", "error", "critical"]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of an action.

    Attributes:
        kind: `log` (`ctx.log`), `progress`, `metrics`, or `message` (`ctx.log_message`, `ctx.logger`).
        name: The log's event name; the message's text; empty for progress and metrics.
        data: The log's data; `{"current", "total"}` of progress; the values of metrics; the `key` of a message, if it
            has one.
        level: `debug`, `info`, `success`, `warning`, `danger`, `error` or `critical`.
        step: The step that it belongs to, if any. Metrics always have one.
        file: A file that belongs to it, as given by the action.
        time: Its time in seconds since the epoch.

    Example:
        >>> Event("log", "epoch_complete", {"epoch": 3}).data["epoch"]
        3
    """

    kind: Kind
    name: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    level: str = "info"
    step: str | None = None
    file: str | None = None
    time: float = field(default_factory=time.time, compare=False)


def progress_event(current: float, total: float, step: str | None = None) -> Event:
    """Return the event of `set_progress`.

    Raises:
        ValueError: `total` is not positive, or `current` is not between 0 and `total`.
    """
    if not total > 0 or not 0 <= current <= total:
        raise ValueError(
            f"set_progress({current!r}, {total!r}): total must be positive, and current between 0 and total"
        )
    return Event("progress", "", {"current": current, "total": total}, step=step)


class Progress(NamedTuple):
    """Progress of an action: `current` of `total`, in the action's own unit.

    Example:
        >>> Progress(5, 20).percent
        25.0
    """

    current: float
    total: float

    @property
    def percent(self) -> float:
        """The progress in percent, from 0 to 100."""
        return 100.0 * self.current / self.total if self.total else 0.0


class StepMetrics(dict[str, Any]):
    """The metrics of one step: a dict with the latest value of each; `history` has every report.

    Example:
        >>> events = [Event("metrics", data={"loss": loss}, step="train") for loss in (0.5, 0.2)]
        >>> train = metrics_by_step(events)["train"]
        >>> train["loss"], [report["loss"] for report in train.history]
        (0.2, [0.5, 0.2])
    """

    history: list[dict[str, Any]]

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self.history = [dict(report) for report in history]
        for report in self.history:
            self.update(report)


def metrics_by_step(events: Iterable[Event]) -> dict[str, StepMetrics]:
    """Group the metrics in `events` by step; steps are in order of first appearance."""
    history: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.kind == "metrics" and event.step is not None:
            history.setdefault(event.step, []).append(event.data)
    return {step: StepMetrics(reports) for step, reports in history.items()}

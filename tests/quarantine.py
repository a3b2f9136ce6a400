"""Retry the tests listed in `quarantine.txt` once, with pytest-rerunfailures, and list them in the summary."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

FILE = Path(__file__).with_name("quarantine.txt")
_FORMAT = "expected `test id | YYYY-MM-DD | symptom | what is known`"


class Entry(NamedTuple):
    """An entry of the quarantine file."""

    test: str
    since: str
    symptom: str
    known: str


def entries(text: str) -> Iterator[Entry]:
    """Yield the entries of a quarantine file.

    Raises:
        ValueError: An entry is incomplete or has an invalid date; the message has the line number.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != len(Entry._fields) or not all(parts):
            raise ValueError(f"line {number}: {_FORMAT}, got {line!r}")
        try:
            datetime.date.fromisoformat(parts[1])
        except ValueError:
            raise ValueError(f"line {number}: {_FORMAT}, got the date {parts[1]!r}") from None
        yield Entry(*parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quarantine", metavar="FILE", default=str(FILE), help="file that lists tests to retry once")


def pytest_configure(config: pytest.Config) -> None:
    path = Path(config.getoption("--quarantine"))
    try:
        quarantine = Quarantine(entries(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise pytest.UsageError(f"{path}: {error}") from None
    config.pluginmanager.register(quarantine, "quarantine")


class Quarantine:
    """Marks the tests of the file for a retry, and lists their outcomes."""

    def __init__(self, found: Iterable[Entry]) -> None:
        self._entries = {entry.test: entry for entry in found}
        self._outcomes: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        # If the plugin is disabled, such as when a single test is run by hand, nothing is retried.
        if config.pluginmanager.hasplugin("rerunfailures"):
            for item in items:
                if item.nodeid in self._entries:
                    item.add_marker(pytest.mark.flaky(reruns=1))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._entries and (report.when == "call" or report.outcome != "passed"):
            self._outcomes.setdefault(report.nodeid, []).append(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._outcomes:
            terminalreporter.section("quarantine")
        for test, outcomes in self._outcomes.items():
            _, since, symptom, known = self._entries[test]
            terminalreporter.write_line(f"{', then '.join(outcomes)}: {test} (since {since}: {symptom}; {known})")

"""Writes the results of a session as JSON; `synapse plugin test --json` loads this plugin and prints them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

_OPTION = "--synapse-results-to"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that sets where the results are written."""
    parser.addoption(
        _OPTION, type=int, metavar="DESCRIPTOR", help="Write the results as JSON to this open file descriptor."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect results in the process that gets all reports: with pytest-xdist, the controller."""
    descriptor = config.getoption(_OPTION)
    if descriptor is not None and not hasattr(config, "workerinput"):
        os.set_inheritable(descriptor, False)
        config.pluginmanager.register(_Results(descriptor))


class _Results:
    """Collects the outcome of each test, and writes all of them when the session finishes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._tests: dict[str, dict[str, Any]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be collected as a test with the outcome `error`."""
        if report.failed:
            self._of(report.nodeid).update(outcome="error", message=_last_line(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record one phase of a test: setup, call or teardown."""
        test = self._of(report.nodeid)
        test["seconds"] = round(test["seconds"] + report.duration, 6)
        test["mode"] = dict(report.user_properties).get("synapse_mode", test["mode"])
        if report.failed:
            test.update(outcome="failed" if report.when == "call" else "error", message=_last_line(report))
        elif report.skipped or (report.when == "call" and test["outcome"] == "passed"):
            xfail = hasattr(report, "wasxfail")
            test["outcome"] = ("xfailed" if report.skipped else "xpassed") if xfail else report.outcome

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the results."""
        text = json.dumps({"status": int(exitstatus), "tests": list(self._tests.values())})
        with os.fdopen(self._descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")

    def _of(self, nodeid: str) -> dict[str, Any]:
        fresh = {"id": nodeid, "mode": None, "outcome": "passed", "seconds": 0.0, "message": None}
        return self._tests.setdefault(nodeid, fresh)


def _last_line(report: pytest.CollectReport | pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", None) or report.longreprtext)

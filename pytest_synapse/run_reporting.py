"""The runs of a test: passes them to the hooks as they start and finish, and adds them to the test's reports.

pytest-xdist workers send reports to the controller one by one, so a worker that crashes loses the runs of one test
only. Reports contain plain data.
"""

from __future__ import annotations

import contextlib
import heapq
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import pytest

from synapse_runtime.modes import MODES

if TYPE_CHECKING:
    from pytest_synapse.report_redaction import TestSecrets
    from synapse_runtime.core.execution import ActionCall, ActionRun
    from synapse_runtime.errors import PluginError
    from synapse_runtime.executors.base import Backend, Executor

__tracebackhide__ = True  # of all functions here: a test's report shows the test's own lines only
# The maximum of runs, and of nodes, in a test's properties; further runs are only counted.
_NAMED = 20
_PROPERTIES = ("synapse_mode", "synapse_runs", "synapse_job_id", "synapse_node")
_MEASUREMENT = "synapse_runtime.core.coverage_support"
# Lines covered in workers, by file, that are in a report already.
_reported_lines: pytest.StashKey[dict[str, set[int]]] = pytest.StashKey()


class TestRuns(TypedDict):
    """The value of a report's attribute `synapse_runs`: its test's runs since the previous report.

    Attributes:
        mode: The mode of the runs.
        run_count: The number of runs.
        error_count: The number of runs that ended with an error.
        action_seconds: The total time in actions.
        call_seconds: The total time in calls, from the call to its return.
        slowest: Seconds and action name of each of the slowest runs.
        backends: Kind, address and origin of each cluster or server that their calls were sent to.
        lines: Lines covered in workers, by file.
    """

    mode: str
    run_count: int
    error_count: int
    action_seconds: float
    call_seconds: float
    slowest: list[tuple[float, str]]
    backends: list[tuple[str, str, str]]
    lines: dict[str, list[int]]


class ItemRuns:
    """Observes the executor of one test.

    Args:
        item: The test.
        executor: Its executor.
        slowest: How many of the slowest runs to report: 0 for all, None for none.
        skips_refused: Whether to skip the test if remote mode cannot run it.

    Attributes:
        mode: The mode of its runs.
        was_refused: Whether remote mode could not run the test.
    """

    KEY: pytest.StashKey[ItemRuns] = pytest.StashKey()

    def __init__(
        self, item: pytest.Item, executor: Executor, slowest: int | None, *, skips_refused: bool = True
    ) -> None:
        self.mode = executor.mode
        self._skips_refused = skips_refused
        self._item = item
        self._executor: Executor | None = executor
        self._slowest_limit = slowest
        self._on_start = item.ihook.pytest_synapse_run_started
        self._on_end = item.ihook.pytest_synapse_run_finished
        self._lock = threading.RLock()  # a test may run actions in several threads
        self._began: dict[str, float] = {}
        self._jobs: set[str] = set()
        self._count = 0
        self._job_ids: list[str] = []
        self._nodes: list[str] = []
        self._secrets: TestSecrets | None = None
        self.was_refused = False
        self._discard()

    def redact(self, report: pytest.TestReport) -> None:
        """Redact the secrets of the test's calls in its report."""
        if self._secrets is not None:
            self._secrets.redact(report)

    def started(self, call: ActionCall) -> None:
        """Record a call that is about to be made."""
        with self._lock:
            if self._on_start.get_hookimpls():  # checking this is cheaper than calling the hook
                with _naming_hook(self._on_start.name, call.name, self.mode):
                    self._on_start(item=self._item, call=call)
            if self._secrets is None:
                from pytest_synapse.report_redaction import TestSecrets

                self._secrets = TestSecrets()
            self._secrets.add(call.env, call.params)
            self._began[call.job_id] = time.perf_counter()

    def finished(self, run: ActionRun) -> None:
        """Record a run, unless it is of a job whose result was requested before.

        Raises:
            BaseException: The outcome of the test, such as that of `pytest.skip`, if the action has raised one.
        """
        self._finish(run)
        if run.error is not None:
            from synapse_runtime.errors import ResultNotInJson

            if isinstance(run.error, ResultNotInJson):
                self.refused(run.error)
        outcome = None if run.error is None else run.error.__cause__
        if is_test_outcome(outcome):
            assert outcome is not None
            raise outcome

    def refused(self, error: PluginError) -> None:
        """Skip the test, unless it is to fail: remote mode cannot run it as the other modes do.

        Raises:
            BaseException: What `pytest.skip` raises.
        """
        if self._skips_refused:
            self.was_refused = True
            pytest.skip(f"remote mode: {error}")

    def _finish(self, run: ActionRun) -> None:
        now = time.perf_counter()
        with self._lock:
            began = self._began.pop(run.job_id, None)
            if MODES[run.mode].detached:
                if run.job_id in self._jobs:
                    return
                self._jobs.add(run.job_id)
            self._record(run, run.duration if began is None else now - began)
            if self._on_end.get_hookimpls():
                with _naming_hook(self._on_end.name, run.name, self.mode, run.error):
                    self._on_end(item=self._item, run=run)

    def name_properties(self) -> None:
        """Write the runs into the test's properties, replacing what an earlier call wrote."""
        if not self._count:
            return
        properties: list[tuple[str, object]] = [("synapse_mode", self.mode), ("synapse_runs", self._count)]
        properties += [("synapse_job_id", job_id) for job_id in self._job_ids]
        properties += [("synapse_node", node) for node in self._nodes]
        others = [(name, value) for name, value in self._item.user_properties if name not in _PROPERTIES]
        self._item.user_properties[:] = [*others, *properties]

    def collect(self) -> TestRuns | None:
        """Return the runs since the last call of this method; None if there were none."""
        with self._lock:
            if not self._new_count:
                return None
            collected = TestRuns(
                mode=self.mode,
                run_count=self._new_count,
                error_count=self._error_count,
                action_seconds=self._action_seconds,
                call_seconds=self._call_seconds,
                slowest=self._slowest,
                backends=self._backends,
                lines=_new_lines(self._item.config),
            )
            self._discard()
        return collected

    def close(self) -> None:
        """Release the executor after the test has ended."""
        self._executor = None
        self._began.clear()
        self._jobs.clear()

    def _discard(self) -> None:
        """Reset what the next report counts."""
        self._new_count = self._error_count = 0
        self._action_seconds = self._call_seconds = 0.0
        self._slowest: list[tuple[float, str]] = []
        self._backends: list[tuple[str, str, str]] = []

    def _record(self, run: ActionRun, call_seconds: float) -> None:
        self._new_count += 1
        self._count += 1
        self._action_seconds += run.duration
        self._call_seconds += call_seconds
        if run.error is not None and not is_test_outcome(run.error.__cause__):
            self._error_count += 1
        if self._count <= _NAMED:
            self._job_ids.append(run.job_id)
        if self._slowest_limit is not None:
            self._rank(run.duration, run.name)
        if not MODES[self.mode].in_process and self._executor is not None:
            self._record_backend(run.node, self._executor.backend)

    def _rank(self, seconds: float, action: str) -> None:
        """Keep the run if it is among the slowest."""
        if self._slowest_limit == 0 or len(self._slowest) < (self._slowest_limit or 0):
            heapq.heappush(self._slowest, (seconds, action))
        else:
            heapq.heappushpop(self._slowest, (seconds, action))

    def _record_backend(self, node: str, backend: Backend | None) -> None:
        if node and node not in self._nodes and len(self._nodes) < _NAMED:
            self._nodes.append(node)
        if backend is not None and (shown := (*backend,)) not in self._backends:
            self._backends.append(shown)


def is_test_outcome(error: BaseException | None) -> bool:
    """Return whether an exception says how the test ends: it was raised by `pytest.skip`, `xfail`, `fail` or `exit`."""
    outcomes = pytest.skip.Exception, pytest.fail.Exception, pytest.xfail.Exception, pytest.exit.Exception
    unittest = sys.modules.get("unittest")  # if nothing has imported it, its `SkipTest` was not raised
    return isinstance(error, outcomes if unittest is None else (*outcomes, unittest.SkipTest))


@contextlib.contextmanager
def observe(
    item: pytest.Item, executor: Executor, slowest: int | None, *, skips_refused: bool = True
) -> Iterator[None]:
    """Observe an executor for a test inside the block. Arguments as for `ItemRuns`."""
    runs = item.stash[ItemRuns.KEY] = ItemRuns(item, executor, slowest, skips_refused=skips_refused)
    executor.observer = runs
    try:
        yield
    finally:
        executor.observer = None
        runs.close()


@contextlib.contextmanager
def _naming_hook(hook: str, action: str, mode: str, lost: BaseException | None = None) -> Iterator[None]:
    """Add the hook's name to an exception that it raises; `lost` is the error that the test would have got."""
    try:
        yield
    except Exception as error:
        error.add_note(f"Raised by an implementation of the hook {hook} for {action} in {mode} mode.")
        if lost is not None:
            error.add_note(f"The action itself failed: {lost}")
        raise


def _new_lines(config: pytest.Config) -> dict[str, list[int]]:
    """Return the lines that were covered in workers since the last call of this function, by file."""
    measurement = sys.modules.get(_MEASUREMENT)  # imported if there are workers, not in local mode
    if measurement is None:
        return {}
    reported = config.stash.setdefault(_reported_lines, {})
    found: dict[str, list[int]] = {}
    for file, lines in dict(measurement.received()).items():  # a copy, as a thread of the test may still add to it
        before = reported.setdefault(file, set())
        if len(before) != len(lines):
            found[file] = sorted(lines - before)
            before |= lines
    return found

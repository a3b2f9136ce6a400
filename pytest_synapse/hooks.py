"""The hooks that this plugin calls, for conftests and other plugins to implement; docs/hooks.md tells how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from synapse_runtime.core.execution import ActionCall, ActionRun


@pytest.hookspec
def pytest_synapse_run_started(item: pytest.Item, call: ActionCall) -> None:
    """Called when a test is about to run an action with `synapse_executor`, in every mode.

    It is followed by `pytest_synapse_run_finished` of the same job id, unless there is no run: no cluster, a test that
    is interrupted, or a job that is submitted and never asked for its outcome.

    Args:
        item: The test.
        call: What it runs: `name`, `params`, `env`, `job_id`, `timeout`. The params are not validated yet. A change to
            any of them is not promised to have an effect. `env` may hold secrets.
    """


@pytest.hookspec
def pytest_synapse_run_finished(item: pytest.Item, run: ActionRun) -> None:
    """Called when an action has ended, before the test has its result or error, in every mode.

    Called for each `run` and `execute`, and once for each job that was submitted, when the test asks for its outcome.
    A run that failed is a run, too: then `run.error` is set.

    Called in the test's own process – with pytest-xdist, the worker's – and in the thread that made the call, but never
    at the same time as another of these hooks for the same test. What it raises fails the test.

    Args:
        item: The test.
        run: What happened: `name`, `mode`, `result` or `error`, `events`, `metrics`, output, `duration` in seconds,
            `job_id`, and where it ran: `host`, `pid`, `node`.
    """

"""The hooks that this plugin calls. Implement them in a conftest or in another plugin; see docs/hooks.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from synapse_runtime.core.execution import ActionCall, ActionRun


@pytest.hookspec
def pytest_synapse_run_started(item: pytest.Item, call: ActionCall) -> None:
    """Called before a test runs an action with `synapse_executor`, in every mode.

    `pytest_synapse_run_finished` is called later with the same job id, unless there is no run: no cluster is available,
    the test is interrupted, or a job is submitted and the test never requests its result.

    Args:
        item: The test.
        call: The call: `name`, `params`, `env`, `job_id`, `timeout`. The params are not validated yet. Changes to any
            of them are not guaranteed to have an effect. `env` may contain secrets.
    """


@pytest.hookspec
def pytest_synapse_run_finished(item: pytest.Item, run: ActionRun) -> None:
    """Called after an action has ended, before the test gets its result or error, in every mode.

    Called for each `run` and `execute`, and once for each submitted job, when the test requests its result. Also called
    for a failed run, with `run.error` set.

    Called in the test's own process (with pytest-xdist, the worker process) and in the thread that made the call, never
    concurrently with another of these hooks for the same test. An exception that it raises fails the test.

    Args:
        item: The test.
        run: The run: `name`, `mode`, `result` or `error`, `events`, `metrics`, output, `duration` in seconds,
            `job_id`, and where it ran: `host`, `pid`, `node`.
    """

"""Suppress Ray's own warnings and log records, so that tests that check warnings or logs do not see them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from synapse_runtime.core.threads import SharedContext

# The loggers of Ray, and of the libraries that it uses, that log while a job is submitted and followed.
_RAY_LOGGERS = (
    "ray",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "urllib3",
    "urllib3.connectionpool",
    "asyncio",
)


@contextlib.contextmanager
def _high_levels() -> Iterator[None]:
    before = [(logger, logger.level) for logger in map(logging.getLogger, _RAY_LOGGERS)]
    for logger, _ in before:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Suppresses Ray's log records only: warning filters are process-wide and would hide the warnings of other threads.
suppress_log_records = SharedContext(_high_levels)
_suppress_warnings = SharedContext(_no_warnings)


@contextlib.contextmanager
def suppress_ray_output() -> Iterator[None]:
    """Suppress Ray's own warnings and log records, so that tests that check warnings or logs do not see them."""
    with suppress_log_records(), _suppress_warnings():
        yield

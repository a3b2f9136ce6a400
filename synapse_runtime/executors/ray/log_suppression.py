"""Ray's own warnings and log records, kept away from the user's: a test suite that checks them is not about Ray."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from synapse_runtime.core.threads import SharedContext

# Those loggers of Ray, and below it, that speak on the way of a job.
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


# Keeps Ray's log records away; unlike `suppress_ray_output`, for where the warnings of other threads are to be heard.
suppress_log_records = SharedContext(_high_levels)
_suppress_warnings = SharedContext(_no_warnings)


@contextlib.contextmanager
def suppress_ray_output() -> Iterator[None]:
    """Keep Ray's own warnings and log records away from the user's: a test suite that checks them is not about Ray."""
    with suppress_log_records(), _suppress_warnings():
        yield

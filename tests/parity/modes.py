"""Where a row of the contract holds: as `pytestmark` of a test file, or above a test."""

import pytest

# Row 1 to 21: a mode is a place, not a behaviour.
everywhere = pytest.mark.synapse(mode=("local", "task", "job"))
# What a job does by the same code as a worker: with a worker alone, since a job costs seconds of CPU time. Of each row
# a job runs what goes its own way (the upload, the log as a channel, a process of its own) and one case of the rest.
not_as_jobs = pytest.mark.synapse(mode=("local", "task"))
as_a_job = pytest.mark.synapse(mode="job")
# Row 30 to 32: where there is a worker to lose.
on_workers = pytest.mark.synapse(mode=("task", "job"))

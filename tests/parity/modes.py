"""The modes in which a row of the contract holds: use them as `pytestmark` of a test file, or above a test."""

import pytest

# Rows 1 to 21: the behaviour is the same in every mode.
everywhere = pytest.mark.synapse(mode=("local", "task", "job", "remote"))
# What jobs and task workers run with the same code is not tested as a job, since a job costs seconds of CPU time. Of
# each row, a job runs what is specific to it (upload, log as a channel, separate process) and one case of the rest.
not_as_jobs = pytest.mark.synapse(mode=("local", "task", "remote"))
# Values that JSON does not have, and that a backend can thus not return.
on_this_machine = pytest.mark.synapse(mode=("local", "task"))
through_a_backend = pytest.mark.synapse(mode="remote")
as_a_job = pytest.mark.synapse(mode="job")
# Rows 30 to 32: modes that have a worker, which can crash; and of the rest what is about workers only.
on_workers = pytest.mark.synapse(mode=("task", "job"))
on_workers_and_backends = pytest.mark.synapse(mode=("task", "job", "remote"))

"""Where a row of the contract holds: as `pytestmark` of a test file, or above a test."""

import pytest

# Row 1 to 21: a mode is a place, not a behaviour.
everywhere = pytest.mark.synapse(mode=("local", "task", "job"))
# Row 30 to 32: where there is a worker to lose.
on_workers = pytest.mark.synapse(mode=("task", "job"))

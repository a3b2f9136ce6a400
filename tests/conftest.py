"""What all tests of this project share: `pytester`, to run pytest inside pytest; and Ctrl-C that works in children."""

import os
import signal
import tempfile

import pytest

pytest_plugins = ["pytester"]

# Whoever starts us in the background (`nohup`, `&` in a script) has interrupts ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A warm cluster of whoever runs these tests is neither used nor touched. One directory for all processes of the run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _state = tempfile.TemporaryDirectory(prefix="synapse-tests-")
    os.environ["XDG_STATE_HOME"] = _state.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that no process of pytest-xdist is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_two_machines.py")

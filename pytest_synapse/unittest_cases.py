"""unittest-style tests: the executor is an attribute, and a class runs once in each of its modes."""

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING

import pytest

from pytest_synapse.modes import CLASS_MODE_KEY, modes_by_marker, modes_of
from synapse_runtime.modes import MODES

if TYPE_CHECKING:
    from synapse_runtime.executors.base import Executor


class SynapseTestCase(unittest.TestCase):
    """Base class of unittest-style tests. pytest runs them, and marker and options apply to them.

    With several modes the class runs once in each: `TestX-local`, `TestX-task`. (Brackets would look like the
    parameters of a function to pytest.)

    Attributes:
        synapse_executor: The value of the fixture with this name; a new one for each test.

    Example:
        >>> class TestDouble(SynapseTestCase):
        ...     def test_double(self):
        ...         self.assertEqual(self.synapse_executor.execute("double", {"number": 2}), 4)
    """

    synapse_executor: Executor

    @pytest.fixture(autouse=True)
    def _set_synapse_executor(self, synapse_executor: Executor) -> None:
        self.synapse_executor = synapse_executor


def in_each_mode(node: pytest.Class) -> list[pytest.Class]:
    """Return the collected class, or one class for each mode if any of its tests has several modes."""
    names = unittest.TestLoader().getTestCaseNames(node.obj)
    try:
        modes = [_modes_of_method(node, getattr(node.obj, name)) for name in names]
    except pytest.UsageError:
        return [node]  # reported for all tests at once, after collection
    if all(len(each) == 1 for each in modes) or not any(modes):
        return [node]
    selected = {mode for each in modes for mode in each}
    nodes = []
    for mode in filter(selected.__contains__, MODES):
        made = type(node).from_parent(node.parent, name=f"{node.name}-{mode}")
        made.obj = node.obj
        made.own_markers.extend(node.own_markers)
        made.stash[CLASS_MODE_KEY] = mode
        nodes.append(made)
    return nodes


def _modes_of_method(node: pytest.Class, method: object) -> tuple[str, ...]:
    for mark in reversed(getattr(method, "pytestmark", [])):
        if mark.name == "synapse" and (mark.kwargs.keys() & {"mode", "supports"}):
            return modes_by_marker(mark.kwargs, node.nodeid, node.config)
    return modes_of(node, node.config)

"""Rows 1 to 3, 17 and 18: params in, results out."""

import pytest

from tests.parity.modes import everywhere

pytestmark = everywhere


@pytest.mark.parametrize("value", [None, 3], ids=["none", "int"])
def test_01_result(synapse_executor, value):
    assert synapse_executor.execute("echo", {"value": value}) == value

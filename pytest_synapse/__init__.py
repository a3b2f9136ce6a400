"""Write a Synapse plugin action's test once; `pytest --synapse-mode` says where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_synapse.unittest_cases import SynapseTestCase as SynapseTestCase


def __getattr__(name: str) -> Any:
    """Import on first use: most sessions need no unittest."""
    if name != "SynapseTestCase":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pytest_synapse.unittest_cases import SynapseTestCase

    return SynapseTestCase

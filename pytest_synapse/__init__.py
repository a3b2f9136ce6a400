"""Write the test of a Synapse plugin action once; `pytest --synapse-mode` selects where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_synapse.unittest_cases import SynapseTestCase

__all__ = ["SynapseTestCase"]


def __getattr__(name: str) -> Any:
    """Import `SynapseTestCase` on first use, since most sessions do not need unittest."""
    if name != "SynapseTestCase":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pytest_synapse.unittest_cases import SynapseTestCase

    return SynapseTestCase

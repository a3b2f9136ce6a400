"""The actor that task mode is measured against. It needs nothing of ours, so that its worker imports none of it."""

from __future__ import annotations

from typing import Any


class RawActor:
    """What a user of Ray alone would write."""

    def echo(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return it."""
        return value

    def array(self) -> Any:
        """Return an array of 50 MB."""
        from benchmarks.actions import fifty_megabytes

        return fifty_megabytes()

    def heap(self) -> int:
        """Return by how many bytes Python's heap has grown at most since the last call."""
        from benchmarks.actions import heap_growth

        return heap_growth()

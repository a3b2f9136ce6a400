"""The actor that task mode is compared with. It must not import this project's packages into its worker."""

from __future__ import annotations

from typing import Any


class RawActor:
    """A plain Ray actor, as its users would write it."""

    def echo(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return the value."""
        return value

    def array(self) -> Any:
        """Return an array of 50 MB."""
        from benchmarks.actions import fifty_megabytes

        return fifty_megabytes()

    def heap(self) -> int:
        """Return the peak growth of Python's heap since the last call, in bytes."""
        from benchmarks.actions import heap_growth

        return heap_growth()

"""Format results as a table, and as the JSON that docs/performance.md is generated from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.growth import Curve
from benchmarks.measure import Line

_PACKAGES = ("ray", "pytest", "pydantic", "coverage")


def as_data(
    lines: Sequence[Line], curves: Sequence[Curve], *, quick: bool, packages: Sequence[str] = _PACKAGES
) -> dict[str, Any]:
    """Return all results as JSON-compatible data. Times are in seconds, sizes in megabytes or as the axis says.

    Args:
        lines: The lines of the table.
        curves: The growth curves.
        quick: Whether they were measured with few rounds.
        packages: Packages whose versions are recorded.
    """
    return {
        "machine": machine(),
        "versions": {"Python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "quick": quick,
        "lines": [_line_data(line) for line in lines],
        "growth": [curve.as_data() for curve in curves],
    }


def machine() -> dict[str, int]:
    """Return the number of CPUs that this process may use, and the machine's memory in gibibytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": cores, "memory_gib": round(memory / 2**30)}


def as_json(data: dict[str, Any]) -> str:
    """Return data as the content of a JSON file."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _line_data(line: Line) -> dict[str, Any]:
    goal = line.goal
    low, high = line.spread
    return {
        "name": goal.name,
        "what": goal.what,
        "against": goal.against,
        "kind": goal.kind,
        "unit": goal.unit,
        "goal": goal.limit,
        "ours": statistics.median(line.pairs.ours),
        "raw": statistics.median(line.pairs.raw),
        "median": line.median,
        "low": low,
        "high": high,
        "rounds": len(line.measures),
        "figures": dict(line.pairs.figures),
    }


def header(data: dict[str, Any]) -> str:
    """Return a description of the machine and the versions."""
    machine, versions = data["machine"], data["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cores']} cores, {machine['memory_gib']} GiB of memory; {listed}"


def rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's rows, with the columns of `HEAD`."""
    return [
        (
            line["what"],
            line["against"],
            quantity(line["ours"], line["unit"]),
            quantity(line["raw"], line["unit"]),
            counted(line["median"], line),
            f"{counted(line['low'], line)} … {counted(line['high'], line)}",
            f"≤ {counted(line['goal'], line)}",
            "yes" if line["median"] <= line["goal"] else "**no**",
        )
        for line in data["lines"]
    ]


HEAD = ("what", "against", "ours", "raw", "measured", "interquartile range", "goal", "met")


def text_table(data: dict[str, Any]) -> str:
    """Return the table for a terminal, with short names instead of descriptions."""
    names = [line["name"] for line in data["lines"]]
    cells = [("", *HEAD[2:])]
    cells += [(name, *row[2:-1], row[-1].strip("*")) for name, row in zip(names, rows(data), strict=True)]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Return rows as an aligned table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    )


def counted(value: float, line: dict[str, Any]) -> str:
    """Format a ratio, difference or value of a line."""
    if line["kind"] == "ratio":
        return f"{value:.2f} ×"
    return ("+" if line["kind"] == "difference" and value >= 0 else "") + quantity(value, line["unit"])


def quantity(value: float, unit: str) -> str:
    """Format a time or size, with three significant digits for times.

    >>> quantity(0.0000154, "s"), quantity(0.35, "s"), quantity(3, "MB")
    ('15.4 µs', '350 ms', '3.0 MB')
    """
    if unit == "MB":
        return f"{value:.1f} MB"
    for scale, name in ((1, "s"), (1e-3, "ms")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


GROWTH_HEAD = ("size", "curve", "from", "to", "grows as", "steepest step")


def growth_rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the growth table, with the columns of `GROWTH_HEAD`."""
    found = []
    for curve in data["growth"]:
        ends = [f"{size:,.0f}: {quantity(seconds, 's')}" for size, seconds in (curve["points"][0], curve["points"][-1])]
        found.append((curve["axis"], curve["name"], *ends, f"n^{curve['exponent']:.2f}", f"n^{curve['steepest']:.2f}"))
    return found


SDK_HEAD = ("what", "ours", "synapse-sdk", "ours / synapse-sdk", "interquartile range")


def sdk_rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the comparison with synapse-sdk, with the columns of `SDK_HEAD`."""
    return [
        (
            line["what"],
            quantity(line["ours"], "s"),
            quantity(line["raw"], "s"),
            f"{line['median']:.2f} ×",
            f"{line['low']:.2f} × … {line['high']:.2f} ×",
        )
        for line in data["lines"]
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

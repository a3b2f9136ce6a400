"""Draw the charts of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# The same data must produce the same file.
mpl.rcParams |= {"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}

from matplotlib import pyplot as plt  # noqa: E402 - after the settings above
from matplotlib.ticker import FuncFormatter  # noqa: E402

_MET, _MISSED = "#2a7f62", "#c8553d"
_COLOURS = ("#33658a", "#f26419", "#6c757d")
_SMALL = 0.02


def draw_goals(data: dict[str, Any], path: Path) -> None:
    """Draw each line of the table as a percentage of its goal, with its spread."""
    lines = data["lines"][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(lines)), layout="constrained")
    for row, line in enumerate(lines):
        low, middle, high = (max(line[key] / line["goal"], _SMALL) for key in ("low", "median", "high"))
        axes.barh(row, middle, color=_MET if middle <= 1 else _MISSED, height=0.6)
        axes.plot([low, high], [row, row], color="black", linewidth=1)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_yticks(range(len(lines)), [line["what"].replace("`", "") for line in lines])
    axes.set_xlabel("percentage of the goal's limit; the thin black lines show the interquartile range of the rounds")
    axes.set_xlim(0, max(1.6, *(min(line["high"] / line["goal"] * 1.05, 4) for line in lines)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_growth(data: dict[str, Any], path: Path) -> None:
    """Draw the curves on logarithmic scales, with one chart per axis name."""
    axes_of = dict.fromkeys(curve["axis"] for curve in data["growth"])
    columns = min(len(axes_of), 3)
    rows = -(-len(axes_of) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 3 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(axes_of) :]:
        axes.set_visible(False)
    for axes, axis in zip(grid.flat, axes_of, strict=False):
        for colour, curve in zip(_COLOURS, (c for c in data["growth"] if c["axis"] == axis), strict=False):
            sizes, costs = zip(*curve["points"], strict=True)
            label = f"{curve['name']}: n^{max(curve['exponent'], 0):.2f}"
            axes.loglog(sizes, costs, marker="o", markersize=3, color=colour, label=label)
        _linear_guide(axes)
        axes.minorticks_off()
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _linear_guide(axes: Any) -> None:
    """Draw a line of linear growth through the most expensive point."""
    points = [point for line in axes.get_lines() for point in zip(*line.get_data(), strict=True)]
    (left, _), (right, top) = min(points), max(points)
    bottom, _ = axes.get_ylim()
    start = max(left, right * bottom / top)
    axes.loglog([start, right], [top * start / right, top], color="#bbbbbb", linewidth=0.8, linestyle="--", zorder=0)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # Remove trailing whitespace, as in the other files of the repository.
    path.write_text("\n".join(_lines(path)) + "\n", encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield line.rstrip()

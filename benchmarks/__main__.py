"""`python -m benchmarks`: run the benchmarks, print a table, write result files.

The exit status is 1 only if a result misses its goal by far.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType

from benchmarks import local, on_ray, remote, report, startup
from benchmarks.bench import Bench, Benchmark
from benchmarks.goals import BY_NAME, GOALS, GROSS
from benchmarks.growth import GROWTH, Curve, Growth
from benchmarks.measure import BenchmarkFailed, Line

BENCHMARKS: tuple[Benchmark, ...] = (*local.BENCHMARKS, *startup.BENCHMARKS, *on_ray.BENCHMARKS, *remote.BENCHMARKS)
_INTERRUPTED, _TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    chosen = [benchmark for benchmark in BENCHMARKS if _is_chosen(benchmark.names, options.only)]
    growth = [one for one in GROWTH if _is_chosen((one.name,), options.only) and (options.only or not options.quick)]
    if not chosen and not growth:
        names = [*BY_NAME, *(one.name for one in GROWTH)]
        print(f"no benchmark is named {', '.join(options.only)}; choose from {', '.join(names)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with Bench(quick=options.quick) as bench:
            found = {name: line for benchmark in chosen for name, line in _measure(benchmark, bench, options.only)}
            curves = [curve for one in growth for curve in _draw(one, bench)]
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BenchmarkFailed as error:
        print(error, file=sys.stderr)
        return 1
    lines = [found[goal.name] for goal in GOALS if goal.name in found]
    _report(lines, curves, options.out, quick=options.quick)
    return status(lines)


def status(lines: Iterable[Line]) -> int:
    """Return the exit status; if it is 1, print why."""
    gross = [line for line in lines if line.is_gross]
    for line in gross:
        print(
            f"{line.goal.name}: {line.part_of_goal:.1f} times its goal; the limit is {GROSS:g} times", file=sys.stderr
        )
    return 1 if gross else 0


def _report(lines: Sequence[Line], curves: Sequence[Curve], directory: Path | None, *, quick: bool) -> None:
    data = report.as_data(lines, curves, quick=quick)
    table = f"{report.header(data)}\n\n{report.text_table(data)}\n"
    print(f"\n{table}")
    if directory is None:
        return
    from benchmarks.pictures import draw_goals, draw_growth

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(report.as_json(data), encoding="utf-8")
    if quick:
        (directory / "table.txt").write_text(table, encoding="utf-8")
    if lines:
        draw_goals(data, directory / "goals.svg")
    if curves:
        draw_growth(data, directory / "growth.svg")


def _measure(benchmark: Benchmark, bench: Bench, only: Sequence[str]) -> Iterable[tuple[str, Line]]:
    started = time.monotonic()
    for name, pairs in benchmark.lines(bench).items():
        if _is_chosen((name,), only):
            line = Line(BY_NAME[name], pairs)
            _progress(name, f"{line.part_of_goal:7.0%} of its goal", started)
            yield name, line


def _draw(growth: Growth, bench: Bench) -> Iterable[Curve]:
    started = time.monotonic()
    for curve in growth.measure(bench):
        shown = curve.as_data()
        _progress(
            growth.name,
            f"{curve.axis}, {curve.name}: n^{shown['exponent']:.2f}, steepest step n^{shown['steepest']:.2f}",
            started,
        )
        yield curve


def _progress(name: str, text: str, started: float) -> None:
    print(f"{name:<18} {text}  ({time.monotonic() - started:.0f} s)", flush=True)


def _is_chosen(names: Iterable[str], only: Sequence[str]) -> bool:
    return not only or any(name.startswith(start) for name in names for start in only)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks and print a table.")
    parser.add_argument("--quick", action="store_true", help="few rounds, no growth curves: less than two minutes")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="run only benchmarks whose name starts with NAME; may be repeated",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write JSON and charts to this directory")
    return parser


if __name__ == "__main__":
    sys.exit(main())

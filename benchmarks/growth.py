"""How the cost grows with the number of tests, events, bytes, plugins and actors."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.bench import Bench
from benchmarks.measure import growth_exponent, per_call, steepest_step
from benchmarks.plugin import write_action_tests, write_plain_tests, write_plugin
from benchmarks.raw import RawActor
from synapse_runtime.executors.base import Executor
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.loggers import NullLogger

Points = list[tuple[float, float]]
_TESTS = (10, 100, 1_000, 10_000)
_EVENTS = (1, 10, 100, 1_000, 10_000, 100_000)
_BYTES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 50_000_000)
_PLUGINS = (1, 3, 10, 30, 100)
_ACTORS = (1, 2, 4, 8, 16, 32)
_TIMES = 3


@dataclass(frozen=True)
class Curve:
    """The cost as a function of a size.

    Attributes:
        axis: What the size counts; curves with the same axis are drawn in one chart.
        name: The curve's name in that chart.
        points: Pairs of size and seconds.
    """

    axis: str
    name: str
    points: Points

    def as_data(self) -> dict[str, Any]:
        """Return the curve as JSON-compatible data."""
        return {
            "axis": self.axis,
            "name": self.name,
            "points": [list(point) for point in self.points],
            "exponent": growth_exponent(self.points),
            "steepest": steepest_step(self.points),
        }


@dataclass(frozen=True)
class Growth:
    """Measures one or more curves.

    Attributes:
        name: The name for `--only`.
        measure: Measures the curves.
    """

    name: str
    measure: Callable[[Bench], Iterable[Curve]]


def tests(bench: Bench) -> Iterable[Curve]:
    """Run sessions with an increasing number of tests, in local mode."""
    ours: Points = []
    plain: Points = []
    for count in _TESTS:
        path = write_action_tests(bench.plugin / f"test_{count}.py", count)
        ours.append((count, bench.pytest(path, "--synapse-mode=local", ours=True)()))
        path = write_plain_tests(bench.plugin / f"test_{count}_plain.py", count)
        plain.append((count, bench.pytest(path, ours=False)()))
    yield Curve("tests in a session", "local mode", ours)
    yield Curve("tests in a session", "plain tests, without the plugin", plain)


def events(bench: Bench) -> Iterable[Curve]:
    """Log an increasing number of events in one run."""
    with LocalExecutor(plugin=bench.plugin, logger=NullLogger()) as local:
        yield Curve("events in a run", "local", _best(_EVENTS, lambda n: local.run("say", {"events": n}).unwrap()))
    with _task(bench) as task:
        yield Curve("events in a run", "task", _best(_EVENTS, lambda n: task.run("say", {"events": n}).unwrap()))
        yield Curve(
            "events in a run",
            "task, watched live",
            _best(_EVENTS, lambda n: task.run("say", {"events": n}, on_event=lambda event: None).unwrap()),
        )


def sizes(bench: Bench) -> Iterable[Curve]:
    """Pass params and return results of increasing size."""
    with LocalExecutor(plugin=bench.plugin, logger=NullLogger(), strict=True) as local, _task(bench) as task:
        for name, executor in (("local, strict", local), ("task", task)):
            yield from _both_ways(name, executor)
    # The minimum for sending a value to another process.
    yield Curve("bytes of a result", "pickle alone", _best(_BYTES, lambda n: pickle.loads(pickle.dumps(bytes(n)))))


def _both_ways(name: str, executor: Executor) -> Iterable[Curve]:
    data = {size: bytes(size) for size in _BYTES}
    yield Curve("bytes of params", name, _best(_BYTES, lambda n: executor.execute("take", {"data": data[n]})))
    yield Curve("bytes of a result", name, _best(_BYTES, lambda n: executor.execute("give", {"size": n})))


def plugins(bench: Bench) -> Iterable[Curve]:
    """Run one test per plugin, with an increasing number of plugins in one repository."""
    points: Points = []
    for count in _PLUGINS:
        repository = bench.directory / f"repository-{count}"
        for number in range(count):
            plugin = write_plugin(repository / f"plugin-{number}")
            (plugin / "pytest.ini").unlink()
            (plugin / "tests").mkdir()
            write_action_tests(plugin / "tests" / "test_it.py", 1)
        (repository / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        points.append((count, bench.pytest(repository, "--synapse-mode=local", ours=True)()))
        shutil.rmtree(repository)
    yield Curve("plugins in a repository", "a session, local mode, one test each", points)


def actors(bench: Bench) -> Iterable[Curve]:
    """Call an increasing number of workers at once: first new ones, then warm ones."""
    first: Points = []
    warm: Points = []
    raw: Points = []
    for count in _ACTORS:
        executors = [_task(bench) for _ in range(count)]
        try:
            first.append((count, _together(executors)))
            warm.append((count, min(_together(executors) for _ in range(_TIMES))))
        finally:
            for executor in executors:
                executor.close()
        raw.append((count, _raw_together(count)))
    yield Curve("concurrent actors", "first call of each", first)
    yield Curve("concurrent actors", "warm call of each", warm)
    yield Curve("concurrent actors", "raw actors, first call", raw)


def _raw_together(count: int) -> float:
    import ray

    made: list[Any] = []

    def calls() -> None:
        made.extend(ray.remote(RawActor).remote() for _ in range(count))
        ray.get([actor.echo.remote({}) for actor in made])

    taken = per_call(calls)()
    for actor in made:
        ray.kill(actor)
    return taken


def _together(executors: list[RayActorExecutor]) -> float:
    async def calls() -> None:
        await asyncio.gather(*(executor.aexecute("echo", {}) for executor in executors))

    return per_call(lambda: asyncio.run(calls()))()


def _task(bench: Bench) -> RayActorExecutor:
    bench.driver  # noqa: B018 - connects
    return RayActorExecutor(plugin=bench.plugin, logger=NullLogger())


def _best(sizes: Iterable[int], call: Callable[[int], object]) -> Points:
    """Measure the call with each size a few times and keep the minimum: a busy machine only adds time."""
    points: Points = []
    for size in sizes:
        call(size)
        points.append((size, min(per_call(partial(call, size))() for _ in range(_TIMES))))
    return points


GROWTH = (
    Growth("growth-tests", tests),
    Growth("growth-plugins", plugins),
    Growth("growth-events", events),
    Growth("growth-bytes", sizes),
    Growth("growth-actors", actors),
)

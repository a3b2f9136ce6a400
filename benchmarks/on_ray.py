"""Task and job mode, compared with the same work in plain Ray."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.actions import heap_growth
from benchmarks.bench import Bench, Benchmark, Warm
from benchmarks.measure import Pairs, in_turn, per_call, run
from benchmarks.plugin import write_action_tests, write_plain_tests
from benchmarks.raw import RawActor
from pytest_synapse.patch_recording import watch_mock
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

_PARAMS = {"number": 2}
# Ray frees an actor in the background; the next actor must not wait for that.
_SETTLE_SECONDS = 0.5
_POLL_SECONDS = 0.1
_TESTS, _NAP, _PROCESSES = 40, 0.5, 2
# Writes the time at which this process is connected to a cluster, in seconds since the epoch.
_CONNECTED = """\
import pathlib, sys, threading, time

def _watch():
    while not (getattr(sys.modules.get("ray"), "is_initialized", None) or bool)():
        time.sleep(0.01)
    pathlib.Path(__file__).with_name("connected").write_text(repr(time.time()))

threading.Thread(target=_watch, daemon=True).start()
"""
_INIT = """\
import sys, time
import ray
ray.init(include_dashboard=False, logging_level="error")
print(repr(time.time()))
ray.shutdown()
"""
_CONNECT = """\
import ray
ray.init({address!r}, log_to_driver=False, logging_level="error")
"""


def cluster_ready(bench: Bench) -> Pairs:
    """Compare sessions that start a cluster with processes that only start one."""
    directory = bench.plugin / "ready"
    directory.mkdir()
    (directory / "conftest.py").write_text(_CONNECTED, encoding="utf-8")
    path = directory / "test_ready.py"
    began = directory / "began"
    path.write_text(
        "import pathlib\n\n\ndef test_it(synapse_executor):\n"
        f"    pathlib.Path({str(began)!r}).write_text(repr(synapse_executor.execute('stamp', {{}})))\n",
        encoding="utf-8",
    )
    session = bench.session(path, "--synapse-mode=task", ours=True)
    # The session must not find the warm cluster, if there is one.
    env = bench.env | {"XDG_STATE_HOME": str(directory / "state")}
    to_action: list[float] = []

    def ours() -> float:
        started = time.time()
        run(session, env, bench.plugin)
        to_action.append(float(began.read_text()) - started)
        return float((directory / "connected").read_text()) - started

    def raw() -> float:
        started = time.time()
        return float(run((sys.executable, "-c", _INIT), env, bench.plugin).split()[-1]) - started

    pairs = in_turn(ours, raw, bench.rounds(3, 1), warm_up=0 if bench.quick else 1)
    return Pairs(pairs.ours, pairs.raw, {"to the first action": min(to_action)})


def task_call(bench: Bench) -> Pairs:
    """Call a warm worker."""
    actor = _raw_actor(bench)
    import ray

    with _executor(bench) as executor:
        return in_turn(
            per_call(lambda: executor.execute("echo", _PARAMS), 50),
            per_call(lambda: ray.get(actor.echo.remote(_PARAMS)), 50),
            bench.rounds(40, 15),
            warm_up=3,
        )


def task_events(bench: Bench) -> Pairs:
    """Watch a call that logs a thousand events."""
    params = {"events": 1000}

    def watched() -> None:
        seen: list[Any] = []
        executor.run("say", params, on_event=seen.append).unwrap()
        assert len(seen) == params["events"]

    bench.driver  # noqa: B018 - connects
    with _executor(bench) as executor:
        return in_turn(
            per_call(watched), per_call(lambda: executor.run("say", params).unwrap()), bench.rounds(15, 5), warm_up=2
        )


def task_50mb(bench: Bench) -> Mapping[str, Pairs]:
    """Get an array, and measure the heap growth of both processes: Ray keeps the array itself in shared memory."""
    actor = _raw_actor(bench)
    import ray

    with _executor(bench) as executor:

        def ours() -> Any:
            return executor.execute("array")

        def raw() -> Any:
            return ray.get(actor.array.remote())

        times = in_turn(per_call(ours), per_call(raw), bench.rounds(15, 6), warm_up=2)
        memory = (
            _heap_taken(ours, lambda: executor.execute("heap")),
            _heap_taken(raw, lambda: ray.get(actor.heap.remote())),
        )
    return {"task-50mb": times, "task-50mb-memory": Pairs(memory[:1], memory[1:])}


def _heap_taken(get: Callable[[], object], remote_growth: Callable[[], int]) -> float:
    """Return the peak growth of the heaps of both processes, in megabytes, while a result is fetched and held."""
    for growth in (remote_growth, heap_growth):
        growth()  # starts a new measurement
    held = get()
    here = heap_growth()
    del held
    tracemalloc.stop()
    return (here + remote_growth()) / 1e6


def task_first(bench: Bench) -> Pairs:
    """Create workers and call each once."""
    bench.driver  # noqa: B018 - connects
    import ray

    def ours() -> float:
        executor = _executor(bench)
        taken = per_call(lambda: executor.execute("echo", _PARAMS))()
        executor.close()
        time.sleep(_SETTLE_SECONDS)
        return taken

    def raw() -> float:
        actors: list[Any] = []

        def first() -> None:
            actors.append(ray.remote(RawActor).remote())
            ray.get(actors[0].echo.remote(_PARAMS))

        taken = per_call(first)()
        ray.kill(actors.pop())
        time.sleep(_SETTLE_SECONDS)
        return taken

    return in_turn(ours, raw, bench.rounds(12, 3))


def task_coverage(bench: Bench) -> Pairs:
    """Measure the coverage of an action of a hundred lines in one file."""
    import coverage

    bench.driver  # noqa: B018 - connects
    cov = coverage.Coverage(
        data_file=str(bench.directory / "coverage"), branch=True, source=[str(bench.plugin)], config_file=False
    )
    with _executor(bench) as off, _executor(bench) as on:

        def measured() -> float:
            with cov.collect():
                return per_call(lambda: on.execute("work"))()

        pairs = in_turn(measured, per_call(lambda: off.execute("work")), bench.rounds(300, 100), warm_up=3)
    cov.get_data().close()
    return pairs


def task_patch(bench: Bench) -> Pairs:
    """Call a warm worker while the test has replaced a function."""
    bench.driver  # noqa: B018 - connects
    watch_mock()
    with _executor(bench) as executor:
        executor.sends_test_setup = True
        call = per_call(lambda: executor.execute("echo", _PARAMS), 50)

        def patched() -> float:
            with patch("string.capwords", lambda text: text):
                return call()

        return in_turn(patched, call, bench.rounds(40, 15), warm_up=3)


def job(bench: Bench) -> Pairs:
    """Submit one job and wait for its result."""
    with _jobs(bench) as executor:
        return in_turn(
            per_call(lambda: executor.execute("echo", _PARAMS)),
            per_call(lambda: _raw_jobs(bench.driver, 1)),
            bench.rounds(7, 2),
            warm_up=0 if bench.quick else 1,
        )


def jobs_8(bench: Bench) -> Pairs:
    """Submit eight jobs, then wait for all of them."""
    with _jobs(bench) as executor:

        def ours() -> None:
            ids = [executor.submit("echo", _PARAMS) for _ in range(8)]
            for job_id in ids:
                executor.get_result(job_id)

        return in_turn(per_call(ours), per_call(lambda: _raw_jobs(bench.driver, 8)), bench.rounds(2, 1), warm_up=0)


def pytest_warm(bench: Bench) -> Pairs:
    """Run a session with one task test on a cluster that is already warm."""
    ours = write_action_tests(_tests(bench) / "test_warm.py", 1)
    plain = bench.pytest(write_plain_tests(_tests(bench) / "test_warm_plain.py", 1), ours=False)
    connect = _connect(bench)
    return in_turn(
        bench.pytest(ours, "--synapse-mode=task", ours=True), lambda: connect() + plain(), bench.rounds(7, 2)
    )


def pytest_n2(bench: Bench) -> Pairs:
    """Run tests that sleep, in two processes."""
    bench.warm  # noqa: B018 - the cluster's start is not measured
    path = write_action_tests(_tests(bench) / "test_naps.py", _TESTS, action="nap", params=repr({"seconds": _NAP}))
    ideal = _TESTS * _NAP / _PROCESSES
    connect = _connect(bench)
    return in_turn(
        bench.pytest(path, "-p", "xdist", "-n", str(_PROCESSES), "--synapse-mode=task", ours=True),
        lambda: ideal + connect(),
        bench.rounds(2, 1),
        warm_up=0,
    )


def _executor(bench: Bench) -> RayActorExecutor:
    return RayActorExecutor(plugin=bench.plugin, logger=NullLogger())


def _jobs(bench: Bench) -> RayJobsApiExecutor:
    bench.driver  # noqa: B018 - connects
    return RayJobsApiExecutor(plugin=bench.plugin, logger=NullLogger())


def _raw_actor(bench: Bench) -> Any:
    bench.driver  # noqa: B018 - connects
    import ray

    return ray.remote(RawActor).remote()


def _raw_jobs(warm: Warm, count: int) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(warm.dashboard)
    ids = [client.submit_job(entrypoint=f"{sys.executable} -c 'import pydantic'") for _ in range(count)]
    for job_id in ids:
        while not (status := client.get_job_status(job_id)).is_terminal():
            time.sleep(_POLL_SECONDS)
        assert status is JobStatus.SUCCEEDED, client.get_job_logs(job_id)


def _connect(bench: Bench) -> Callable[[], float]:
    return bench.python(_CONNECT.format(address=bench.warm.address), **bench.warm.variables)


def _tests(bench: Bench) -> Path:
    directory = bench.plugin / "tests"
    directory.mkdir(exist_ok=True)
    return directory


BENCHMARKS = (
    Benchmark(("cluster-ready",), cluster_ready),
    Benchmark(("pytest-warm",), pytest_warm),
    Benchmark(("pytest-n2",), pytest_n2),
    Benchmark(("task-call",), task_call),
    Benchmark(("task-events",), task_events),
    Benchmark(("task-50mb", "task-50mb-memory"), task_50mb),
    Benchmark(("task-first",), task_first),
    Benchmark(("task-coverage",), task_coverage),
    Benchmark(("task-patch",), task_patch),
    Benchmark(("job",), job),
    Benchmark(("jobs-8",), jobs_8),
)

import os
import signal
import sys
import threading
import time
from itertools import count

import pytest

from benchmarks.goals import Goal
from benchmarks.measure import (
    BenchmarkFailed,
    Line,
    Pairs,
    child_environment,
    growth_exponent,
    in_turn,
    per_call,
    run,
    steepest_step,
)


def line(kind, limit, ours, raw):
    return Line(Goal("name", "what", "against", limit, kind), Pairs(ours, raw))


def test_measurements_alternate_which_is_first():
    order = []
    in_turn(lambda: order.append("ours") or 1, lambda: order.append("raw") or 1, 4, warm_up=0)
    assert order == ["raw", "ours", "ours", "raw", "raw", "ours", "ours", "raw"]


def test_warm_up_rounds_do_not_count():
    ours, raw = count(1), count(101)
    assert in_turn(lambda: next(ours), lambda: next(raw), 2, warm_up=3) == Pairs([4, 5], [104, 105])


def test_time_of_several_calls_is_averaged_per_call():
    calls = []
    taken = per_call(lambda: calls.append(time.sleep(0.01)), 5)()
    assert len(calls) == 5
    assert taken >= 0.01


def test_ratio_is_the_median_over_pairs_not_the_ratio_of_medians():
    slow_last_round = line("ratio", 2, [2, 2, 30], [1, 1, 10])
    assert slow_last_round.measures == [2, 2, 3]
    assert slow_last_round.median == 2
    assert slow_last_round.spread == (2, 2.5)
    assert slow_last_round.is_met


def test_measures_of_a_difference_and_of_a_value():
    assert line("difference", 1, [5, 6], [4, 4]).measures == [1, 2]
    assert line("value", 1, [5, 6], [4, 4]).measures == [5, 6]


def test_single_round_has_no_spread():
    assert line("ratio", 1, [3], [2]).spread == (1.5, 1.5)


@pytest.mark.parametrize(
    ("kind", "ours", "met", "gross"),
    [
        ("ratio", 2, True, False),
        ("ratio", 2.1, False, False),
        ("ratio", 6, False, False),
        ("ratio", 6.1, False, True),
        ("difference", 7.1, False, True),
        ("value", 100, False, False),
    ],
)
def test_gross_means_more_than_three_times_the_goal(kind, ours, met, gross):
    measured = line(kind, 2, [ours], [1])
    assert (measured.is_met, measured.is_gross) == (met, gross)


def test_slow_rounds_of_a_busy_machine_are_not_gross():
    assert not line("difference", 1, [1, 1, 9, 9, 9], [0] * 5).is_gross
    assert line("difference", 1, [1, 9, 9, 9, 9], [0] * 5).is_gross


@pytest.mark.parametrize("power", [0, 1, 2])
def test_growth_exponent_is_the_power_of_the_size(power):
    points = [(size, 5 * size**power) for size in (1, 10, 100, 1000)]
    assert growth_exponent(points) == pytest.approx(power)
    assert steepest_step(points) == pytest.approx(power)


def test_one_time_costs_do_not_hide_growth():
    points = [(size, 1 + size / 100) for size in (1, 10, 100, 1_000, 10_000, 100_000)]
    assert growth_exponent(points) > 0.95


def test_steepest_step_finds_a_cliff():
    assert steepest_step([(1, 1), (10, 10), (100, 10_000), (1000, 100_000)]) == pytest.approx(3)


def test_processes_do_not_inherit_variables_that_affect_them(monkeypatch):
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "RAY_ADDRESS", "SYNAPSE_MODE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("KEPT", "x")
    env = child_environment(MORE="x")
    assert [name for name, value in env.items() if value == "x"] == ["KEPT", "MORE"]


def test_failed_process_error_contains_its_output(tmp_path):
    with pytest.raises(BenchmarkFailed, match=r"(?s)exited with status 3:.*because"):
        run([sys.executable, "-c", "print('because'); raise SystemExit(3)"], child_environment(), tmp_path)


def test_ctrl_c_is_forwarded_and_the_process_may_clean_up(tmp_path):
    code = """
import pathlib, time
try:
    pathlib.Path("begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    pathlib.Path("ended").touch()
"""

    def interrupt():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", code], child_environment(), tmp_path)
    assert (tmp_path / "ended").exists()

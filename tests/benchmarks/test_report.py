import pytest

from benchmarks import report
from benchmarks.goals import BY_NAME, GOALS
from benchmarks.growth import Curve
from benchmarks.measure import Line, Pairs


@pytest.fixture
def data():
    lines = [Line(goal, Pairs([0.002, 0.002], [0.001, 0.002])) for goal in GOALS]
    curves = [Curve("events in a run", "local", [(1, 0.001), (10, 0.01), (100, 0.1)])]
    return report.as_data(lines, curves, quick=False)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0000154, "s", "15.4 µs"), (0.35, "s", "350 ms"), (9.9996, "s", "10 s"), (12.34, "MB", "12.3 MB")],
)
def test_quantities_are_formatted_with_their_unit(value, unit, text):
    assert report.quantity(value, unit) == text


def test_table_has_a_row_for_each_goal(data):
    rows = report.rows(data)
    assert [row[0] for row in rows] == [goal.what for goal in GOALS]
    by_name = dict(zip(BY_NAME, rows, strict=True))
    assert by_name["task-call"][2:] == ("2 ms", "1.5 ms", "1.50 ×", "1.25 × … 1.75 ×", "≤ 1.20 ×", "**no**")
    assert by_name["pytest-unused"][2:] == ("2 ms", "1.5 ms", "+500 µs", "+250 µs … +750 µs", "≤ +15 ms", "yes")
    assert by_name["event"][4:] == ("2 ms", "2 ms … 2 ms", "≤ 2 µs", "**no**")


def test_terminal_table_names_the_lines(data):
    head, *lines = report.text_table(data).splitlines()
    assert head.split() == ["ours", "raw", "measured", "interquartile", "range", "goal", "met"]
    assert [line.split()[0] for line in lines] == list(BY_NAME)


def test_curve_row_shows_its_ends_and_growth(data):
    assert report.growth_rows(data) == [("events in a run", "local", "1: 1 ms", "100: 100 ms", "n^1.00", "n^1.00")]


def test_machine_is_described_by_cores_and_memory_only(data):
    assert data["machine"].keys() == {"cores", "memory_gib"}
    assert report.header(data).startswith(f"{data['machine']['cores']} cores, {data['machine']['memory_gib']} GiB")

"""Rows 1, 2, 5 and 8 again, with values that nobody has thought of: hypothesis makes them up."""

import string
from collections.abc import Callable
from datetime import timedelta, timezone

import numpy
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import errors, events, values
from lab.portrait import named, portrait, portrait_of_error

from synapse_runtime.errors import ExecutionError
from tests.parity.modes import everywhere

pytestmark = everywhere

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(),
    TEXT,
)
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
HASHABLE = st.one_of(
    SCALARS,
    st.binary(max_size=20),
    st.complex_numbers(),
    st.fractions(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(timezone(timedelta(hours=9), "KST"))),
    st.timedeltas(),
    st.sampled_from([*values.Color, *values.Priority, values.Access.READ | values.Access.WRITE]),
    st.tuples(st.integers(), TEXT),
    st.builds(values.Size, st.integers(), st.integers()),
)
PICKLABLE = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.builds(values.Point, st.floats(), st.floats(), st.lists(TEXT, max_size=2)),
        st.builds(lambda content: values.Plain(content=content), inner),
        st.builds(lambda number: values.Report(accuracy=number), st.floats(allow_nan=False)),
        st.lists(st.floats(width=32), max_size=5).map(lambda items: numpy.array(items, dtype=numpy.float32)),
        st.lists(inner, max_size=2).map(values.Labels),
    ),
    max_leaves=10,
)
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)


def recipes() -> st.SearchStrategy[errors.Recipe]:
    def recipe(links: st.SearchStrategy[errors.Recipe | None]) -> st.SearchStrategy[errors.Recipe]:
        return st.builds(
            errors.Recipe,
            cls=st.sampled_from(sorted(errors.RECIPE_CLASSES)),
            args=st.lists(JSON_LIKE, max_size=3),
            attributes=st.dictionaries(NAMES.filter(lambda name: name != "args"), JSON_LIKE, max_size=2),
            notes=st.lists(TEXT, max_size=2),
            cause=links,
            context=links,
            suppress=st.booleans(),
        )

    return st.recursive(recipe(st.none()), lambda inner: recipe(st.none() | inner), max_leaves=4)


LEVELS = st.sampled_from(["debug", "info", "warning", "error", "critical"])
STEPS = st.none() | NAMES
DATA = st.dictionaries(TEXT, JSON_LIKE, max_size=3)


def said(method: str, *positional: st.SearchStrategy, **keywords: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    return st.tuples(st.just(method), st.tuples(*positional), st.fixed_dictionaries(keywords))


# What is logged goes into pytest's report, which pytest-xdist cannot send on with half a surrogate pair in it.
LOGGED = st.text()
CALLS = st.one_of(
    said("log", TEXT, DATA, STEPS, level=LEVELS, step=STEPS),
    said("set_progress", st.integers(0, 10), st.integers(10, 10**30), step=STEPS),
    said("set_metrics", st.dictionaries(NAMES, st.floats() | st.integers(), max_size=3), NAMES),
    said("log_message", TEXT, LEVELS, step=STEPS),
    said("logger.debug", st.just("a %s"), LOGGED),
    said("logger.warning", st.just("%s and %r"), LOGGED, JSON_LIKE),
    said("logger.error", NAMES),
)


def expected_event(call: tuple) -> tuple:
    """Return the event of a call: kind, name, data, level, step, file."""
    method, positional, keywords = call
    if method == "log":
        name, data, file = positional
        return "log", name, data, keywords["level"], keywords["step"], file
    if method == "set_progress":
        return "progress", "", dict(zip(("current", "total"), positional, strict=True)), "info", keywords["step"], None
    if method == "set_metrics":
        return "metrics", "", positional[0], "info", positional[1], None
    if method == "log_message":
        return "message", positional[0], {}, positional[1], keywords["step"], None
    template, *arguments = positional
    text = template % tuple(arguments) if arguments else template
    return "message", text, {}, method.removeprefix("logger."), None, None


def try_many(mode: str, strategy: st.SearchStrategy, check: Callable[[list], None]) -> None:
    """Check lists of made-up values: many of one value, or a single long one where a call costs a second."""
    if mode == "job":
        found: list = []
        _made_up(100, strategy, found.append)
        check(found)
    else:
        _made_up(150, strategy, lambda value: check([value]))


def _made_up(count: int, strategy: st.SearchStrategy, use: Callable[[object], None]) -> None:
    # The same values in each run, whatever was found in others.
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: object) -> None:
        use(value)

    run()


def test_01_any_result_comes_back_equal_and_of_the_same_type(synapse_executor, synapse_mode):
    def check(batch: list) -> None:
        value = batch[0] if len(batch) == 1 else batch
        assert portrait(synapse_executor.execute("echo", {"value": value})) == portrait(value)

    try_many(synapse_mode, JSON_LIKE | PICKLABLE, check)


def test_02_any_params_arrive_intact(synapse_executor, synapse_mode):
    def check(batch: list) -> None:
        seen = synapse_executor.execute(values.See, {"value": batch})
        assert seen == repr(portrait(batch, named))

    try_many(synapse_mode, PICKLABLE, check)


def test_05_any_exception_arrives_as_what_it_is(synapse_executor, synapse_mode):
    def check(batch: list) -> None:
        error = synapse_executor.run(errors.RaiseRecipe, {"recipes": batch}).error
        assert type(error) is ExecutionError
        arrived = [error.__cause__] if len(batch) == 1 else error.__cause__.exceptions
        assert list(map(portrait_of_error, arrived)) == [portrait_of_error(recipe.make()) for recipe in batch]

    try_many(synapse_mode, recipes(), check)


def test_08_any_events_arrive_in_order(synapse_executor, synapse_mode):
    def check(batches: list) -> None:
        calls = [call for batch in batches for call in batch]
        run = synapse_executor.run(events.Play, {"calls": calls})
        assert run.result == len(calls)
        arrived = [(e.kind, e.name, e.data, e.level, e.step, e.file) for e in run.events]
        assert portrait(arrived) == portrait(list(map(expected_event, calls)))
        times = [event.time for event in run.events]
        assert times == sorted(times)

    try_many(synapse_mode, st.lists(CALLS, max_size=6), check)

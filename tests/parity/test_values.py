"""Rows 1 to 3, 17 and 18: params and results."""

import contextlib
import hashlib
import math
import os
import threading
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
from lab import values
from lab.portrait import named, portrait
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime import serialization
from synapse_runtime.action import BaseAction
from synapse_runtime.errors import (
    ClusterError,
    ExecutionError,
    ResultMismatchWarning,
    ResultNotSerializable,
    ValidationError,
)
from tests.parity.modes import everywhere, not_as_jobs, on_this_machine, on_workers, through_a_backend

pytestmark = everywhere


# Row 1: results

ALL_NAMES = [(kind, name) for kind, make in values.KINDS.items() for name in make()]


class Medley(BaseAction[values.EchoParams]):
    """Returns results of every kind, and what it sees of its params. The result does not match its model."""

    result_model = values.Score

    def execute(self):
        return {
            **MISMATCHING,
            "all": values.MakeAll.execute(self),
            "much": values.random_bytes(16),
            "arrays": values.MakeArrays.execute(self),
            "own": Summarize.execute(self),
            "seen": values.See.execute(self),
        }


@pytest.fixture(scope="module")
def medley(job_executor):
    """The run of `Medley` as a job, and the warnings of the run here."""
    with pytest.warns(ResultMismatchWarning) as caught:
        run = job_executor().run(Medley, awkward_params())
    assert run.error is None
    return run, list(caught)


@not_as_jobs
def test_01_results_of_every_kind_are_returned_equal_and_of_the_same_types(synapse_executor):
    check_all(synapse_executor.execute(values.MakeAll))


def test_01_job_returns_results_of_every_kind_equal_and_of_the_same_types(medley):
    check_all(medley[0].result["all"])


def check_all(result):
    expected = {kind: make() for kind, make in values.KINDS.items()}
    assert [list(part) for part in result.values()] == [list(part) for part in expected.values()]
    different = [(k, n) for k, n in ALL_NAMES if portrait(result[k][n]) != portrait(expected[k][n])]
    assert different == []


@not_as_jobs
@pytest.mark.parametrize(("kind", "name"), ALL_NAMES, ids=[name.replace(" ", "_") for _, name in ALL_NAMES])
def test_01_single_result_is_returned_equal_and_of_the_same_type(synapse_executor, kind, name):
    result = synapse_executor.execute(values.Make, {"kind": kind, "name": name})
    assert portrait(result) == portrait(values.KINDS[kind]()[name])


@not_as_jobs
def test_01_missing_result_is_returned_as_none(synapse_executor):
    run = synapse_executor.run("echo")
    assert run.result is None
    assert run.error is None


@on_this_machine
def test_01_result_of_many_megabytes_is_returned_intact(synapse_executor):
    check_many(synapse_executor.execute(values.MakeMuch, {"megabytes": 50}), 50)


@through_a_backend
def test_01_backend_returns_many_megabytes_intact(synapse_executor):
    check_many(synapse_executor.execute(values.MakeMuch, {"megabytes": 16}), 16)


def test_01_job_returns_many_megabytes_intact(medley):
    check_many(medley[0].result["much"], 16)


def check_many(result, megabytes):
    assert type(result) is bytes
    assert len(result) == megabytes * 1_000_000
    assert hashlib.sha256(result).digest() == hashlib.sha256(values.random_bytes(megabytes)).digest()


@not_as_jobs
def test_01_many_megabytes_in_an_array_and_in_text_are_returned_intact(synapse_executor):
    result = synapse_executor.execute(values.MakeMuchInPieces, {"megabytes": 50})
    data = values.random_bytes(50)
    assert portrait(result["array"].tobytes()) == portrait(data[:25_000_000])
    assert portrait(result["text"]) == portrait(data[25_000_000:].hex()[:25_000_000])


@not_as_jobs
def test_01_large_arrays_in_a_result_are_read_only_and_small_ones_are_copies(synapse_executor):
    check_arrays(synapse_executor.execute(values.MakeArrays))


def test_01_large_arrays_in_the_result_of_a_job_are_read_only_and_small_ones_are_copies(medley):
    check_arrays(medley[0].result["arrays"])


def check_arrays(result):
    expected = numpy.arange(100_000.0).reshape(100, 1000)
    assert result["again"][0] is result["large"]
    for large in (result["large"], result["columns"]):
        assert numpy.array_equal(large, expected)
        assert not large.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            large[0, 0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            large.setflags(write=True)
    assert result["columns"].flags.f_contiguous
    result["small"][0] = 1
    assert result["small"][:2].tolist() == [1, 1]


@not_as_jobs
def test_02_arrays_in_params_are_copies_whatever_their_size(synapse_executor):
    for size in (1000, 1_000_000):
        array = numpy.arange(size)
        assert synapse_executor.execute(values.WriteInto, {"array": array}) == 7 + size - 1
        assert array[0] == 0


@not_as_jobs
def test_01_shared_references_in_a_result_are_preserved(synapse_executor):
    knot = synapse_executor.execute(values.MakeKnot)
    assert type(knot[0]) is values.Plain
    assert knot[0] is knot[1]
    assert knot[2] is knot
    assert knot[0].knot is knot


@not_as_jobs
def test_01_result_is_a_copy(synapse_executor):
    synapse_executor.execute(values.ChangeableResults).append(3)
    assert synapse_executor.execute(values.ChangeableResults) == [1, 2]


class Shade(Enum):
    DARK = 1


@dataclass
class Tile:
    shade: Shade


class Pair(NamedTuple):
    left: Tile
    right: Tile


class Summary(BaseModel):
    pair: Pair
    shades: dict[Shade, int] = {}


class Summarize(BaseAction):
    def execute(self):
        return Summary(pair=Pair(Tile(Shade.DARK), Tile(Shade.DARK)), shades={Shade.DARK: 1})


METHODS = Tile.__init__, Tile.__eq__, Summary.__init__, Summarize.execute


@not_as_jobs
def test_01_result_with_classes_of_the_test_module_keeps_these_classes(synapse_executor):
    check_own_classes(synapse_executor.execute(Summarize))


def test_01_result_of_a_job_with_classes_of_the_test_module_keeps_these_classes(medley):
    check_own_classes(medley[0].result["own"])


def check_own_classes(result):
    assert portrait(result) == portrait(Summarize.execute(None))
    assert result.pair.left.shade is Shade.DARK
    assert (Tile.__init__, Tile.__eq__, Summary.__init__, Summarize.execute) == METHODS


@not_as_jobs
def test_01_result_with_classes_of_the_test_function_keeps_these_classes(synapse_executor):
    class Tone(Enum):
        HIGH = "high"

    @dataclass
    class Note:
        tone: Tone

    class Song(BaseModel):
        notes: list[Note]

    class Sing(BaseAction):
        def execute(self):
            return Song(notes=[Note(Tone.HIGH)])

    result = synapse_executor.execute(Sing)
    assert type(result) is Song
    assert result == Song(notes=[Note(Tone.HIGH)])
    assert result.notes[0].tone is Tone.HIGH


# Row 2: params

AWKWARD_PARAMS = {
    "unicode": "snow ☃ 한국어 \U0001f600 e\u0301",
    "half a character": "\ud800",
    "control characters": "\x00\x1e\r\n\u2028",
    "nan": math.nan,
    "inf": [math.inf, -math.inf, -0.0],
    "large": 2**70,
    "long": "0123456789☃" * 95_000,
    "long bytes": bytes(range(256)) * 4096,
    "types": [None, True, 1, 1.0, (1,), {1}, b"1", complex(1, -0.0)],
    "keys": {1: "a", None: "b", (1, 2): "c"},
    "enum": values.Color.GREEN,
    "dataclass": values.Point(1.0, 2.0, ["a"]),
    "model": values.Report(accuracy=0.5),
    "path": Path("some/where"),
}


def awkward_params() -> dict:
    return {"value": {**AWKWARD_PARAMS, "arrays": values.array_values()}}


SEEN = repr(portrait(awkward_params()["value"], named))


@not_as_jobs
def test_02_params_arrive_intact(synapse_executor):
    assert synapse_executor.execute(values.See, awkward_params()) == SEEN


def test_02_params_of_a_job_arrive_intact(medley):
    assert medley[0].result["seen"] == SEEN


@not_as_jobs
def test_02_params_without_a_model_arrive_intact(synapse_executor):
    seen = synapse_executor.execute(values.SeeAll, awkward_params())
    assert seen == repr(portrait(awkward_params(), named))


@not_as_jobs
def test_02_params_are_validated_once_and_by_the_model_that_the_test_sees(synapse_executor, tmp_path):
    params = synapse_executor.execute(values.Counted, {"tally": str(tmp_path / "tally"), "number": "5"})
    assert (tmp_path / "tally").read_text() == "number\nwhole\n"
    assert type(params) is values.CountedParams
    assert params.number == 5


@not_as_jobs
def test_02_params_that_are_a_model_already_are_not_validated_again(synapse_executor, tmp_path):
    given = values.CountedParams.model_construct(tally=tmp_path / "tally", number="unchecked")
    params = synapse_executor.execute(values.Counted, given)
    assert not (tmp_path / "tally").exists()
    assert params.number == "unchecked"
    assert params is not given


@not_as_jobs
def test_02_defaults_and_coercions_are_applied(synapse_executor):
    params = {
        "learning_rate": "0.25",
        "where": "some/where",
        "day": "2024-02-29",
        "layers": [{"size": "3"}, {"size": 4, "color": "green"}],
        "sizes": ["1", 2.0],
        "names": ["a", "a"],
        "by_color": {"red": 1},
        "point": {"x": "1", "y": 2},
    }
    result = synapse_executor.execute(values.Train, params)
    assert portrait(result) == portrait(values.TrainParams.model_validate(params))
    assert (result.epochs, result.rate, result.layers[1].color) == (3, 0.25, values.Color.GREEN)
    assert "epochs" not in result.model_fields_set


def changeable() -> dict:
    return {"list": [1], "dict": {"inner": {}}, "gone": 1}


@not_as_jobs
def test_02_action_that_changes_its_params_does_not_change_the_callers(synapse_executor):
    params = {"value": changeable()}
    result = synapse_executor.execute(values.Change, params)
    assert result == {"list": [1, "changed"], "dict": {"inner": {"changed": True}}}
    assert params == {"value": changeable()}


@not_as_jobs
def test_02_action_that_changes_params_without_a_model_does_not_change_the_callers(synapse_executor):
    params = {"value": changeable()}
    result = synapse_executor.execute(values.change_unchecked, params)
    assert result == {"list": [1, "changed"], "dict": {"inner": {"changed": True}}}
    assert params == {"value": changeable()}


@not_as_jobs
def test_02_action_that_changes_its_params_does_not_change_the_callers_model(synapse_executor):
    params = values.EchoParams(value=changeable())
    synapse_executor.execute(values.Change, params)
    assert params.value == changeable()


@not_as_jobs
def test_02_validator_that_changes_its_input_does_not_change_the_callers_params(synapse_executor):
    params = {"inner": {"old_size": 3}}
    assert synapse_executor.execute(values.Upgrade, params) == 3
    assert params == {"inner": {"old_size": 3}}


@not_as_jobs
def test_02_params_of_a_model_in_the_test_function_send_no_other_variable_of_it(synapse_executor):
    lock = threading.Lock()
    word = "this word stays here"

    class Words(BaseModel):
        text: str

    class Speak(BaseAction[Words]):
        def execute(self):
            return self.params.text

    assert word.encode() not in serialization.dumps(Words)
    with lock:
        assert synapse_executor.execute(Speak, {"text": "said"}) == "said"


# Row 3: invalid params

BAD_PARAMS = {
    "one": {"epochs": 0},
    "several": {"epochs": "many", "learning_rate": -1, "layers": [{"size": 1}, {"size": "x", "colour": "red"}]},
    "unknown": {"epoch": 3, "rate": 0.5},
    "of a validator": {"names": ["dog", "cat"]},
    "not finite": {"epochs": math.nan, "sizes": [math.inf]},
    "of strange types": {"epochs": threading.Lock(), "where": object, "point": lambda: 1},
}


def comparable(problems: list) -> list:
    """Return problems in a comparable form, since an exception in them equals only itself."""
    return [{**problem, "ctx": repr(problem.get("ctx")), "input": repr(problem["input"])} for problem in problems]


class TestBadParams:
    @pytest.fixture
    def started(self, tmp_path):
        return tmp_path / "started"

    @pytest.fixture
    def plugin_env(self, started):
        return {"STARTED": str(started), "NOT_IN_PROCESS": str(os.getpid())}

    @pytest.mark.parametrize("params", BAD_PARAMS.values(), ids=[name.replace(" ", "_") for name in BAD_PARAMS])
    def test_03_bad_params_are_rejected_with_pydantics_messages(self, synapse_executor, started, params):
        with pytest.raises(PydanticValidationError) as pydantics:
            values.TrainParams.model_validate(params)
        with pytest.raises(ValidationError) as caught:
            synapse_executor.execute(values.Train, params)
        assert comparable(caught.value.errors()) == comparable(pydantics.value.errors())
        assert type(caught.value.__cause__) is PydanticValidationError
        assert comparable(caught.value.__cause__.errors()) == comparable(pydantics.value.errors())
        assert not started.exists()

    def test_03_error_message_is_the_same(self, synapse_executor):
        run = synapse_executor.run(values.Train, BAD_PARAMS["several"] | {"epoch": 3})
        assert type(run.error) is ValidationError
        assert run.result is None
        assert run.events == []
        assert str(run.error) == (
            "train: 5 invalid parameters (TrainParams)\n"
            "  epochs: Input should be a valid integer, unable to parse string as an integer, got 'many'\n"
            "  learning_rate: Input should be greater than 0, got -1\n"
            "  layers.1.size: Input should be a valid integer, unable to parse string as an integer, got 'x'\n"
            "  layers.1.colour: Extra inputs are not permitted\n"
            "  epoch: Extra inputs are not permitted; did you mean 'epochs'?"
        )

    @not_as_jobs
    def test_03_action_starts_with_valid_params_only(self, synapse_executor, started):
        with pytest.raises(ValidationError):
            synapse_executor.execute(values.Train, {"epochs": 0})
        assert not started.exists()
        assert synapse_executor.execute(values.Train, {"epochs": 1}).epochs == 1
        assert started.exists()

    def test_03_validator_with_a_bug_is_reported_with_its_exception(self, synapse_executor):
        with pytest.raises(ValidationError, match="RuntimeError: a bug, met at 3") as caught:
            synapse_executor.execute(values.Broken, {"value": 3})
        assert type(caught.value.__cause__) is RuntimeError
        assert caught.value.__cause__.args == ("a bug, met at 3",)
        assert caught.value.errors() == []

    @pytest.mark.parametrize("params", [[1, 2], "text", values.Point(1, 2), 3], ids=["list", "str", "other", "int"])
    def test_03_params_that_are_not_a_dict_are_rejected(self, synapse_executor, params):
        with pytest.raises(ValidationError) as caught:
            synapse_executor.execute(values.Train, params)
        assert [problem["type"] for problem in caught.value.errors()] == ["model_type"]

    # Requesting such a worker raises ClusterError; another error means that none was requested.
    @pytest.mark.synapse(num_cpus=100_000)
    def test_03_with_bad_params_nothing_is_submitted(self, synapse_executor, synapse_mode, request):
        run = synapse_executor.run(values.Train, {"epochs": 0})
        assert type(run.error) is ValidationError
        if synapse_mode == "job":
            with pytest.raises(ClusterError, match=f"has no job '{run.job_id}'"):
                synapse_executor.get_status(run.job_id)
        if synapse_mode == "remote":
            jobs = request.getfixturevalue("synapse_backend").client.jobs()
            assert run.job_id not in {job.id for job in jobs}
            return
        asked = contextlib.nullcontext() if synapse_mode == "local" else pytest.raises(ClusterError, match="100000")
        with asked:
            synapse_executor.execute(values.Train, {"epochs": 1})

    @on_workers
    def test_03_worker_validates_with_the_same_messages_if_the_model_cannot_be_imported_here(self, synapse_executor):
        with pytest.raises(ImportError, match="not here"):
            self.import_here()
        with pytest.raises(ValidationError) as caught:
            synapse_executor.execute("lab.elsewhere:Far", {"epochs": "many", "rate": [1]})
        problems = caught.value.errors()
        assert [(problem["type"], problem["loc"]) for problem in problems] == [
            ("int_parsing", ("epochs",)),
            ("float_type", ("rate",)),
        ]
        assert type(caught.value.__cause__) is PydanticValidationError
        assert caught.value.__cause__.errors() == problems

    def import_here(self):
        os.environ["NOT_IN_PROCESS"] = str(os.getpid())
        try:
            import lab.elsewhere  # noqa: F401
        finally:
            del os.environ["NOT_IN_PROCESS"]


# Row 17: values that cannot be pickled


def rejected(executor, action, params=None) -> ResultNotSerializable:
    error = executor.run(action, params).error
    assert type(error) is ResultNotSerializable, error
    return error


def test_17_result_that_cannot_be_pickled_is_rejected_and_its_part_named(synapse_executor):
    error = rejected(synapse_executor, values.ReturnStuck, {"name": "attribute of an item"})
    assert str(error) == (
        'result["model"].lock cannot be sent between processes: _thread.lock: '
        f"{values.NO_LOCK}. Use plain data instead, or the path of a file that contains it."
    )
    assert type(error.__cause__) is TypeError
    assert error.__cause__.args == (values.NO_LOCK,)


@not_as_jobs
@pytest.mark.parametrize("name", values.STUCK, ids=lambda name: name.replace(" ", "_"))
def test_17_part_that_cannot_be_pickled_is_named_wherever_it_is(synapse_executor, name):
    error = rejected(synapse_executor, values.ReturnStuck, {"name": name})
    assert str(error) == values.stuck_text("result", name)


@not_as_jobs
def test_17_key_that_cannot_be_pickled_is_named_by_its_dict(synapse_executor):
    text = str(rejected(synapse_executor, values.ReturnLockAsKey))
    assert text.startswith('result["table"] cannot be sent between processes: dict: ')
    assert values.NO_LOCK in text


@not_as_jobs
def test_17_generator_as_a_result_is_rejected(synapse_executor):
    error = rejected(synapse_executor, values.ReturnGenerator)
    assert str(error) == "return_generator returned a generator; return its items as a list instead"


def one_way_text(whole):
    return (
        f"{whole} cannot be sent between processes: lab.values.OneWay: this cannot be read. "
        "Use plain data instead, or the path of a file that contains it."
    )


@not_as_jobs
def test_17_result_that_cannot_be_unpickled_is_named_too(synapse_executor):
    error = rejected(synapse_executor, values.ReturnOneWay, {"size": 10})
    assert str(error) == one_way_text('result["model"].part')


@not_as_jobs
def test_17_large_result_that_cannot_be_unpickled_is_named_too(synapse_executor):
    error = rejected(synapse_executor, values.ReturnOneWay, {"size": 2_000_000})
    assert str(error) == one_way_text('result["model"].part')


@not_as_jobs
def test_17_events_before_a_result_that_cannot_be_pickled_are_kept(synapse_executor):
    class Speak(BaseAction):
        def execute(self):
            self.log("before")
            return threading.Lock()

    run = synapse_executor.run(Speak)
    assert type(run.error) is ResultNotSerializable
    assert [event.name for event in run.events] == ["before"]


# These fail before a worker is requested, so all modes run all of them.
@pytest.mark.parametrize("name", values.STUCK, ids=lambda name: name.replace(" ", "_"))
def test_17_params_that_cannot_be_pickled_are_rejected_with_the_same_message(synapse_executor, name):
    error = rejected(synapse_executor, values.SeeAll, {"value": values.STUCK[name][0]()})
    assert str(error) == values.stuck_text('params["value"]', name)


def test_17_params_of_a_model_that_cannot_be_pickled_are_named_by_their_field(synapse_executor):
    error = rejected(synapse_executor, values.Echo, {"value": {"model": values.Model()}})
    assert str(error) == (
        'params.value["model"].lock cannot be sent between processes: _thread.lock: '
        f"{values.NO_LOCK}. Use plain data instead, or the path of a file that contains it."
    )


def test_17_params_that_cannot_be_unpickled_are_named_too(synapse_executor):
    error = rejected(synapse_executor, values.SeeAll, {"value": [values.OneWay()]})
    assert str(error) == one_way_text('params["value"][0]')


# Row 18: results that do not match their model

MISMATCHING = {"accuracy": "high", "name": 3}
MISMATCH = (
    "scored: the result does not match Score: accuracy: Input should be a valid number, "
    "unable to parse string as a number; name: Input should be a valid string"
)


def reports_mismatch(executor, action):
    with pytest.warns(ResultMismatchWarning) as caught:
        run = executor.run(action, {"value": MISMATCHING})
    assert run.result == MISMATCHING
    check_mismatch(run, caught, MISMATCH)


def check_mismatch(run, caught, text):
    assert [(item.category, str(item.message)) for item in caught] == [(ResultMismatchWarning, text)]
    assert [(event.kind, event.name, event.data, event.level) for event in run.events] == [
        ("log", "result_mismatch", {"problem": text}, "warning")
    ]


@not_as_jobs
def test_18_result_that_does_not_match_its_model_is_reported_by_warning_and_event(synapse_executor):
    reports_mismatch(synapse_executor, values.Scored)


def test_18_result_of_a_job_that_does_not_match_its_model_is_reported_by_warning_and_event(medley):
    check_mismatch(*medley, MISMATCH.replace("scored", "medley"))


@not_as_jobs
def test_18_result_of_a_function_is_checked_too(synapse_executor):
    reports_mismatch(synapse_executor, values.scored)


@not_as_jobs
def test_18_every_mismatch_is_reported_not_only_the_first(synapse_executor):
    reports_mismatch(synapse_executor, values.Scored)
    reports_mismatch(synapse_executor, values.Scored)


@not_as_jobs
def test_18_none_does_not_match_a_result_model(synapse_executor):
    with pytest.warns(ResultMismatchWarning, match="scored: the result does not match Score: result: Input should be"):
        run = synapse_executor.run(values.Scored)
    assert run.result is None
    assert run.error is None
    assert len(run.events) == 1


def passes_without_report(executor, given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = executor.run(values.Scored, {"value": given})
    assert [item for item in caught if item.category is ResultMismatchWarning] == []
    assert run.events == []
    return run.result


@not_as_jobs
def test_18_matching_result_passes_unchanged_and_is_not_reported(synapse_executor):
    assert passes_without_report(synapse_executor, {"accuracy": "1"}) == {"accuracy": "1"}


@not_as_jobs
def test_18_result_of_the_models_class_passes(synapse_executor):
    result = passes_without_report(synapse_executor, "a score")
    assert type(result) is values.Score
    assert result.accuracy == 0.5


@not_as_jobs
def test_18_mismatch_fails_the_run_if_warnings_are_errors(synapse_executor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = synapse_executor.run(values.Scored, {"value": {"accuracy": "high", "name": 3}})
    assert type(run.error) is ExecutionError
    assert type(run.error.__cause__) is ResultMismatchWarning
    assert str(run.error.__cause__) == MISMATCH


@not_as_jobs
def test_18_result_model_with_a_bug_fails_the_run_with_its_exception(synapse_executor):
    run = synapse_executor.run(values.ScoredByBroken)
    assert type(run.error) is ExecutionError
    assert type(run.error.__cause__) is RuntimeError
    assert run.error.__cause__.args == ("a bug",)

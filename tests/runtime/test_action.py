"""Tests for the forms of actions, their params models, and the errors about invalid params."""

from __future__ import annotations

import abc
import copy
from collections import OrderedDict, UserDict, deque, namedtuple
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic import ValidationError as PydanticValidationError

from synapse_runtime.action import (
    BaseAction,
    NoResult,
    P,
    describe,
    is_action,
    name_of,
    params_model_of,
    require_action,
    result_mismatch,
    validate_params,
    validate_result,
)
from synapse_runtime.context import RuntimeContext
from synapse_runtime.decorators import action
from synapse_runtime.errors import ConfigError, ExecutionError, ResultMismatchWarning, ValidationError
from synapse_runtime.types import Dataset, ModelWeights, YOLODataset

R = TypeVar("R", bound=BaseModel)
Q = TypeVar("Q", bound=BaseModel)


Point = namedtuple("Point", "x y")


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(1, ge=1)


class OtherParams(Params):
    rate: float = 0.1


class Result(BaseModel):
    accuracy: float


class Train(BaseAction[Params]):
    def execute(self) -> Any:
        return type(self.params).__name__, self.params.epochs


def test_params_model_comes_from_the_generic_parameter():
    assert Train.params_model is Params


def test_subclasses_inherit_the_params_model():
    class Sub(Train):
        pass

    class SubSub(Sub):
        pass

    assert SubSub.params_model is Params


def test_subclass_may_override_the_params_model_for_its_own_subclasses():
    class Sub(Train):
        params_model = OtherParams

    class SubSub(Sub):
        pass

    assert Sub.params_model is OtherParams
    assert SubSub.params_model is OtherParams
    assert Train.params_model is Params


def test_explicit_params_model_overrides_the_generic_parameter():
    class Both(BaseAction[Params]):
        params_model = OtherParams

        def execute(self) -> Any: ...

    class Sub(Both):
        pass

    assert (Both.params_model, Sub.params_model) == (OtherParams, OtherParams)


def test_custom_generic_action_gets_its_model_from_its_subclass():
    class Middle(BaseAction[Q], Generic[Q]):
        def execute(self) -> Any: ...

    class Leaf(Middle[Params]):
        pass

    class LeafOfLeaf(Leaf):
        pass

    class Other(Middle[OtherParams]):
        pass

    assert Middle.params_model is None
    assert (Leaf.params_model, LeafOfLeaf.params_model, Other.params_model) == (Params, Params, OtherParams)


def test_model_is_taken_from_the_type_variable_of_the_params():
    class Middle(BaseAction[P], Generic[R, P]):
        def execute(self) -> Any: ...

    class Lower(Middle[Result, Q], Generic[Q]):
        pass

    class Leaf(Lower[Params]):
        pass

    class Direct(Middle[Result, OtherParams]):
        pass

    assert Leaf.params_model is Params
    assert Direct.params_model is OtherParams


def test_mixin_does_not_hide_the_params_model():
    class Mixin:
        pass

    class Mixed(Mixin, Train):
        pass

    assert Mixed.params_model is Params


def test_action_receives_a_model_instance_with_defaults_and_coercions(local):
    assert local.execute(Train, {}) == ("Params", 1)
    assert local.execute(Train, {"epochs": "7"}) == ("Params", 7)
    assert local.execute(Train, MappingProxyType({"epochs": 2})) == ("Params", 2)


def test_instance_of_a_model_subclass_is_accepted(local):
    assert local.execute(Train, OtherParams(epochs=3)) == ("OtherParams", 3)


def test_model_instance_is_not_validated_again(local):
    assert local.execute(Train, Params.model_construct(epochs=-5)) == ("Params", -5)


def error_of(local, params, target=Train) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        local.execute(target, params)
    return caught.value


@pytest.mark.parametrize(
    ("params", "lines"),
    [
        (
            {"epochs": 0},
            ["train: 1 invalid parameter (Params)", "  epochs: Input should be greater than or equal to 1, got 0"],
        ),
        (
            {"epoch": 3},
            ["train: 1 invalid parameter (Params)", "  epoch: Extra inputs are not permitted; did you mean 'epochs'?"],
        ),
        ({"zzz": 3}, ["train: 1 invalid parameter (Params)", "  zzz: Extra inputs are not permitted"]),
        (
            {"epochs": "many", "zzz": 1},
            [
                "train: 2 invalid parameters (Params)",
                "  epochs: Input should be a valid integer, unable to parse string as an integer, got 'many'",
                "  zzz: Extra inputs are not permitted",
            ],
        ),
    ],
)
def test_validation_error_lists_each_invalid_parameter_on_a_line(local, params, lines):
    assert str(error_of(local, params)).splitlines() == lines


def test_validation_error_names_missing_and_nested_parameters_by_path(local):
    class Nested(BaseModel):
        data: list[Params]
        name: str

    class Nest(BaseAction[Nested]):
        def execute(self) -> Any: ...

    text = str(error_of(local, {"data": [{"epochs": 1}, {"epochs": "x"}]}, Nest))
    assert "  data.1.epochs: Input should be a valid integer" in text
    assert "  name: Field required (missing)" in text


def test_params_that_are_not_a_dict_raise_a_validation_error(local):
    assert "  params: Input should be a valid dictionary or instance of Params, got [1]" in str(error_of(local, [1]))


def test_validation_error_shortens_long_values(local):
    line = str(error_of(local, {"epochs": "x" * 100_000})).splitlines()[1]
    assert len(line) < 200
    assert line.endswith("…")


def test_validation_error_has_pydantics_errors_and_cause(local):
    error = error_of(local, {"epochs": "x"})
    assert isinstance(error.__cause__, PydanticValidationError)
    assert error.errors() == error.__cause__.errors()
    assert error.errors()[0]["loc"] == ("epochs",)


def test_unexpected_exception_of_a_validator_becomes_a_validation_error(local):
    class Careless(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def known(cls, value: str) -> str:
            return {}[value]

    class Look(BaseAction[Careless]):
        def execute(self) -> Any:
            raise AssertionError("must not start")

    error = error_of(local, {"name": "n"}, Look)
    assert str(error) == "look: validating the parameters failed (Careless): KeyError: 'n'"
    assert isinstance(error.__cause__, KeyError)


def test_action_without_a_model_receives_the_dict_unchanged(local):
    class Plain(BaseAction):
        def execute(self) -> Any:
            return self.params

    assert local.execute(Plain, {"anything": [1]}) == {"anything": [1]}
    assert local.execute(Plain) == {}


def test_action_function_receives_params_and_context(local):
    @action(params=Params)
    def scale(params, context):
        return params.epochs, context.job_id

    run = local.run(scale, {"epochs": "2"})
    assert run.result == (2, run.job_id)
    assert run.name == "scale"


def test_action_function_without_a_model_receives_the_dict_and_stays_callable(local):
    @action
    def echo(params, context):
        return params

    assert local.execute(echo, {"a": 1}) == {"a": 1}
    assert echo("called", None) == "called"
    assert params_model_of(echo) is None


def test_action_function_has_its_description(local):
    @action("resize", description="Make it small.", params=Params, result=Result, category="data")
    def anything(params, context):
        return {"accuracy": 1}

    assert name_of(anything) == "resize"
    assert anything._action_description == "Make it small."
    assert anything._action_category == "data"
    assert local.execute(anything, {}) == {"accuracy": 1}


def test_any_class_with_a_model_and_execute_is_an_action(local):
    class Own:
        params_model = Params

        def __init__(self, params, ctx):
            self.params, self.ctx = params, ctx

        def execute(self):
            self.ctx.log("own")
            return self.params.epochs

    run = local.run(Own, {"epochs": "4"})
    assert run.result == 4
    assert [event.name for event in run.logs] == ["own"]
    assert "epochs: Input should be a valid integer" in str(error_of(local, {"epochs": "x"}, Own))


def test_class_with_dispatch_is_called_through_dispatch(local):
    class Own:
        params_model = Params

        def __init__(self):
            raise AssertionError("dispatch makes what it needs")

        @classmethod
        def dispatch(cls, params, ctx):
            return cls.__name__, params.epochs, ctx.env.get("A")

        def execute(self):
            raise AssertionError("dispatch decides")

    assert local.execute(Own, {"epochs": 2}) == ("Own", 2, None)


def test_async_action_of_any_form_is_awaited(local):
    class Class(BaseAction):
        async def execute(self):
            return "class"

    @action
    async def function(params, context):
        return "function"

    class Own:
        @classmethod
        async def dispatch(cls, params, ctx):
            return "dispatch"

    assert [local.execute(each) for each in (Class, function, Own)] == ["class", "function", "dispatch"]


def test_exception_of_an_async_action_is_the_cause(local):
    @action
    async def fail(params, context):
        raise KeyError("k")

    with pytest.raises(ExecutionError, match="fail failed: KeyError: 'k'") as caught:
        local.execute(fail)
    assert isinstance(caught.value.__cause__, KeyError)


def test_abstract_action_fails_and_names_the_missing_method(local):
    class Unfinished(BaseAction):
        @abc.abstractmethod
        def more(self): ...

    with pytest.raises(ExecutionError, match="abstract"):
        local.execute(Unfinished)


@pytest.mark.parametrize("returned", [{"accuracy": 0.5}, {"accuracy": "0.5"}, Result(accuracy=0.5)])
def test_result_that_matches_its_model_is_returned_unchanged(local, returned):
    class Fits(BaseAction):
        result_model = Result

        def execute(self):
            return returned

    run = local.run(Fits)
    assert run.result is returned
    assert run.logs == []


@pytest.mark.parametrize("form", ["class", "function"])
def test_mismatched_result_warns_is_logged_and_is_returned_unchanged(local, form):
    class Misfit(BaseAction):
        result_model = Result

        def execute(self):
            return {"acc": 1}

    @action("misfit", result=Result)
    def function(params, context):
        return {"acc": 1}

    text = "misfit: the result does not match Result: accuracy: Field required"
    with pytest.warns(ResultMismatchWarning, match=text):
        run = local.run(Misfit if form == "class" else function)
    assert run.result == {"acc": 1}
    assert [(event.name, event.level, event.data) for event in run.logs] == [
        ("result_mismatch", "warning", {"problem": text})
    ]


def test_base_action_emits_events_through_its_context(local):
    class Talk(BaseAction):
        def execute(self):
            self.log("saved", {"a": 1}, "f.txt")
            self.set_progress(1, 2, "s")
            self.set_metrics({"x": 1}, "s")
            self.log_message("{n} done", "warning", n=3)
            self.logger.info("plain")
            return self.logger is self.ctx.logger

    run = local.run(Talk)
    assert run.result is True
    assert [(event.kind, event.name, event.step, event.file) for event in run.events] == [
        ("log", "saved", None, "f.txt"),
        ("progress", "", "s", None),
        ("metrics", "", "s", None),
        ("message", "3 done", None, None),
        ("message", "plain", None, None),
    ]


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("Train", "train"),
        ("TrainAction", "train"),
        ("TrainModelAction", "train_model"),
        ("Action", "action"),
        ("YOLOExport", "yoloexport"),
        ("Export2ONNX", "export2_onnx"),
    ],
)
def test_action_name_is_derived_from_the_class_name(class_name, name):
    assert name_of(type(class_name, (), {})) == name


def test_action_may_set_its_own_name():
    assert name_of(type("Train", (), {"action_name": "learn"})) == "learn"


@pytest.mark.parametrize("value", [3, None, "train", len, object, Params, lambda params, context: None])
def test_error_for_a_non_action_lists_what_is_accepted(value):
    assert not is_action(value)
    with pytest.raises(ConfigError, match="is not an action: expected a class with an execute method, an @action"):
        require_action(value)


@pytest.mark.parametrize(
    ("value", "lack"),
    [
        (Params, "this class has neither execute nor dispatch"),
        (lambda **params: None, "this function is not decorated with @action"),
    ],
    ids=["class", "function"],
)
def test_error_for_a_non_action_says_what_is_missing(value, lack):
    with pytest.raises(ConfigError, match=f"; {lack}$"):
        require_action(value)


def test_describe_returns_module_and_name():
    assert describe(Train) == f"{__name__}.Train"
    assert describe(len) == "builtins.len"
    assert describe(3) == "3"


class TakesApart(BaseModel):
    """A model whose validator modifies its input, as validators that accept older forms of params do."""

    size: int = 0

    @model_validator(mode="before")
    @classmethod
    def _old_form(cls, data: Any) -> Any:
        return {"size": data.pop("old_size")}


class Nested(BaseModel):
    one: TakesApart | None = None
    many: list[TakesApart] = []
    pair: tuple[TakesApart, ...] = ()
    anything: Any = None


@pytest.mark.parametrize(
    "params",
    [
        {"one": {"old_size": 1}},
        {"many": [{"old_size": 1}, {"old_size": 2}]},
        {"pair": ({"old_size": 1}, {"old_size": 2})},
    ],
    ids=lambda params: next(iter(params)),
)
def test_validator_that_modifies_its_input_does_not_change_the_callers_params(params):
    before = copy.deepcopy(params)
    assert validate_params(_action_of(Nested), "nested", params) == Nested.model_validate(copy.deepcopy(params))
    assert params == before


def test_validator_that_modifies_its_input_does_not_change_the_result():
    result = {"one": {"old_size": 1}}
    assert result_mismatch(_action_of(Nested), "nested", result) is None
    assert result == {"one": {"old_size": 1}}


def test_self_referencing_params_are_validated():
    cyclic: list[Any] = [{}]
    cyclic[0]["pair"] = (cyclic, {1})
    checked = validate_params(_action_of(Nested), "nested", {"anything": cyclic}).anything
    assert checked is not cyclic
    assert checked[0]["pair"][0] is checked
    assert cyclic[0]["pair"][0] is cyclic


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)])
def test_deeply_nested_params_are_validated(wrap):
    value: Any = 1
    for _ in range(5_000):
        value = wrap(value)
    checked = validate_params(_action_of(Nested), "nested", {"anything": value}).anything
    while isinstance(checked, dict | list | tuple):
        checked = next(iter(checked.values() if isinstance(checked, dict) else checked))
    assert checked == 1


def test_shared_tuples_are_copied_only_once():
    value: Any = ([],)
    for _ in range(90):
        value = (value, value)
    checked = validate_params(_action_of(Nested), "nested", {"anything": value}).anything
    assert checked[0] is checked[1]
    assert checked[0] is not value[0]


def test_only_builtin_containers_are_copied():
    values = [OrderedDict(a=1), UserDict(a=1), deque([1]), Point(1, 2), Params()]
    checked = validate_params(_action_of(Nested), "nested", {"anything": values}).anything
    assert all(one is other for one, other in zip(checked, values, strict=True))


def test_shared_references_in_params_stay_shared():
    shared = [1]
    params = {"anything": {"a": shared, "b": (shared, {2}), "c": (1, "x")}}
    checked = validate_params(_action_of(Nested), "nested", params).anything
    assert checked == params["anything"]
    assert checked["a"] is checked["b"][0] is not shared
    assert checked["c"] is params["anything"]["c"]


def _action_of(model: type[BaseModel]) -> Any:
    return type("Checked", (), {"params_model": model, "result_model": model, "execute": None})


def test_class_may_override_run_to_wrap_execute(local):
    class Around(BaseAction[Params]):
        def execute(self):
            return [self.params.epochs]

        def run(self):
            return ["before", *super().run(), "after"]

    assert local.execute(Around, {"epochs": 3}) == ["before", 3, "after"]


def test_class_that_overrides_dispatch_receives_params_unvalidated(local):
    class Own(BaseAction[Params]):
        def execute(self):
            return self.params.epochs

        @classmethod
        def dispatch(cls, params, ctx):
            assert type(params) is dict
            return super().dispatch({"epochs": params["rounds"]}, ctx)

    assert local.execute(Own, {"rounds": "4"}) == 4


def test_validation_error_in_dispatch_is_the_runs_error(local):
    class Own(BaseAction[Params]):
        def execute(self):
            raise AssertionError("never starts")

        @classmethod
        def dispatch(cls, params, ctx):
            return super().dispatch(params, ctx)

    problem = error_of(local, {"epochs": 0}, Own)
    assert [error["loc"] for error in problem.errors()] == [("epochs",)]
    assert isinstance(problem.__cause__, PydanticValidationError)


def test_validation_error_of_an_inner_action_is_an_execution_error_of_the_outer(local):
    class Outer(BaseAction):
        def execute(self):
            return Train.dispatch({"epochs": "x"}, RuntimeContext(print))

    run = local.run(Outer)
    assert type(run.error) is ExecutionError
    assert isinstance(run.error.__cause__, ValidationError)


def test_dispatch_can_be_called_directly():
    assert Train.dispatch({"epochs": "2"}, RuntimeContext(print)) == ("Params", 2)
    with pytest.raises(ValidationError, match="mine: 1 invalid parameter"):
        Train.dispatch({"epochs": "x"}, RuntimeContext(print, name="mine"))


def test_instance_has_name_and_category(local):
    class Named(BaseAction):
        def execute(self):
            return self.action_name, self.category

    class Says(Named):
        action_name = "says"
        category = "export"

    assert local.execute(Named) == ("named", None)
    assert local.execute(Says) == ("says", "export")
    assert Named.dispatch({}, RuntimeContext(print, name="n", category="custom")) == ("n", "custom")
    assert Named.action_name is None


def test_input_and_output_types_can_be_declared():
    class Typed(BaseAction):
        input_type = YOLODataset
        output_type = ModelWeights

        def execute(self): ...

    assert (Train.input_type, Train.output_type) == (None, None)
    assert Typed.input_type.is_compatible_with(Dataset)
    assert not Typed.output_type.is_compatible_with(Dataset)


@pytest.mark.parametrize("none", [None, NoResult])
def test_no_result_disables_the_result_check(local, none):
    class Any_(BaseAction):
        result_model = none

        def execute(self):
            return {"anything": 1}

    assert Train.result_model is NoResult
    assert local.execute(Any_) == {"anything": 1}


def test_validate_result_can_be_called_directly(caplog):
    assert validate_result({"accuracy": 1}, Result) == {"accuracy": 1}
    assert validate_result("x", NoResult) == "x"
    assert caplog.records == []
    assert validate_result({"loss": 1}, Result) == {"loss": 1}
    assert "the result does not match Result: accuracy: Field required" in caplog.text


def test_validators_receive_the_client_in_their_context(local):
    class Asking(BaseModel):
        ids: list[int]

        @field_validator("ids")
        @classmethod
        def known(cls, value, info):
            assert info.context["client"] is None
            return value

    @action(params=Asking)
    def ask(params, context):
        return params.ids

    assert local.execute(ask, {"ids": [1]}) == [1]


def test_message_code_class_must_be_overridden():
    with pytest.raises(NotImplementedError, match="Train has no message codes"):
        Train.get_log_message_code_class()


def test_action_logs_metrics_and_images_through_its_context(local):
    class Speaks(BaseAction):
        def execute(self):
            self.log_metric("train", "loss", 0.5)
            self.log_visualization("train", "g", 1, "a.png")
            self.set_progress(1, 2, category="load")
            self.log_message({"en": "{n}"}, n=1)

    assert [(event.kind, event.name, event.step) for event in local.run(Speaks).events] == [
        ("log", "metric", None),
        ("log", "visualization", None),
        ("progress", "", "load"),
        ("message", "1", None),
    ]

"""An `@action` function's annotations are its models: of its params, and of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from synapse_runtime import serialization
from synapse_runtime.action import params_model_of, result_model_of
from synapse_runtime.decorators import action
from synapse_runtime.errors import ConfigError, ResultMismatchWarning, ValidationError
from synapse_runtime.executors.local import LocalExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nowhere import Hidden

    from synapse_runtime.context import RuntimeContext


@action
def before_its_model(params: Later, context: RuntimeContext) -> Result:
    return params.number


class Later(BaseModel):
    number: int = 1


class Result(BaseModel):
    number: int


@action
def plain(params: Mapping[str, Any], context: Any) -> Hidden:
    return params


@action("named", params=Later)
def explicit(params: Hidden, context: RuntimeContext) -> dict[str, int]:
    return {"number": params.number}


@action
def hidden(params: Hidden, context: RuntimeContext) -> None:
    """Has params whose type is imported for type checking only."""


def execute(target: Any, params: Any = None) -> Any:
    return LocalExecutor(strict=True).execute(target, params)


def test_params_are_validated_by_the_model_even_if_it_is_defined_later() -> None:
    assert params_model_of(before_its_model) is Later
    with pytest.warns(ResultMismatchWarning, match="does not match Result"):
        assert execute(before_its_model, {"number": "3"}) == 3
    with pytest.raises(ValidationError, match=r"number: Input should be a valid integer"):
        execute(before_its_model, {"number": "x"})
    assert result_model_of(before_its_model) is Result


def test_model_of_an_enclosing_function() -> None:
    class Local(BaseModel):
        number: int = 4

    @action
    def local(params: Local, context: RuntimeContext) -> int:
        return params.number

    assert execute(local) == 4
    copy = serialization.loads(serialization.dumps(local))
    assert execute(copy, {"number": 5}) == 5


def test_annotations_that_are_no_models_are_left_alone() -> None:
    assert execute(plain, {"a": 1}) == {"a": 1}
    assert (params_model_of(plain), result_model_of(plain)) == (None, None)


def test_explicit_model_takes_precedence() -> None:
    assert execute(explicit, {"number": 2}) == {"number": 2}


def test_annotation_that_cannot_be_resolved_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        execute(hidden)
    text = str(caught.value)
    assert "test_annotated_models.hidden: the annotation 'Hidden' cannot be resolved: NameError" in text
    assert "Import it at run time, not only for type checking, or pass the model: @action(params=...)" in text


def test_context_must_be_the_second_parameter() -> None:
    def swapped(context: RuntimeContext, params: Later) -> None: ...

    with pytest.raises(ConfigError, match=r"swapped: its first parameter 'context' is the context; an action takes"):
        action(swapped)


def test_params_without_annotations() -> None:
    @action
    def bare(params, context):  # type: ignore[no-untyped-def]
        return params

    assert execute(bare, {"a": 1}) == {"a": 1}

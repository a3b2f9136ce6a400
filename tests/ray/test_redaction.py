"""What a report of a failed action shows of secrets in the worker: variables, inherited ones, params."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel

from synapse_runtime import redaction
from synapse_runtime.action import BaseAction
from synapse_runtime.executors.ray import RayActorExecutor
from synapse_runtime.loggers import NullLogger

PEM = "-----BEGIN KEY-----\ncanary-of-the-variable-1\ncanary-of-the-variable-2\n-----END KEY-----\n"
QUOTED = "canary'of\"the\\quotes"


class Params(BaseModel):
    api_key: str
    customer: str


@dataclass
class Settings:
    key: str
    raw: bytes = b""
    many: list[str] = field(default_factory=list)


class Leaks(BaseAction[Params]):
    def execute(self):
        pem, quoted = os.environ["PEM"], os.environ["QUOTED"]
        settings = Settings(pem, quoted.encode(), [quoted] * 200)
        deep = [[[[[pem, {"quoted": quoted}]]]]]
        return fail(
            dict(os.environ), settings, deep, [pem] * 200, self.params, self.params.api_key, self.params.customer
        )


def fail(variables, settings, deep, many, params, key, customer):
    raise PermissionError("refused")


def shown_arguments(executor: RayActorExecutor) -> str:
    run = executor.run(Leaks, {"api_key": "canary-of-the-param", "customer": "canary-of-the-customer"})
    assert run.error is not None
    cause = run.error.__cause__
    assert isinstance(cause, PermissionError)
    tb = cause.__traceback__
    assert tb is not None
    while tb.tb_next is not None:
        tb = tb.tb_next
    assert tb.tb_frame.f_code.co_name == "fail"
    return repr(tb.tb_frame.f_locals)


@pytest.fixture
def executor(worker) -> RayActorExecutor:
    return RayActorExecutor({"PEM": PEM, "QUOTED": QUOTED}, worker=worker, logger=NullLogger())


def test_arguments_show_no_secrets_in_any_form(executor):
    text = shown_arguments(executor)
    assert "canary-of-the-variable" not in text
    assert "canary-of-the-param" not in text
    assert 'of\\"the' not in text
    assert 'of"the' not in text
    assert "<PEM>" in text
    assert "<QUOTED>" in text
    assert "<api_key>" in text
    assert "<RAY_AUTH_TOKEN>" in text, "the cluster's token is in the worker's environment"
    assert "canary-of-the-customer" in text


def test_values_that_the_user_names_are_masked(executor):
    redaction.mask(["customer"])
    try:
        text = shown_arguments(executor)
    finally:
        redaction.mask([])
    assert "canary-of-the-customer" not in text
    assert "<customer>" in text

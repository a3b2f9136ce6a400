"""Tests for running an action in local mode: process state, outcomes, strict mode."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import warnings

import pytest
from pydantic import BaseModel, ConfigDict

from synapse_runtime.action import BaseAction
from synapse_runtime.core.timeouts import MAX_SECONDS
from synapse_runtime.decorators import action
from synapse_runtime.errors import (
    ConfigError,
    ExecutionError,
    ExecutionTimeout,
    ResultMismatchWarning,
    ResultNotSerializable,
    ValidationError,
)
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from tests.patience import patience


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = 3
    rates: list[float] = []


class Echo(BaseAction[Params]):
    def execute(self):
        return self.params


def local(**options) -> LocalExecutor:
    return LocalExecutor(logger=NullLogger(), **options)


def test_defaults_and_coercions_do_not_change_the_callers_dict():
    params = {"epochs": "7"}
    assert local().execute(Echo, params) == Params(epochs=7)
    assert params == {"epochs": "7"}


def test_params_instance_is_passed_unchanged():
    params = Params(epochs=9)
    assert local().execute(Echo, params) is params


@pytest.mark.parametrize(
    ("params", "words"),
    [({"epochs": "x"}, "epochs: Input should be a valid integer"), ({"epoch": 1}, "did you mean 'epochs'")],
)
def test_validation_error_names_action_and_field(params, words):
    with pytest.raises(ValidationError) as caught:
        local().execute(Echo, params)
    assert str(caught.value).startswith("echo: 1 invalid parameter (Params)\n")
    assert words in str(caught.value)
    assert caught.value.errors() == caught.value.__cause__.errors()


def test_params_model_of_the_generic_parameter_is_inherited():
    class Child(Echo):
        pass

    assert local().execute(Child, {"epochs": 1}) == Params(epochs=1)


def test_params_without_a_model_are_the_dict():
    class Bare(BaseAction):
        def execute(self):
            return self.params

    assert local().execute(Bare, {"a": 1}) == {"a": 1}


def test_callers_dict_is_not_changed_without_a_model_either():
    class Greedy(BaseAction):
        def execute(self):
            return self.params.pop("a")

    params = {"a": 1}
    assert local().execute(Greedy, params) == 1
    assert params == {"a": 1}


def test_environment_has_three_layers_and_is_restored(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTER", "outer")
    monkeypatch.setenv("SHARED", "outer")

    class Look(BaseAction):
        def execute(self):
            os.environ["LEFT_BEHIND"] = "x"
            del os.environ["OUTER"]
            return self.ctx.env.get_str("OUTER"), self.ctx.env.get_int("SHARED"), os.environ["SHARED"]

    before = dict(os.environ)
    assert local(env={"SHARED": 5}).execute(Look) == ("outer", 5, "5")
    assert dict(os.environ) == before


def test_working_directory_is_restored_after_a_failure(tmp_path):
    class Wander(BaseAction):
        def execute(self):
            os.chdir(tmp_path)
            raise ValueError("lost")

    before = os.getcwd()
    with pytest.raises(ExecutionError, match="wander failed: ValueError: lost"):
        local().execute(Wander)
    assert os.getcwd() == before


def test_exception_of_the_action_is_the_cause():
    problem = KeyError("k")

    class Fail(BaseAction):
        def execute(self):
            raise problem

    with pytest.raises(ExecutionError) as caught:
        local().execute(Fail)
    assert caught.value.__cause__ is problem


def test_execution_error_raised_by_the_action_is_the_cause_too():
    class Refuse(BaseAction):
        def execute(self):
            raise ExecutionError("no")

    with pytest.raises(ExecutionError, match="refuse failed: ExecutionError: no") as caught:
        local().execute(Refuse)
    assert type(caught.value.__cause__) is ExecutionError


def test_sys_exit_becomes_an_execution_error():
    class Leave(BaseAction):
        def execute(self):
            sys.exit(3)

    with pytest.raises(ExecutionError, match=r"leave called sys\.exit\(3\)") as caught:
        local().execute(Leave)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_ctrl_c_is_raised_and_the_process_state_restored():
    class Interrupted(BaseAction):
        def execute(self):
            signal.raise_signal(signal.SIGINT)

    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt):
        local(env={"A": 1}).execute(Interrupted)
    assert dict(os.environ) == before


def test_async_execute_is_awaited_even_if_a_loop_is_running():
    class Later(BaseAction):
        async def execute(self):
            await asyncio.sleep(0)
            return "later"

    async def outer():
        return local().execute(Later)

    assert local().execute(Later) == "later"
    assert asyncio.run(outer()) == "later"


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_generators_are_rejected(kind):
    class Plain(BaseAction):
        def execute(self):
            yield 1

    class Async(BaseAction):
        async def execute(self):
            yield 1

    with pytest.raises(ExecutionError, match="returned a generator"):
        local().execute(Plain if kind == "generator" else Async)


def test_any_class_with_execute_or_dispatch_is_an_action():
    class Duck:
        params_model = Params

        def __init__(self, params, ctx):
            self.params = params

        def execute(self):
            return self.params.epochs

    class Dispatcher:
        @classmethod
        def dispatch(cls, params, ctx):
            return params, ctx.job_id

    assert local().execute(Duck, {"epochs": 4}) == 4
    assert local(job_id="j").execute(Dispatcher, {"a": 1}) == ({"a": 1}, "j")


def test_non_action_raises_config_error():
    with pytest.raises(ConfigError, match="is not an action"):
        local().execute(len, {})


def test_function_action_stays_callable():
    @action(params=Params, result=None, description="adds")
    def add(params, context):
        return params.epochs + 1

    assert local().execute(add, {"epochs": 1}) == add(Params(epochs=1), None) == 2


def test_mismatched_result_is_returned_with_a_warning():
    class Result(BaseModel):
        accuracy: float

    class Off(BaseAction):
        result_model = Result

        def execute(self):
            return {"acuracy": 1}

    with pytest.warns(ResultMismatchWarning, match="off: the result does not match Result: accuracy: Field required"):
        run = local().run(Off)
    assert run.result == {"acuracy": 1}
    assert [event.name for event in run.logs] == ["result_mismatch"]


def test_job_id_is_the_given_one_or_new():
    class Who(BaseAction):
        def execute(self):
            return self.ctx.job_id

    given, fresh, other = local(job_id="train-001").run(Who), local().run(Who), local().run(Who)
    assert given.result == given.job_id == "train-001"
    assert fresh.result == fresh.job_id != other.job_id


def test_events_keep_their_order_and_a_copy_of_their_data():
    class Talk(BaseAction):
        def execute(self):
            seen = []
            for n in (1, 2):
                seen.append(n)
                self.ctx.log("seen", {"all": seen}, file="a.txt")
            self.ctx.set_progress(1, 2, "walk")
            self.set_metrics({"x": 1}, "walk")
            self.set_metrics({"x": 2, "y": 3}, "walk")
            self.ctx.log_message("hello {name}", "error", name="you")
            self.logger.warning("careful %d", 7)

    received = []
    run = local().run(Talk, on_event=received.append)
    assert received == run.events
    assert [event.data["all"] for event in run.logs[:2]] == [[1], [1, 2]]
    assert run.logs[0].file == "a.txt"
    assert run.progress == [(1, 2)]
    assert run.metrics == {"walk": {"x": 2, "y": 3}}
    assert run.metrics["walk"].history == [{"x": 1}, {"x": 2, "y": 3}]
    assert [(event.name, event.level) for event in run.logs[2:]] == [("hello you", "error"), ("careful 7", "warning")]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda ctx: ctx.set_metrics({"x": 1}, ""), ValueError),
        (lambda ctx: ctx.set_metrics([1], "s"), TypeError),
        (lambda ctx: ctx.set_progress(3, 2), ValueError),
        (lambda ctx: ctx.set_progress(0, 0), ValueError),
        (lambda ctx: ctx.set_metrics({"x": 1}), TypeError),
    ],
)
def test_invalid_reports_raise_an_error(call, error):
    class Wrong(BaseAction):
        def execute(self):
            call(self.ctx)

    with pytest.raises(ExecutionError) as caught:
        local().execute(Wrong)
    assert type(caught.value.__cause__) is error


class Slow(BaseAction):
    def execute(self):
        while True:
            time.sleep(0.01)


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_timeout_shows_the_stack_and_the_next_call_works(where):
    caught = []

    def call():
        try:
            local(timeout=0.1).execute(Slow)
        except ExecutionTimeout as error:
            caught.append(error)

    if where == "main thread":
        call()
    else:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(patience(10))
    (error,) = caught
    assert "slow exceeded its timeout of 0.1 s" in str(error)
    assert "time.sleep(0.01)" in error.details
    assert error.details in "".join(error.__notes__)
    assert local(timeout=patience(5)).execute(Echo) == Params()


def test_outer_timeout_ends_an_action_that_retries_another():
    class Outer(BaseAction):
        def execute(self):
            for _ in range(20):
                local().run(Slow)

    started = time.monotonic()
    with pytest.raises(ExecutionTimeout, match=r"outer exceeded its timeout of 0\.2 s"):
        local(timeout=0.2).execute(Outer)
    assert time.monotonic() - started < patience(2)


@pytest.mark.parametrize("timeout", [0, -1, "soon", True, float("nan"), float("inf"), 1e12, 10**400])
def test_timeout_must_be_positive_and_at_most_a_year(timeout):
    class Idle(BaseAction):
        def execute(self):
            pass

    with pytest.raises(ValueError, match="timeout must be a positive number"):
        local(timeout=timeout)
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        local().run(Idle, timeout=timeout)


def test_longest_timeout_works():
    class Idle(BaseAction):
        def execute(self):
            return "done"

    assert local(timeout=MAX_SECONDS).execute(Idle) == "done"


def test_action_may_run_another():
    class Outer(BaseAction):
        def execute(self):
            return local(env={"DEPTH": 2}).execute(Inner), self.ctx.env.get_int("DEPTH"), os.environ["DEPTH"]

    class Inner(BaseAction):
        def execute(self):
            return os.environ["DEPTH"]

    assert local(env={"DEPTH": 1}).execute(Outer) == ("2", 1, "1")


class TestStrict:
    def test_error_names_the_part_of_the_result_that_cannot_be_pickled(self):
        class Model(BaseAction):
            def execute(self):
                return {"model": {"lock": threading.Lock()}}

        with pytest.raises(ResultNotSerializable, match=r'result\["model"\]\["lock"\] cannot be sent between'):
            local(strict=True).execute(Model)
        assert "model" in local().execute(Model)

    def test_error_names_the_part_of_the_params_that_cannot_be_pickled(self):
        class Bare(BaseAction):
            def execute(self):
                return 1

        with pytest.raises(ResultNotSerializable, match=r'params\["lock"\] cannot be sent between processes'):
            local(strict=True).execute(
                type("Bare", (BaseAction,), {"execute": lambda self: 1}), {"lock": threading.Lock()}
            )

    def test_result_is_a_copy_of_the_same_class(self):
        kept = []

        class Keep(BaseAction[Params]):
            def execute(self):
                kept.append(self.params)
                return self.params

        method = Keep.execute
        result = local(strict=True).execute(Keep, {"rates": [0.1]})
        assert result == kept[0]
        assert type(result) is Params
        assert result.rates is not kept[0].rates
        assert Keep.execute is method


def test_warnings_of_an_action_reach_the_caller():
    class Warn(BaseAction):
        def execute(self):
            warnings.warn("careful", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="careful"):
        local().execute(Warn)


def test_observer_is_called_before_each_call_and_after_each_run_even_if_it_failed():
    observed: list[tuple[str, str, str, bool]] = []

    class Watcher:
        def started(self, call):
            observed.append(("started", call.name, call.job_id, False))

        def finished(self, run):
            observed.append(("finished", run.name, run.job_id, run.error is not None))

    executor = local()
    executor.observer = Watcher()
    ids = [executor.run(Echo, params).job_id for params in ({}, {"epochs": "x"})]

    assert observed == [
        ("started", "echo", ids[0], False),
        ("finished", "echo", ids[0], False),
        ("started", "echo", ids[1], False),
        ("finished", "echo", ids[1], True),
    ]
    assert executor.backend is None


def test_interrupt_raised_while_ctrl_c_is_handled_is_ctrl_c():
    class Interrupted(BaseAction):
        def execute(self):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("with a text") from None

    with pytest.raises(KeyboardInterrupt, match="with a text"):
        local().execute(Interrupted)


def test_interrupt_that_is_caught_and_raised_again_is_ctrl_c():
    class Interrupted(BaseAction):
        def execute(self):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        local().execute(Interrupted)


def test_handler_of_the_user_that_raises_is_ctrl_c():
    def handler(number, frame):
        raise KeyboardInterrupt("of the handler")

    class Interrupted(BaseAction):
        def execute(self):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="of the handler"):
            local().execute(Interrupted)
    finally:
        signal.signal(signal.SIGINT, before)

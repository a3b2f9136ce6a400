"""Row 29: every kind of end, at each stage of a run."""

import pytest

from synapse_runtime.errors import ExecutionError, ResultNotSerializable, ValidationError
from tests.parity.modes import as_a_job, everywhere, not_as_jobs

pytestmark = everywhere

EXIT, INTERRUPT = "it called sys.exit('no GPU')", "KeyboardInterrupt: mine"


@not_as_jobs
@pytest.mark.parametrize(("how", "text"), [("exit", EXIT), ("interrupt", INTERRUPT)])
def test_29_end_at_import_is_an_error_with_its_text(synapse_executor, how, text):
    check_import(synapse_executor, how, text)


@as_a_job
def test_29_end_at_import_in_a_job_is_an_error_with_its_text(synapse_executor):
    check_import(synapse_executor, "exit", EXIT)


def check_import(executor, how, text):
    run = executor.run(f"lab.ends_at_import_{how}:Any")
    assert type(run.error) is ExecutionError
    assert str(run.error).endswith(f"importing lab.ends_at_import_{how} failed: {text}")
    assert type(run.error.__cause__).__name__ == ("SystemExit" if how == "exit" else "KeyboardInterrupt")


@pytest.mark.parametrize(("how", "text"), [("exit", EXIT), ("interrupt", INTERRUPT)])
def test_29_end_of_a_validator_is_a_validation_error(synapse_executor, how, text):
    run = synapse_executor.run("lab.ends:Ends", {"at_validation": how})
    assert type(run.error) is ValidationError
    assert str(run.error).endswith(f"validating the parameters failed (Params): {text}")
    assert run.events == []


ENDS = [
    ("exit", "called sys.exit('no GPU')"),
    ("exit 0", "called sys.exit(0)"),
    ("interrupt", "failed: KeyboardInterrupt: mine"),
    ("generator", "failed: GeneratorExit: "),
]


def check_end(run, text: str) -> None:
    assert type(run.error) is ExecutionError
    assert str(run.error).endswith(text)
    assert [event.name for event in run.events] == ["started"]


@not_as_jobs
@pytest.mark.parametrize(("how", "text"), ENDS)
def test_29_end_of_the_action_is_its_error(synapse_executor, capfd, how, text):
    check_end(synapse_executor.run("lab.ends:Ends", {"at_run": how}), text)
    assert capfd.readouterr().out == "printed before\n"


@as_a_job
def test_29_end_of_the_action_in_a_job_is_its_error(synapse_executor):
    how, text = ENDS[2]
    check_end(synapse_executor.run("lab.ends:Ends", {"at_run": how}), text)


@not_as_jobs
@pytest.mark.parametrize(("how", "text"), ENDS[:3])
def test_29_end_of_an_own_dispatch_is_its_error(synapse_executor, how, text):
    run = synapse_executor.run("lab.ends:EndsInDispatch", {"how": how})
    assert type(run.error) is ExecutionError
    assert str(run.error).endswith(text)


@not_as_jobs
@pytest.mark.parametrize(("how", "text"), [("exit", EXIT), ("interrupt", INTERRUPT)])
def test_29_end_of_the_check_of_a_result_is_an_error(synapse_executor, how, text):
    run = synapse_executor.run("lab.ends:EndsAtResultCheck", {"at_result_check": how})
    assert type(run.error) is ExecutionError
    assert str(run.error).endswith(f"validating the result failed: {text}")


@not_as_jobs
@pytest.mark.parametrize(
    ("how", "text"), [("exit", "SystemExit('no GPU')"), ("interrupt", "KeyboardInterrupt('mine')")]
)
def test_29_end_while_the_result_is_pickled_is_an_error(synapse_executor, how, text):
    run = synapse_executor.run("lab.ends:Ends", {"at_result": how})
    assert type(run.error) is ResultNotSerializable
    assert f"a pickling hook raised {text}" in str(run.error)

"""Row 9: pytest's fixtures capture what an action prints, logs and warns, for its own test only."""

import logging
import os
import warnings
from pathlib import Path

import pytest

from synapse_runtime.errors import ExecutionError
from tests.forks import fork_server
from tests.parity.modes import as_a_job, not_as_jobs
from tests.patience import patience

pytestmark = not_as_jobs

STDOUT = ["print 1", "descriptor 2", "child 3", "c 4", "print 5"]
STDERR = ["error 1", "child 2"]


def test_09_output_of_every_kind_arrives_in_order(synapse_executor, capfd):
    assert synapse_executor.execute("lab.output:Speak") == "spoken"
    stdout, stderr = capfd.readouterr()
    assert stdout.splitlines() == STDOUT
    assert stderr.splitlines() == STDERR


@as_a_job
def test_09_output_records_and_warnings_of_a_job_are_captured_once(synapse_executor, capfd, caplog, recwarn):
    assert synapse_executor.execute("lab.output:Medley") == ["spoken", None, None, "warned"]
    stdout, stderr = capfd.readouterr()
    assert stdout.splitlines() == STDOUT
    assert stderr.splitlines() == [*STDERR, "printed once"]
    own = ("synapse.lab.output:Medley", *OWN[1:])
    assert logged(caplog) == [WARNING, own, ERROR, ("lab.output.printing", "WARNING", "printed once")]
    assert caplog.text.partition("lab.output.printing")[0].partition("failed")[2].count("KeyError: 'lost'") == 1
    assert_warned(recwarn)


def assert_warned(recwarn):
    assert [(item.category, str(item.message)) for item in recwarn] == [
        (DeprecationWarning, "old way"),
        (UserWarning, "careful"),
    ]
    assert recwarn[0].filename.endswith("output.py")


def test_09_output_belongs_to_its_own_test_only(synapse_executor, capfd):
    synapse_executor.execute("echo", {"value": 1})
    assert capfd.readouterr() == ("", "")


def test_09_capsys_captures_prints(synapse_executor, capsys):
    synapse_executor.execute(print_hello)
    assert capsys.readouterr().out == "hello\n"


def print_hello(params, context):
    print("hello")


print_hello._is_action = True


def logged(caplog):
    return [(record.name, record.levelname, record.getMessage()) for record in caplog.records]


WARNING, ERROR = ("lab.output", "WARNING", "warning 3"), ("lab.output", "ERROR", "failed")
OWN = ("synapse.lab.output:Log", "INFO", "own")


def test_09_caplog_captures_records_at_the_levels_of_this_session(synapse_executor, caplog):
    synapse_executor.execute("lab.output:Log")
    assert logged(caplog) == [WARNING, OWN, ERROR]
    assert caplog.text.rstrip().endswith("KeyError: 'lost'")


def test_09_log_levels_set_by_a_test_apply_to_the_action(synapse_executor, caplog):
    caplog.set_level(logging.DEBUG, logger="lab")
    synapse_executor.execute("lab.output:Log")
    detail, info = ("lab.output", "DEBUG", "detail 1"), ("lab.output", "INFO", "info 2")
    assert logged(caplog) == [detail, info, WARNING, OWN, ERROR]
    caplog.clear()
    caplog.set_level(logging.ERROR, logger="lab")
    caplog.set_level(logging.INFO)
    synapse_executor.execute("lab.output:Log")
    assert logged(caplog) == [("other.library", "INFO", "info of another"), OWN, ERROR]


def test_09_log_record_keeps_its_source_location(synapse_executor, caplog):
    synapse_executor.execute("lab.output:Log")
    record = caplog.records[0]
    assert (record.filename, record.funcName, record.module) == ("output.py", "execute", "output")


def test_09_output_of_the_actions_own_log_handler_is_printed_once(synapse_executor, capfd, caplog):
    synapse_executor.execute("lab.output:LogAndPrint")
    assert capfd.readouterr().err == "printed once\n"
    assert logged(caplog) == [("lab.output.printing", "WARNING", "printed once")]


def test_09_recwarn_captures_warnings(synapse_executor, recwarn):
    assert synapse_executor.execute("lab.output:Warn") == "warned"
    assert_warned(recwarn)


def test_09_warning_turned_into_an_error_here_fails_the_action(synapse_executor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ExecutionError) as caught:
            synapse_executor.execute("lab.output:Warn")
    assert type(caught.value.__cause__) is UserWarning


def test_09_warning_ignored_here_is_not_captured(synapse_executor):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "old way")
        synapse_executor.execute("lab.output:Warn")
    assert [str(item.message) for item in seen] == ["careful"]


@pytest.mark.parametrize("logger", ["lib", "ctx"])
def test_09_handler_that_raises_for_a_badly_formatted_message_fails_the_action(synapse_executor, logger):
    # pytest's own handler does.
    run = synapse_executor.run("lab.output:LogBadly", {"loggers": [logger]})
    assert type(run.error) is ExecutionError
    assert isinstance(run.error.__cause__, TypeError)


BAD_MESSAGES = """
import logging, sys
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.ray import RayActorExecutor, RayJobsApiExecutor
from synapse_runtime.loggers import NullLogger

executor_class = {"local": LocalExecutor, "task": RayActorExecutor, "job": RayJobsApiExecutor}[sys.argv[2]]
with executor_class(plugin=sys.argv[1], logger=NullLogger()) as executor:
    run = executor.run("lab.output:LogBadly", {"loggers": ["lib", "ctx"]})
    print(run.result, run.error, [event.name for event in run.logs])
"""


@pytest.mark.parametrize("mode", ["local", "task", "job"])
def test_09_badly_formatted_message_is_reported_and_the_action_goes_on(reached, mode):
    env = {**os.environ, **reached}
    command = ["-c", BAD_MESSAGES, str(Path(__file__).parent), mode]
    done = fork_server(env).run(command, cwd=os.getcwd(), env=env, timeout=patience(60))
    assert done.stdout.splitlines()[-1] == "done None [\"%d items ('three',)\"]", done.stderr
    assert done.stderr.count("TypeError: %d format: a real number is required, not str") == 2

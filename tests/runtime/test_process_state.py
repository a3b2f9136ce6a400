"""Tests for the process state of an action in local mode: environment, working directory, modules."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.core.execution import ActionCall, run_call
from synapse_runtime.decorators import action
from synapse_runtime.errors import (
    ActionNotFoundError,
    ConfigError,
    EnvironmentValueError,
    ExecutionError,
    ExecutionTimeout,
)
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from tests.patience import patience

CONFIG = """\
code: layers
env: {LAYER: config, CONFIG_ONLY: 32, FLAG: true}
actions:
  look: {entrypoint: "plugin.look:look"}
  fail: {entrypoint: "plugin.look:fail"}
  wait: {entrypoint: "plugin.look:wait"}
"""

LOOK = """\
import signal
import os
import time
from pathlib import Path

from synapse_runtime.decorators import action

@action
def look(params, context):
    names = ("LAYER", "CONFIG_ONLY", "FLAG", "PROCESS_ONLY", "CODE_ONLY")
    return {
        "ctx": {name: context.env.get(name) for name in names},
        "os": {name: os.environ.get(name) for name in names},
        "cwd": Path.cwd(),
        "data": Path("data.txt").read_text(),
    }

@action
def fail(params, context):
    os.environ["LEFT_BEHIND"] = "x"
    os.environ.pop("PROCESS_ONLY", None)
    os.chdir("/")
    raise ValueError("on purpose")

@action
def wait(params, context):
    os.environ["LEFT_BEHIND"] = "x"
    os.chdir("/")
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def root(write_plugin) -> Path:
    files = {"plugin/__init__.py": "", "plugin/look.py": LOOK, "data.txt": "from the plugin's directory"}
    return write_plugin(config=CONFIG, files=files)


@pytest.fixture
def in_plugin(root) -> LocalExecutor:
    return LocalExecutor({"LAYER": "code", "CODE_ONLY": ["a", "b"]}, plugin=root, logger=NullLogger())


def current_state() -> tuple[dict[str, str], str, list[str]]:
    return dict(os.environ), os.getcwd(), list(sys.path)


@action
def waits(params, context):
    while True:
        time.sleep(0.01)


def test_config_file_overrides_process_environment_and_code_overrides_both(in_plugin, monkeypatch):
    monkeypatch.setenv("LAYER", "process")
    monkeypatch.setenv("CONFIG_ONLY", "process")
    monkeypatch.setenv("PROCESS_ONLY", "process")
    seen = in_plugin.execute("look")
    assert seen["ctx"] == {
        "LAYER": "code",
        "CONFIG_ONLY": 32,
        "FLAG": True,
        "PROCESS_ONLY": "process",
        "CODE_ONLY": ["a", "b"],
    }


def test_process_environment_has_the_same_values_as_text_while_an_action_runs(in_plugin, monkeypatch):
    monkeypatch.setenv("PROCESS_ONLY", "process")
    assert in_plugin.execute("look")["os"] == {
        "LAYER": "code",
        "CONFIG_ONLY": "32",
        "FLAG": "true",
        "PROCESS_ONLY": "process",
        "CODE_ONLY": "a,b",
    }


def test_working_directory_is_the_plugins_directory(in_plugin, root):
    seen = in_plugin.execute("look")
    assert seen["cwd"] == root
    assert seen["data"] == "from the plugin's directory"


def test_working_directory_without_a_plugin_is_the_callers(local, tmp_path, monkeypatch):
    @action
    def where(params, context):
        return os.getcwd()

    monkeypatch.chdir(tmp_path)
    assert local.execute(where) == str(tmp_path)


@pytest.mark.parametrize(("name", "timeout"), [("look", None), ("fail", None), ("wait", 0.1)])
def test_process_state_is_restored_however_an_action_ends(in_plugin, monkeypatch, name, timeout):
    monkeypatch.setenv("PROCESS_ONLY", "process")
    before = current_state()
    run = in_plugin.run(name, timeout=timeout)
    assert (run.error is None) is (name == "look")
    assert current_state() == before


def test_process_state_is_restored_if_the_environment_is_invalid(root):
    before = current_state()
    call = ActionCall("plugin.look:look", "look", env={"A=B": "x"}, import_root=str(root), cwd=str(root))
    assert isinstance(run_call(call).error, EnvironmentValueError)
    assert current_state() == before


def test_invalid_environment_is_rejected_by_the_executor():
    with pytest.raises(EnvironmentValueError, match="invalid environment variable"):
        LocalExecutor({"A=B": "x"})


def test_deleted_plugin_raises_an_error(in_plugin, root):
    before = current_state()
    shutil.rmtree(root)
    error = in_plugin.run("look").error
    assert isinstance(error, ConfigError)
    assert "the plugin's directory does not exist" in str(error)
    assert current_state() == before


def test_missing_working_directory_raises_an_error(tmp_path):
    before = current_state()
    run = run_call(ActionCall(waits, "waits", cwd=str(tmp_path / "gone")))
    assert "gone does not exist on" in str(run.error)
    assert current_state() == before


def test_failed_run_has_the_error_instead_of_raising_it(in_plugin):
    run = in_plugin.run("fail")
    assert run.result is None
    assert str(run.error) == "fail failed: ValueError: on purpose"
    assert run.mode == "local"
    assert run.pid == os.getpid()
    with pytest.raises(ExecutionError) as caught:
        run.unwrap()
    assert caught.value is run.error


@pytest.mark.parametrize(
    ("code", "text"), [(3, "sys.exit(3)"), (None, "sys.exit(None)"), ("bad", "sys.exit('bad')"), (0, "sys.exit(0)")]
)
def test_sys_exit_with_any_code_is_a_failure(local, code, text):
    @action
    def leave(params, context):
        sys.exit(code)

    error = local.run(leave).error
    assert str(error) == f"leave called {text}"
    assert error.__cause__.code == code


@pytest.mark.parametrize(
    "kind", [GeneratorExit, asyncio.CancelledError, MemoryError, type("Odd", (BaseException,), {})]
)
def test_any_exception_of_an_action_is_its_failure(local, kind):
    @action
    def fail(params, context):
        raise kind

    error = local.run(fail).error
    assert type(error) is ExecutionError
    assert type(error.__cause__) is kind


def test_error_that_cannot_be_printed_is_a_failure_like_others(local):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    @action
    def fail(params, context):
        raise Mute

    assert str(local.run(fail).error) == "fail failed: Mute: <str() failed: RuntimeError>"


def test_ctrl_c_is_raised_from_a_coroutine_and_with_a_timeout(local):
    @action
    async def interrupted(params, context):
        signal.raise_signal(signal.SIGINT)

    before = current_state()
    with pytest.raises(KeyboardInterrupt):
        local.execute(interrupted, timeout=patience(5))
    assert current_state() == before


def test_timeout_is_on_time_and_its_stack_starts_at_the_action(local):
    started = time.monotonic()
    run = local.run(waits, timeout=0.2)
    assert 0.2 <= time.monotonic() - started < patience(1)
    assert 0.2 <= run.duration < patience(1)
    assert isinstance(run.error, ExecutionTimeout)
    assert run.error.details.splitlines()[0].endswith("in waits")
    assert "time.sleep(0.01)" in run.error.details
    assert local.run(waits, timeout=0.05).error.__class__ is ExecutionTimeout


def test_timeout_interrupts_a_coroutine(local):
    @action
    async def sleeps(params, context):
        await asyncio.sleep(30)

    started = time.monotonic()
    assert isinstance(local.run(sleeps, timeout=0.1).error, ExecutionTimeout)
    assert time.monotonic() - started < patience(2)


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_outer_timeout_ends_an_inner_action_with_a_longer_one(where):
    @action
    def outer(params, context):
        return LocalExecutor(logger=NullLogger()).execute(waits, timeout=patience(30))

    runs = []

    def call() -> None:
        runs.append(LocalExecutor(logger=NullLogger()).run(outer, timeout=0.2))

    started = time.monotonic()
    if where == "main thread":
        call()
    else:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(patience(10))
    assert time.monotonic() - started < patience(2)
    assert str(runs[0].error) == "outer exceeded its timeout of 0.2 s"


def test_inner_timeout_ends_only_the_inner_action(local):
    @action
    def outer(params, context):
        return str(LocalExecutor(logger=NullLogger()).run(waits, timeout=0.1).error)

    assert local.execute(outer, timeout=patience(10)) == "waits exceeded its timeout of 0.1 s"


def test_action_that_fails_while_it_is_interrupted_has_still_timed_out(local):
    @action
    def stubborn(params, context):
        try:
            while True:
                time.sleep(0.01)
        finally:
            raise ValueError("cleanup failed")

    assert isinstance(local.run(stubborn, timeout=0.1).error, ExecutionTimeout)


def test_process_state_is_restored_after_running_another_plugins_action(write_plugin, root):
    nest = """\
    import os
    from synapse_runtime.decorators import action
    from synapse_runtime.executors.local import LocalExecutor
    from synapse_runtime.loggers import NullLogger

    @action
    def nest(params, context):
        before = os.getcwd(), os.environ["LAYER"]
        inner = LocalExecutor({"LAYER": "inner"}, plugin=params["inner"], logger=NullLogger()).execute("look")
        import plugin.nest
        return inner, before, (os.getcwd(), os.environ["LAYER"]), plugin.nest.__file__
    """
    outer_root = write_plugin(
        "outer",
        config="code: outer\nenv: {LAYER: outer}\nactions: {nest: 'plugin.nest:nest'}\n",
        files={"plugin/__init__.py": "", "plugin/nest.py": nest},
    )
    outer = LocalExecutor(plugin=outer_root, logger=NullLogger())
    inner, before, after, own = outer.execute("nest", {"inner": str(root)})
    assert inner["cwd"] == root
    assert inner["os"]["LAYER"] == "inner"
    assert before == after == (str(outer_root), "outer")
    assert own == str(outer_root / "plugin" / "nest.py")


def test_actions_in_two_threads_do_not_see_each_others_environment():
    @action
    def look(params, context):
        seen = set()
        for _ in range(20):
            seen.add(os.environ["WHO"])
            time.sleep(0.001)
        return seen

    results = {}

    def call(who: str) -> None:
        results[who] = LocalExecutor({"WHO": who}, logger=NullLogger()).execute(look)

    threads = [threading.Thread(target=call, args=(who,)) for who in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(10))
    assert results == {"one": {"one"}, "two": {"two"}}
    assert "WHO" not in os.environ


def run_in_thread_of_action(other: LocalExecutor) -> object:
    """Run an action that runs another one in a new thread and waits for it."""

    @action
    def outer(params, context):
        results = []
        thread = threading.Thread(target=lambda: results.append(other.execute(answer)), daemon=True)
        thread.start()
        thread.join(patience(10))
        return results

    return outer


@action
def answer(params, context):
    return os.environ.get("WHO"), os.getcwd()


def test_action_may_run_another_with_the_same_state_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = LocalExecutor({"WHO": "same"}, logger=NullLogger())
    before = current_state()
    assert executor.execute(run_in_thread_of_action(executor)) == [("same", str(tmp_path))]
    assert current_state() == before


def test_shared_state_is_kept_until_the_last_action_has_ended():
    first_has_ended, second_has_begun = threading.Event(), threading.Event()
    seen = {}

    @action
    def first(params, context):
        assert second_has_begun.wait(patience(10))

    @action
    def second(params, context):
        second_has_begun.set()
        assert first_has_ended.wait(patience(10))
        seen["second"] = os.environ.get("WHO")

    def call(target) -> None:
        LocalExecutor({"WHO": "both"}, logger=NullLogger()).execute(target)

    threads = [threading.Thread(target=call, args=(target,)) for target in (first, second)]
    for thread in threads:
        thread.start()
    threads[0].join(patience(10))
    first_has_ended.set()
    threads[1].join(patience(10))
    assert seen == {"second": "both"}
    assert "WHO" not in os.environ


def test_coroutine_that_times_out_under_a_running_loop_is_cancelled(local):
    ended = threading.Event()

    @action
    async def endless(params, context):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def test() -> ExecutionError:
        return local.run(endless, timeout=0.2).error

    error = asyncio.run(test())
    assert isinstance(error, ExecutionTimeout)
    assert "await asyncio.Event().wait()" in error.details
    assert ended.wait(patience(5))


class Nested(BaseModel):
    sizes: list[int]


class Grow(BaseAction[Nested]):
    def execute(self):
        self.params.sizes.append(9)
        return self.params.sizes


@pytest.mark.parametrize("strict", [False, True])
def test_action_cannot_change_the_callers_params(strict):
    executor = LocalExecutor(logger=NullLogger(), strict=strict)
    params = {"sizes": [1]}
    assert executor.execute(Grow, params) == [1, 9]
    assert params == {"sizes": [1]}


def test_strict_mode_copies_dict_and_instance_params():
    @action
    def grow(params, context):
        params["sizes"].append(9)
        return params

    executor = LocalExecutor(logger=NullLogger(), strict=True)
    params, instance = {"sizes": [1]}, Nested(sizes=[1])
    assert executor.execute(grow, params) == {"sizes": [1, 9]}
    assert executor.execute(Grow, instance) == [1, 9]
    assert params == {"sizes": [1]}
    assert instance == Nested(sizes=[1])


def test_strict_mode_copies_the_result():
    kept = []

    @action
    def keep(params, context):
        kept.append({"numbers": [1]})
        return kept[0]

    result = LocalExecutor(logger=NullLogger(), strict=True).execute(keep)
    result["numbers"].append(2)
    assert kept == [{"numbers": [1]}]


def test_events_reach_listener_and_logger_in_order_while_the_action_runs():
    order = []

    class Sink:
        def event(self, event):
            order.append(("logger", event.name))

        def finish(self):
            order.append("finish")

    @action
    def talk(params, context):
        context.log("first")
        order.append("in between")
        context.logger.info("second")

    LocalExecutor(logger=Sink()).run(talk, on_event=lambda event: order.append(("listener", event.name)))
    assert order == [
        ("logger", "first"),
        ("listener", "first"),
        "in between",
        ("logger", "second"),
        ("listener", "second"),
        "finish",
    ]


def test_events_before_a_failure_are_kept(local):
    @action
    def fail(params, context):
        context.set_progress(1, 2)
        raise ValueError

    run = local.run(fail)
    assert run.error is not None
    assert run.progress == [(1, 2)]


def test_new_job_ids_are_unique(local):
    @action
    def who(params, context):
        return context.job_id

    ids = {local.execute(who) for _ in range(50)}
    assert len(ids) == 50
    assert all(isinstance(each, str) and each for each in ids)


def test_entrypoint_needs_no_plugin(local, tmp_path, monkeypatch):
    (tmp_path / "loose_entry.py").write_text(LOOK)
    (tmp_path / "data.txt").write_text("beside")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert local.execute("loose_entry:look")["data"] == "beside"
    del sys.modules["loose_entry"]


def test_action_name_needs_a_plugin(local):
    with pytest.raises(ActionNotFoundError, match="there is no action 'train': without a plugin, pass a class"):
        local.run("train")


def test_missing_entrypoint_is_the_error_of_the_run(local):
    error = local.run("no_such_module_anywhere:Train").error
    assert isinstance(error, ConfigError)
    assert "module 'no_such_module_anywhere' does not exist" in str(error)


def test_executor_can_be_used_in_a_with_block_and_again_after_it(local):
    with local as executor:
        assert executor.execute(Grow, {"sizes": []}) == [9]
    assert local.execute(Grow, {"sizes": [1]}) == [1, 9]


def test_timeout_with_fresh_modules_keeps_the_timer_of_pytests_fault_handler():
    @action
    def quick(params, context):
        return 1

    with tempfile.TemporaryFile() as log:
        faulthandler.dump_traceback_later(0.3, file=log)
        try:
            assert LocalExecutor(fresh=True, timeout=patience(5), logger=NullLogger()).execute(quick, {}) == 1
            until = time.monotonic() + patience(10)
            while not os.fstat(log.fileno()).st_size and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert os.fstat(log.fileno()).st_size


EXITS = """
import os, sys
from synapse_runtime.decorators import action
from synapse_runtime.executors.local import LocalExecutor

@action
def leave(params, context):
    if params["child"]:
        child = os.fork()
        if child == 0:
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(params["status"])

print(LocalExecutor().execute(leave, {"child": sys.argv[1] == "child", "status": int(sys.argv[2])}))
if sys.argv[1] == "after":
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        (("action", "0"), 1, "error: leave called os._exit(0), which ends the process it runs in\n"),
        (("action", "7"), 7, "error: leave called os._exit(7), which ends the process it runs in\n"),
        (("child", "0"), 0, ""),
    ],
)
def test_os_exit_in_an_action_is_named_and_is_no_success(arguments, status, stderr):
    done = subprocess.run([sys.executable, "-c", EXITS, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, stderr)


def test_os_exit_outside_of_actions_is_not_changed():
    code = "import os, synapse_runtime.runner; os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ignore", ["handler", "mask"])
def test_action_that_cannot_be_interrupted_has_exceeded_its_timeout_whatever_it_returns(local, ignore):
    @action
    def ignores_alarms(params, context):
        if ignore == "handler":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            time.sleep(0.4)
            return "done"
        finally:
            if ignore == "mask":
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.sigtimedwait({signal.SIGALRM}, 0)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    run = local.run(ignores_alarms, timeout=0.2)
    assert type(run.error) is ExecutionTimeout
    if ignore == "handler":  # a masked signal may reach another thread, and then interrupts the action after all
        assert "exceeded its timeout of 0.2 s: it took 0." in str(run.error)
    assert run.result is None
    assert local.run(waits, timeout=0.1).error.details

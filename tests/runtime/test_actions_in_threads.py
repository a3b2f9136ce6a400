"""Tests for actions that run in several threads at once: threads of one action, and independent ones."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path

import pytest

from synapse_runtime.decorators import action
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.executors.protocol import decode_run, encode_call
from synapse_runtime.loggers import NullLogger
from tests.patience import patience


@action
def variable(params, ctx):
    return os.environ.get("WHOSE")


def inner(value: str) -> str | None:
    return LocalExecutor(env={"WHOSE": value}, logger=NullLogger()).execute(variable, {})


def run_outer(function) -> object:
    """Run an action that calls this function, in a thread, so that a deadlock fails the test."""
    outer = action(lambda params, ctx: (os.environ["WHOSE"], function(), os.environ["WHOSE"]))
    found: list[object] = []

    def work() -> None:
        found.append(LocalExecutor(env={"WHOSE": "outer"}, logger=NullLogger()).execute(outer, {}))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience(20))
    assert found, "deadlock"
    return found[0]


def in_new_pool() -> list[str | None]:
    with ThreadPoolExecutor(1) as pool:
        return [pool.submit(inner, "inner").result(), *pool.map(inner, "ab")]


def in_new_pool_of_several() -> list[str | None]:
    names = [str(number) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inner, names)) == names
    return ["inner", "a", "b"]


def in_plain_thread() -> list[str | None]:
    answers: queue.Queue[str | None] = queue.Queue()
    for name in ("inner", "a", "b"):
        threading.Thread(target=lambda name=name: answers.put(inner(name)), daemon=True).start()
    order = {"inner": 0, "a": 1, "b": 2}
    return sorted((answers.get() for _ in range(3)), key=order.__getitem__)


def in_thread_of_a_thread() -> list[str | None]:
    def start_another() -> list[str | None]:
        return in_new_pool()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(start_another).result()


def in_event_loop() -> list[str | None]:
    async def main() -> list[str | None]:
        loop = asyncio.get_running_loop()
        return [
            await loop.run_in_executor(None, inner, "inner"),
            await asyncio.to_thread(inner, "a"),
            await LocalExecutor(env={"WHOSE": "b"}, logger=NullLogger()).aexecute(variable, {}),
        ]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "function",
    [in_new_pool, in_new_pool_of_several, in_plain_thread, in_thread_of_a_thread, in_event_loop],
    ids=lambda function: function.__name__,
)
def test_action_waits_for_threads_that_run_actions_with_another_environment(function):
    assert run_outer(function) == ("outer", ["inner", "a", "b"], "outer")
    assert "WHOSE" not in os.environ


@pytest.mark.parametrize("how", ["result", "exception", "map", "wait", "as_completed"])
def test_action_waits_for_a_pool_that_was_there_before(how):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: threading.Event().wait(0.05), range(4)))  # starts its threads

        def through_pool() -> set[str | None]:
            if how == "map":
                return set(pool.map(inner, "ab"))
            futures = [pool.submit(inner, name) for name in "ab"]
            if how == "exception":
                assert [future.exception() for future in futures] == [None, None]
            elif how == "wait":
                wait(futures)
            elif how == "as_completed":
                return {future.result() for future in as_completed(futures)}
            return {future.result() for future in futures}

        assert run_outer(through_pool) == ("outer", {"a", "b"}, "outer")


def test_wait_for_an_unrelated_action_is_said(caplog):
    started, leave = threading.Event(), threading.Event()

    @action
    def long(params, ctx):
        started.set()
        leave.wait(patience(20))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(LocalExecutor(env={"WHOSE": "long"}, logger=NullLogger()).execute, long, {})
        assert started.wait(patience(5))
        second = pool.submit(inner, "second")
        for _ in range(int(patience(200))):
            if caplog.records:
                break
            threading.Event().wait(0.05)
        leave.set()
        first.result()
        assert second.result() == "second"
    (record,) = [one for one in caplog.records if one.name == "synapse"]
    assert record.levelno == logging.WARNING
    assert "variable waits in thread" in record.getMessage()
    assert "for the end of long: they have different environment variables" in record.getMessage()


def test_threads_that_an_action_leaves_behind_run_actions_of_their_own(tmp_path):
    ended, answers = threading.Event(), queue.Queue()

    @action
    def leave_a_thread(params, ctx):
        def later() -> None:
            ended.wait(patience(10))
            answers.put((os.environ.get("WHOSE"), inner("later"), os.environ.get("WHOSE")))

        threading.Thread(target=later).start()

    LocalExecutor(env={"WHOSE": "first"}, logger=NullLogger()).execute(leave_a_thread, {})
    ended.set()
    assert answers.get(timeout=patience(10)) == (None, "later", None)


def write_plugin(root: Path, name: str, modules: int) -> Path:
    (root / "plugin").mkdir(parents=True)
    (root / "plugin" / "__init__.py").touch()
    (root / "config.yaml").write_text(f"code: {name}\nactions:\n  go: {{entrypoint: 'plugin.work:go'}}\n")
    for number in range(modules):
        (root / "plugin" / f"late{number}.py").write_text(f"WHOSE = {name!r}\n")
    (root / "plugin" / "work.py").write_text(
        "import importlib, time\n"
        "from dataclasses import dataclass\n"
        "from synapse_runtime.decorators import action\n"
        "@dataclass\n"
        "class Seen:\n"
        "    names: list\n"
        "    def __setstate__(self, state):\n"
        "        time.sleep(0.002)\n"
        "        self.__dict__.update(state)\n"
        "@action\n"
        "def go(params, ctx):\n"
        "    seen = []\n"
        f"    for number in range({modules}):\n"
        "        time.sleep(0.001)\n"
        "        seen.append(importlib.import_module(f'plugin.late{number}').WHOSE)\n"
        "    return Seen(seen)\n"
    )
    return root


def test_messages_of_another_plugin_are_read_and_written_while_an_action_imports(tmp_path):
    modules = 60
    first = LocalExecutor(plugin=write_plugin(tmp_path / "first", "first", modules), logger=NullLogger(), strict=True)
    second = LocalExecutor(plugin=write_plugin(tmp_path / "second", "second", modules), logger=NullLogger())
    call = first.call("go")
    run = first.run("go")
    assert run.result.names == ["first"] * modules
    data = _encoded(run, str(tmp_path / "first"))
    done = threading.Event()
    failures: list[BaseException] = []

    def read_and_write() -> None:
        while not done.is_set():
            try:
                decoded = decode_run(data, call)
                assert decoded.error is None
                assert type(decoded.result) is type(run.result)
                encode_call(call)
            except BaseException as error:  # noqa: BLE001 - raised in the test
                failures.append(error)
                return

    thread = threading.Thread(target=read_and_write)
    thread.start()
    try:
        for _ in range(3):
            assert second.execute("go").names == ["second"] * modules
    finally:
        done.set()
        thread.join()
    assert failures == []


def _encoded(run, root: str) -> bytes:
    from synapse_runtime.core import assertions, coverage_support
    from synapse_runtime.core.process_state import process_state
    from synapse_runtime.executors.protocol import encode_run

    with process_state.modules(root):
        return encode_run(
            run,
            recorder=assertions.FailureRecorder(),
            collector=coverage_support.CoverageCollector(),
        )

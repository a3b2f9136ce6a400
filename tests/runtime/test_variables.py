"""Tests for `Variables`: a snapshot of the process environment that is read later and restored exactly."""

from __future__ import annotations

import os
import pickle
import subprocess
import threading

import pytest

from synapse_runtime.context import PluginEnvironment
from synapse_runtime.core.process_state import process_state
from synapse_runtime.decorators import action
from synapse_runtime.environment import Variables
from synapse_runtime.errors import LateVariableWarning
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from tests.patience import patience


def test_private_data_of_os_environ_exists(monkeypatch):
    monkeypatch.setenv("WATCHED", "é")
    kept = os.environ._data  # `_raw_environ` uses it, and has a fallback if it is missing
    assert type(kept) is dict
    assert kept[os.fsencode("WATCHED")] == os.fsencode("é")


def test_variables_can_be_copied_without_the_private_data(monkeypatch):
    monkeypatch.setattr(os, "environ", {"ONE": "1"})
    before = Variables()
    os.environ.update(ONE="2", TWO="2")
    before.restore()
    assert before.to_dict() == os.environ == {"ONE": "1"}


def test_set_changed_and_removed_variables_are_restored_for_child_processes_too(monkeypatch):
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("TAKEN", "before")
    before = Variables()
    os.environ["CHANGED"] = os.environ["SET"] = "after"
    del os.environ["TAKEN"]
    before.restore()
    seen = subprocess.run("echo $CHANGED $TAKEN ${SET-nothing}", shell=True, capture_output=True, text=True)
    assert seen.stdout.split() == ["before", "before", "nothing"]
    assert (os.environ["CHANGED"], os.environ["TAKEN"], "SET" in os.environ) == ("before", "before", False)


def test_undecodable_values_are_kept(monkeypatch):
    monkeypatch.setitem(os.environb, b"BYTES", b"\xff\xfe")
    before = Variables()
    del os.environb[b"BYTES"]
    before.restore()
    assert os.environb[b"BYTES"] == b"\xff\xfe"
    assert before.to_dict()["BYTES"] == os.fsdecode(b"\xff\xfe")


def test_snapshot_does_not_change_until_it_is_read(monkeypatch):
    monkeypatch.setenv("MOMENT", "then")
    env = PluginEnvironment.over(Variables(), {"OVER": 1})
    monkeypatch.setenv("MOMENT", "now")
    assert (env["MOMENT"], env.get_int("OVER"), "MOMENT" in env, len(env)) == ("then", 1, True, len(list(env)))
    assert pickle.loads(pickle.dumps(env)).to_dict() == env.to_dict()


def test_changes_of_os_environ_do_not_change_ctx_env(monkeypatch):
    monkeypatch.setenv("MOMENT", "then")

    @action
    def changes(params, context):
        os.environ["MOMENT"] = "now"
        return context.env.get_str("MOMENT")

    assert LocalExecutor().execute(changes) == "then"
    assert os.environ["MOMENT"] == "then"


@pytest.mark.parametrize("ends", [True, False])
def test_temporary_variables_are_neither_removed_nor_restored(monkeypatch, ends):
    """An action that ends in another thread does not remove them, and one that starts does not restore them later."""
    monkeypatch.delenv("FOR_A_MOMENT", raising=False)
    inside, go_on, over = threading.Event(), threading.Event(), threading.Event()

    @action
    def waits(params, context):
        inside.set()
        go_on.wait(patience(10))
        return "FOR_A_MOMENT" in os.environ

    seen = []
    thread = threading.Thread(target=lambda: (seen.append(LocalExecutor().execute(waits)), over.set()))
    if ends:
        thread.start()
        assert inside.wait(patience(10))
    with process_state.locked():
        os.environ["FOR_A_MOMENT"] = "x"
        if not ends:
            thread.start()
        go_on.set()
        assert not over.wait(0.2)
        assert os.environ["FOR_A_MOMENT"] == "x"
        del os.environ["FOR_A_MOMENT"]
    thread.join(patience(10))
    assert over.is_set()
    assert "FOR_A_MOMENT" not in os.environ
    assert seen == [False] or ends


@pytest.mark.filterwarnings("always::synapse_runtime.errors.LateVariableWarning")
def test_variables_that_cannot_take_effect_are_warned_of_once(monkeypatch, recwarn):
    monkeypatch.setattr("synapse_runtime.environment._warned", set())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    env = {"PYTHONHASHSEED": 0, "LD_LIBRARY_PATH": "/lib", "OMP_NUM_THREADS": 2, "MKL_NUM_THREADS": None, "TZ": "UTC"}
    executor = LocalExecutor(env=env, logger=NullLogger())
    for _ in range(2):
        assert executor.execute(hash_seed) == "0"
    (warning,) = recwarn
    assert warning.category is LateVariableWarning
    assert str(warning.message).startswith("LD_LIBRARY_PATH, PYTHONHASHSEED: read when a process or library starts")


@action
def hash_seed(params, context):
    return os.environ["PYTHONHASHSEED"]

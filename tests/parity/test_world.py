"""Rows 22 to 25: what a test sets up holds where its action runs, and mocks know afterwards what was done to them."""

import contextlib
import datetime
import io
import os
import random
import sys
import threading
import time
import types
from collections import Counter
from typing import ClassVar
from unittest import mock
from unittest.mock import call, patch

import freezegun
import pytest
import time_machine
from lab import world
from lab.world import Client, evaluate, limited, now, throw_dice, variables

from synapse_runtime.decorators import action
from synapse_runtime.errors import ExecutionError, PatchNotSerializable
from tests.parity.modes import everywhere, not_as_jobs, on_this_machine, on_workers

pytestmark = not_as_jobs

TIMES_CALLED = 0
TABLE = {"a": 1}
SEEN = []
SEED = 7


@pytest.fixture
def run(synapse_executor):
    """Evaluate an expression in the plugin's module, in an action."""

    def evaluated(code: str):
        return synapse_executor.execute(evaluate, {"code": code})

    return evaluated


# -- 22: the environment --


@everywhere
def test_22_variables_that_the_test_changes(synapse_executor, monkeypatch):
    monkeypatch.setenv("SET_BY_TEST", "ü\n=1")
    monkeypatch.delenv("HOME")
    names = {"names": ["SET_BY_TEST", "HOME"]}
    assert synapse_executor.execute(variables, names) == {"SET_BY_TEST": ("ü\n=1",) * 2, "HOME": (None, None)}
    monkeypatch.undo()
    found = synapse_executor.execute(variables, names)
    assert found["SET_BY_TEST"] == (None, None)
    assert found["HOME"] == (os.environ["HOME"],) * 2


def test_22_variables_of_patch_dict(synapse_executor):
    with patch.dict(os.environ, {"OF_PATCH": "1"}):
        assert synapse_executor.execute(variables, {"names": ["OF_PATCH"]}) == {"OF_PATCH": ("1", "1")}
    assert synapse_executor.execute(variables, {"names": ["OF_PATCH"]}) == {"OF_PATCH": (None, None)}


@pytest.mark.synapse(env={"IN_BOTH": "marker"})
def test_22_the_markers_variables_override_them(synapse_executor, monkeypatch):
    monkeypatch.setenv("IN_BOTH", "test")
    monkeypatch.setenv("FROM_CONFIG", "test")
    found = synapse_executor.execute(variables, {"names": ["IN_BOTH", "FROM_CONFIG"]})
    assert found == {"IN_BOTH": ("marker", "marker"), "FROM_CONFIG": ("config", "config")}


def test_22_time_zone_and_temporary_directory_take_effect(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    time.tzset()
    try:
        assert run("[time.tzname[0], __import__('tempfile').gettempdir()]") == ["JST", str(tmp_path)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert run("time.tzname[0]") == time.tzname[0]


# -- 23: patches --


@everywhere
def test_23_mock_returns_and_records(run):
    with patch("lab.world.load", return_value={"rows": [1]}) as load:
        assert run("[load('a'), load('b', mode='w')]") == [{"rows": [1]}] * 2
        load.assert_called_with("b", mode="w")
        assert load.mock_calls == [call("a"), call("b", mode="w")]
        run("load('c')")
        assert load.call_args_list == [call("a"), call("b", mode="w"), call("c")]
        assert (load.call_count, load.call_args.args) == (3, ("c",))
    assert run("load()") == "p:r"


def test_23_side_effects_in_order(run):
    with patch("lab.world.load", side_effect=[1, OSError("full"), 2]) as load:
        assert run("load()") == 1
        with pytest.raises(ExecutionError) as caught:
            run("load()")
        assert str(caught.value.__cause__) == "full"
        assert type(caught.value.__cause__) is OSError
        assert load() == 2
        assert load.call_count == 3


def test_23_children_of_a_mock(run):
    with patch("lab.world.client") as client:
        client.get.return_value.json.return_value = {"x": [1]}
        client.version = "2"
        client.close.side_effect = TimeoutError("slow")
        assert run("[client.get('u').json(), client.version, client.other(1) and None]") == [{"x": [1]}, "2", None]
        client.get.return_value.json.assert_called_once_with()
        client.other.assert_called_once_with(1)
        with pytest.raises(ExecutionError, match="slow"):
            run("client.close()")
        assert client.mock_calls[:2] == [call.get("u"), call.get().json()]
        assert client.method_calls == [call.get("u"), call.other(1), call.close()]


def test_23_special_methods_of_a_mock(run):
    with patch("lab.world.client") as client:
        client.__len__.return_value = 3
        client.__enter__.return_value.read.return_value = "text"
        assert run("[len(client), client.__enter__().read(), client['key'] and None]") == [3, "text", None]
        client.__len__.assert_called_once_with()
        client.__getitem__.assert_called_once_with("key")
        client.__enter__.return_value.read.assert_called_once_with()


def test_23_autospec_checks_arguments(run):
    with patch("lab.world.load", autospec=True, return_value=4) as load:
        assert run("load('x', mode='w')") == 4
        load.assert_called_once_with("x", mode="w")
        with pytest.raises(ExecutionError, match="too many positional arguments"):
            run("load('x', 'y', 'z')")
    with patch("lab.world.Client", autospec=True) as client:
        client.return_value.get.side_effect = [1, 2]
        assert run("[Client().get('u'), Client().get('v', scale=2)]") == [1, 2]
        client.return_value.get.assert_has_calls([call("u"), call("v", scale=2)])
        with pytest.raises(ExecutionError, match="has no attribute 'put'"):
            run("Client().put()")


def test_23_spec(run):
    with patch("lab.world.client", spec=Client) as client:
        client.get.return_value = 1
        assert run("[client.get('u'), isinstance(client, Client)]") == [1, True]
        with pytest.raises(ExecutionError, match="has no attribute 'put'"):
            run("client.put")


def test_23_async_mock(run):
    with patch("lab.world.fetch", return_value="page") as fetch:
        assert run("__import__('asyncio').run(fetch('u'))") == "page"
        fetch.assert_awaited_once_with("u")


def test_23_property(run):
    with patch.object(Client, "name", new_callable=mock.PropertyMock, return_value="fake") as name:
        assert run("client.name") == "fake"
        name.assert_called_once_with()


@patch.multiple("lab.world", LIMIT=8, CONFIG=None)
@patch.object(Client, "timeout", 1)
@patch.dict(world.CONFIG, rate=9)
@patch("lab.world.load", return_value=7)
def test_23_decorators(load, run):
    assert run("[LIMIT, CONFIG, load(), client.timeout]") == [8, None, 7, 1]
    load.assert_called_once_with()


def test_23_items(run, monkeypatch):
    monkeypatch.setitem(world.CONFIG, "rate", 5)
    monkeypatch.delitem(world.CONFIG, "deep")
    assert run("CONFIG") == {"rate": 5}
    with patch.dict("lab.world.CONFIG", {"only": [1]}, clear=True):
        assert run("CONFIG") == {"only": [1]}
    monkeypatch.undo()
    assert run("CONFIG") == {"rate": 1, "deep": {"x": 1}}


def test_23_attributes(run, monkeypatch):
    monkeypatch.setattr("lab.world.LIMIT", None)
    monkeypatch.delattr(world, "CONFIG")
    monkeypatch.setattr(Client, "added", [1], raising=False)
    assert run("[LIMIT, client.added]") == [None, [1]]
    with pytest.raises(ExecutionError, match="name 'CONFIG' is not defined"):
        run("CONFIG")
    monkeypatch.undo()
    assert run("[LIMIT, CONFIG['rate'], hasattr(Client, 'added')]") == [3, 1, False]


@on_this_machine
def test_23_an_action_class(synapse_executor, monkeypatch):
    monkeypatch.setattr(world.Answer, "helper", lambda self: "fake", raising=True)
    monkeypatch.setattr(world.Answer, "factor", 3)
    assert synapse_executor.execute(world.Answer, {}) == "fake" * 3


@not_as_jobs
def test_23_reset_of_what_earlier_actions_have_changed(run, monkeypatch):
    """A variable that has its first value here may have another one in a warm worker."""
    module = "__import__('lab.world').world"
    run(f"[{module}.__dict__.update(LIMIT=99), CONFIG.update(cached=1)] and None")
    monkeypatch.setattr(world, "LIMIT", 3)
    with patch.dict(world.CONFIG, {"rate": 1}, clear=True):
        assert run("[LIMIT, CONFIG]") == [3, {"rate": 1}]
    monkeypatch.undo()
    run(f"[{module}.__dict__.update(LIMIT=3), CONFIG.pop('cached', None)] and None")
    assert run("[LIMIT, CONFIG]") == [3, {"rate": 1, "deep": {"x": 1}}]


def test_23_nested_patches(run, monkeypatch):
    with patch("lab.world.LIMIT", 10):
        monkeypatch.setattr(world, "LIMIT", 11)
        assert run("LIMIT") == 11
        with patch("lab.world.LIMIT", 12):
            assert run("LIMIT") == 12
        assert run("LIMIT") == 11
        monkeypatch.undo()
        assert run("LIMIT") == 10
    assert run("LIMIT") == 3


@pytest.fixture(scope="class")
def patched_for_a_class():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Client, "timeout", 33)
        patches.setenv("OF_FIXTURE", "1")
        yield


@pytest.mark.usefixtures("patched_for_a_class")
class TestFixtureWithAWiderScope:
    @pytest.mark.parametrize("number", [1, 2])
    def test_23_holds_for_all_its_tests(self, run, monkeypatch, number):
        monkeypatch.setattr(world, "Client", number)
        assert run("[type(client).timeout, os.environ['OF_FIXTURE'], Client]") == [33, "1", number]


def test_23_mocker(run, mocker):
    get = mocker.patch.object(world.client, "get", return_value="page")
    assert run("client.get('u')") == "page"
    get.assert_called_once_with("u")
    mocker.patch.dict(world.CONFIG, {"rate": 4})
    assert run("CONFIG['rate']") == 4
    mocker.stopall()
    assert run("CONFIG['rate']") == 1


@on_this_machine
def test_23_spy(run, mocker):
    spy = mocker.spy(world, "load")
    clean = mocker.spy(Client, "clean")
    assert run("[load('x'), Client.clean('/u/')]") == ["x:r", "u"]
    spy.assert_called_once_with("x")
    assert spy.spy_return == "x:r"
    assert clean.mock_calls == [call("/u/")]


@on_this_machine
@pytest.mark.synapse(isolation="fresh")
def test_23_in_fresh_modules(run, monkeypatch):
    calls = []
    monkeypatch.setattr(world, "load", lambda path: calls.append(path) or "fake")
    assert run("load('x')") == "fake"
    assert calls == ["x"]


@pytest.mark.synapse(mode=("local", "task", "job"))
def test_23_function_that_records(run, monkeypatch):
    calls, count = [], 0

    def fake(path="p", *, mode="r"):
        nonlocal count
        count += 1
        calls.append((path, mode))
        return len(calls)

    monkeypatch.setattr(world, "load", fake)
    assert run("[load('a'), load('b', mode='w')]") == [1, 2]
    assert run("load()") == 3
    assert calls == [("a", "r"), ("b", "w"), ("p", "r")]
    assert count == 3


@on_this_machine
def test_23_function_that_changes_global_variables(run, monkeypatch):
    def fake(path):
        global TIMES_CALLED
        TIMES_CALLED += 1
        SEEN.append(path)

    before = TIMES_CALLED
    monkeypatch.setattr(world, "load", fake)
    run("[load('a'), load('b')] and None")
    assert before + 2 == TIMES_CALLED
    assert SEEN[-2:] == ["a", "b"]


@on_this_machine
def test_23_function_that_calls_the_original(run, monkeypatch):
    original, original_get = world.load, Client.get
    monkeypatch.setattr(world, "load", lambda *args: original(*args).upper())
    monkeypatch.setattr(Client, "get", lambda self, url: url if url == "known" else original_get(self, url))
    assert run("[load('x'), client.get('known')]") == ["X:R", "known"]
    with pytest.raises(ExecutionError, match="no network: other"):
        run("client.get('other')")


@on_this_machine
def test_23_methods(run, monkeypatch):
    monkeypatch.setattr(Client, "clean", staticmethod(lambda url: url.upper()))
    monkeypatch.setattr(Client, "create", classmethod(lambda cls: cls.__name__))
    monkeypatch.setattr(Client, "name", property(lambda self: f"fake {self.timeout}"))
    assert run("[Client.clean('u'), client.clean('v'), Client.create(), client.name]") == ["U", "V", "Client", "fake 5"]
    monkeypatch.undo()
    assert run("[Client.clean('/u/'), type(Client.create()), client.name]") == ["u", Client, "real"]


@on_this_machine
def test_23_class_of_the_test(run, monkeypatch):
    class FakeClient:
        created = 0
        urls: ClassVar = []

        def __init__(self):
            FakeClient.created += 1
            self.log = Counter()

        def get(self, url):
            self.urls.append(url)
            self.log[url] += 1
            return self

    last = FakeClient()
    monkeypatch.setattr(world, "Client", FakeClient)
    monkeypatch.setattr(world, "client", last)
    assert run("[type(Client().get('u')).__name__, client.get('v') and None]") == ["FakeClient", None]
    assert (FakeClient.created, FakeClient.urls, last.log) == (2, ["u", "v"], {"v": 1})


@on_this_machine
def test_23_bound_method(run, monkeypatch):
    class Recorder:
        def __init__(self):
            self.seen, self.last = [], None

        def record(self, path):
            self.seen.append(path)
            self.last = path

    recorder = Recorder()
    monkeypatch.setattr(world, "load", recorder.record)
    run("[load('a'), load('b')] and None")
    assert (recorder.seen, recorder.last) == (["a", "b"], "b")


@on_this_machine
def test_23_the_standard_library(run, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("builtins.input", lambda prompt="": "yes")
    monkeypatch.setattr(sys, "stdin", io.StringIO("line\n"))
    monkeypatch.setattr(sys, "argv", ["prog", "-v"])
    code = "[time.sleep(1000), input(), __import__('sys').stdin.readline(), __import__('sys').argv]"
    assert run(code) == [None, "yes", "line\n", ["prog", "-v"]]
    assert sys.stdin.read() == ""


@on_this_machine
def test_23_module_that_is_not_installed(run, monkeypatch):
    fake = types.ModuleType("not_installed")
    fake.answer = lambda: 42
    monkeypatch.setattr(world, "not_installed", fake, raising=False)
    assert run("not_installed.answer()") == 42


@on_this_machine
def test_23_side_effect_that_is_a_function(run):
    written = io.StringIO()
    with patch("lab.world.load", side_effect=lambda path: written.write(f"{path};")) as load:
        run("[load('a'), load('b')] and None")
        assert load.call_count == 2
    assert written.getvalue() == "a;b;"


@on_this_machine
def test_23_manager_of_several_mocks(run):
    manager = mock.Mock()
    with patch("lab.world.load") as load, patch("lab.world.client") as client:
        manager.attach_mock(load, "load")
        manager.attach_mock(client, "client")
        run("[load(1), client.get(2), load(3)] and None")
    assert manager.mock_calls == [call.load(1), call.client.get(2), call.load(3)]


@on_this_machine
def test_23_arguments_that_cannot_be_pickled(run):
    with patch("lab.world.load") as load:
        run("load(__import__('threading').Lock(), 1) and None")
        assert load.call_args.args[1] == 1
        assert "lock" in repr(load.call_args.args[0])


@on_this_machine
def test_23_calls_before_a_failure(run):
    with patch("lab.world.load") as load:
        with pytest.raises(ExecutionError, match="division"):
            run("[load(1), 1 / 0]")
        load.assert_called_once_with(1)


@on_workers
def test_23_what_cannot_be_sent_is_named(synapse_executor, monkeypatch):
    lock = threading.Lock()
    monkeypatch.setattr(world, "load", lambda: lock)
    with pytest.raises(PatchNotSerializable) as caught:
        synapse_executor.execute(evaluate, {"code": "1"})
    text = str(caught.value)
    assert text.startswith("the patch of lab.world.load cannot be sent to a worker: its replacement <function ")
    assert "cannot pickle '_thread.lock' object" in text
    assert "around=" in text


def test_23_call_that_never_starts(synapse_executor):
    with patch("lab.world.load") as load:
        run = synapse_executor.run("lab.world:no_such_action")
        assert "no_such_action" in str(run.error)
        load.assert_not_called()


@on_this_machine
def test_23_variable_of_the_test_module(synapse_executor, monkeypatch):
    monkeypatch.setitem(TABLE, "a", 2)

    @action
    def look_up(params, context):
        return TABLE

    assert synapse_executor.execute(look_up) == {"a": 2}
    monkeypatch.undo()
    assert synapse_executor.execute(look_up) == {"a": 1}


@on_workers
def test_23_an_object_that_no_module_has_is_named(synapse_executor, monkeypatch):
    client = Client()
    monkeypatch.setattr(client, "get", lambda url: url)
    with pytest.raises(PatchNotSerializable, match="no module has this Client") as caught:
        synapse_executor.execute(evaluate, {"code": "1"})
    assert "Patch a module or class, or pass the object to the action as a param" in str(caught.value)


# -- 24: around --


@pytest.mark.synapse(mode=("local", "task", "job"), around=(limited, 20))
def test_24_marker(run):
    assert run("LIMIT") == 20
    assert world.LIMIT == 3


@on_this_machine
@pytest.mark.synapse(around=[(limited, 20, "outer"), (limited, 21, "inner"), contextlib.suppress(KeyError)])
def test_24_several_nest(run):
    assert run("[LIMIT, entered[-2:]]") == [21, ["outer", "inner"]]
    assert run("{}['missing']") is None


@on_this_machine
def test_24_executor(synapse_executor, run):
    with synapse_executor.around(limited, limit=30):
        assert run("LIMIT") == 30
    assert run("LIMIT") == 3
    synapse_executor.around(limited, 31)
    assert run("LIMIT") == 31


@on_this_machine
@pytest.mark.synapse(around=(limited,))
def test_24_error_on_entering(synapse_executor):
    run = synapse_executor.run(evaluate, {"code": "1"})
    assert "missing 1 required positional argument: 'limit'" in str(run.error)
    assert run.error.__cause__.__notes__ == ["while entering limited, which runs around the action"]


@everywhere
@freezegun.freeze_time("2020-01-02 03:04:05.000006", tz_offset=2)
def test_24_clock_that_freezegun_has_stopped(synapse_executor):
    assert synapse_executor.execute(now) == ("2020-01-02T05:04:05.000006", 1577934245.000006)


def test_24_clock_that_goes_on(synapse_executor):
    with freezegun.freeze_time("2020-01-02", tick=True):
        assert 0 <= synapse_executor.execute(now)[1] - 1577923200 < 1000
    with freezegun.freeze_time("2020-01-02", auto_tick_seconds=15):
        first, second = synapse_executor.execute(now)
        assert second == datetime.datetime.fromisoformat(first).replace(tzinfo=datetime.UTC).timestamp() + 15


def test_24_clock_of_time_machine(synapse_executor):
    with time_machine.travel(1577923200.5, tick=False):
        assert synapse_executor.execute(now) == (datetime.datetime.now().isoformat(), 1577923200.5)
    assert abs(synapse_executor.execute(now)[1] - time.time()) < 1000


# -- 25: seeds --


@everywhere
def test_25_each_call_starts_with_the_same_seed(synapse_executor):
    import numpy as np

    synapse_executor.seed = SEED
    before = random.getstate()
    expected = [random.Random(SEED).random(), float(np.random.RandomState(SEED).random())]
    assert synapse_executor.execute(throw_dice) == expected
    assert synapse_executor.execute(throw_dice) == expected
    assert random.getstate() == before

"""Tests for detecting changed files, and for reloading plugins."""

from __future__ import annotations

import os
import threading

import pytest

from synapse_runtime.errors import ActionNotFoundError, ConfigError
from synapse_runtime.executors.local import LocalExecutor
from synapse_runtime.loggers import NullLogger
from synapse_runtime.plugins import plugin as plugins
from synapse_runtime.plugins.file_state import FileSnapshot
from synapse_runtime.plugins.plugin import Plugin
from synapse_runtime.runner import run_plugin


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    return path


def make_old(path):
    """Make a file old enough that every change shows in its mtime."""
    os.utime(path, ns=(10**18, 10**18))


def test_unchanged_file_is_surely_current(file):
    make_old(file)
    seen = FileSnapshot.read(str(file))
    assert seen.is_surely_current()
    assert seen.is_current()


def test_recent_file_is_compared_by_content(file):
    seen = FileSnapshot.read(str(file))
    assert not seen.is_surely_current()
    assert seen.is_current()
    status = file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not seen.is_current()


def test_touched_file_with_the_same_content_is_current(file):
    make_old(file)
    seen = FileSnapshot.read(str(file))
    file.touch()
    assert not seen.is_surely_current()
    assert seen.is_current()


def test_replaced_file_of_the_same_time_and_size_is_not_current(file, tmp_path):
    make_old(file)
    seen = FileSnapshot.read(str(file))
    (tmp_path / "other").write_text("two")
    make_old(tmp_path / "other")
    (tmp_path / "other").replace(file)
    assert not seen.is_current()


def test_deleted_file_is_not_current(file):
    seen = FileSnapshot.read(str(file))
    file.unlink()
    assert not seen.is_current()
    with pytest.raises(FileNotFoundError):
        FileSnapshot.read(str(file))


def test_file_newer_than_the_clock_is_compared_by_content(file):
    later = file.stat().st_mtime_ns + 10**13
    os.utime(file, ns=(later, later))
    seen = FileSnapshot.read(str(file))
    file.write_text("two")
    os.utime(file, ns=(later, later))
    assert not seen.is_current()


def test_recent_file_is_recent_whatever_a_test_has_set_the_clock_to(file, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 2 * 10**18)  # in 2033
    assert FileSnapshot.read(str(file)).is_recent


ACTIONS = """\
from synapse_runtime.decorators import action

@action
def one(params, context):
    return ["one", context.env.get("LEVEL")]

@action
def two(params, context):
    return ["two", context.env.get("LEVEL")]
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "actions.py").write_text(ACTIONS)
    write(tmp_path, "one", 1)
    return tmp_path


def write(plugin, name, level):
    text = f"code: demo\nenv: {{LEVEL: {level}}}\nactions:\n  {name}: {{entrypoint: 'plugin.actions:{name}'}}\n"
    (plugin / "config.yaml").write_text(text)


def test_executor_sees_an_edited_config_file(plugin):
    executor = LocalExecutor(plugin=plugin, logger=NullLogger())
    assert executor.execute("one") == ["one", 1]
    with pytest.raises(ActionNotFoundError):
        executor.execute("two")
    write(plugin, "two", 2)
    assert executor.execute("two") == ["two", 2]
    with pytest.raises(ActionNotFoundError):
        executor.execute("one")


def test_error_in_an_edited_config_file_is_raised_until_fixed(plugin):
    loaded = Plugin.load(plugin)
    (plugin / "config.yaml").write_text("code: demo\nactions: [")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"config\.yaml:"):
            loaded.entrypoint("one")
    write(plugin, "one", 1)
    assert loaded.entrypoint("one") == "plugin.actions:one"


def test_deleted_config_file_keeps_the_loaded_manifest(plugin):
    loaded = Plugin.load(plugin)
    (plugin / "config.yaml").unlink()
    assert loaded.action_names == ("one",)


def test_unchanged_config_file_is_not_read_again(plugin):
    loaded = Plugin.load(plugin)
    threading.Event().wait(0.06)  # longer than a file counts as recent
    before = loaded.manifest
    (plugin / "config.yaml").touch()
    assert loaded.manifest is before


def wait_until_old():
    threading.Event().wait(0.06)  # longer than a file counts as recent


def test_load_cached_returns_the_same_plugin_while_unchanged(plugin, monkeypatch):
    wait_until_old()
    first = Plugin.load_cached(plugin)
    monkeypatch.chdir(plugin)
    assert Plugin.load_cached(str(plugin)) is first
    assert Plugin.load_cached(".") is first
    assert Plugin.load_cached(plugin / "config.yaml") is not first
    assert Plugin.load_cached(plugin / "config.yaml") is Plugin.load_cached("config.yaml")


def test_run_plugin_sees_an_edited_config_file(plugin):
    for name, level in (("one", 1), ("two", 2), ("two", 3)):
        write(plugin, name, level)
        for _ in range(2):
            assert run_plugin(str(plugin), name) == [name, level]
            wait_until_old()


def test_run_plugin_sees_a_new_config_file(plugin):
    (plugin / "config.yaml").rename(plugin / "synapse.yaml")
    wait_until_old()
    assert run_plugin(str(plugin), "one") == ["one", 1]
    write(plugin, "one", 2)
    assert run_plugin(str(plugin), "one") == ["one", 2]
    (plugin / "config.yaml").write_text("this: does not belong to a plugin")
    assert run_plugin(str(plugin), "one") == ["one", 1]
    wait_until_old()
    assert run_plugin(str(plugin), "one") == ["one", 1]
    write(plugin, "one", 3)
    assert run_plugin(str(plugin), "one") == ["one", 3]


def test_run_plugin_raises_if_the_plugin_was_deleted(plugin, tmp_path):
    wait_until_old()
    run_plugin(str(plugin), "one")
    (plugin / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no config\.yaml or synapse\.yaml in this directory"):
        run_plugin(str(plugin), "one")


def test_relative_path_is_resolved_in_each_working_directory(plugin, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (other / "plugin").mkdir()
    (other / "plugin" / "actions.py").write_text(ACTIONS)
    write(other, "one", 5)
    wait_until_old()
    for directory, level in ((plugin, 1), (other, 5), (plugin, 1)):
        monkeypatch.chdir(directory)
        assert run_plugin(".", "one") == ["one", level]


def test_plugin_cache_is_bounded(tmp_path):
    for number in range(120):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number), "one", number)
        Plugin.load_cached(tmp_path / str(number))
    assert len(plugins._cached_plugins) <= 100


COUNTER = """\
from synapse_runtime.decorators import action

calls = []

@action
def one(params, context):
    calls.append(1)
    return len(calls)
"""


@pytest.mark.parametrize("now", [10**18, 2 * 10**18], ids=["in 2001", "in 2033"])
def test_module_is_imported_once_whatever_a_test_has_set_the_clock_to(plugin, monkeypatch, now):
    (plugin / "plugin" / "actions.py").write_text(COUNTER)
    executor = LocalExecutor(plugin=plugin, logger=NullLogger())
    with monkeypatch.context() as patch:
        patch.setattr("time.time_ns", lambda: now)
        assert [executor.execute("one") for _ in range(2)] == [1, 2]
    assert executor.execute("one") == 3
    (plugin / "plugin" / "actions.py").write_text(COUNTER.replace("calls = []", "calls = [9]"))
    assert executor.execute("one") == 2


def test_module_that_its_own_action_edits_is_imported_again(plugin):
    edit = "    with open(__file__, 'a') as file:\n        file.write('  # edited')\n    calls.append(1)"
    (plugin / "plugin" / "actions.py").write_text(COUNTER.replace("    calls.append(1)", edit))
    executor = LocalExecutor(plugin=plugin, logger=NullLogger())
    assert [executor.execute("one") for _ in range(2)] == [1, 1]

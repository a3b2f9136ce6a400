"""Tests for module scopes: inside a block module names refer to a plugin's own modules, outside to the shared ones."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import types
from pathlib import Path

import numpy
import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins import file_state
from synapse_runtime.plugins.module_scopes import (
    ModuleScope,
    activate_modules,
    fresh_modules,
    is_installed,
    is_installed_path,
    is_within,
    keep_module,
)


@pytest.fixture(autouse=True)
def _restore_modules():
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


def make(root: Path, name: str, text: str) -> Path:
    path = root / (name.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


@pytest.fixture
def one(tmp_path) -> Path:
    make(tmp_path / "one", "whose.__init__", "name = 'one'")
    return make(tmp_path / "one", "whose.part", "name = 'one'")


@pytest.fixture
def two(tmp_path) -> Path:
    make(tmp_path / "two", "whose.__init__", "name = 'two'")
    return make(tmp_path / "two", "whose.part", "name = 'two'")


def imported(name: str) -> types.ModuleType:
    return importlib.import_module(name)


def test_modules_are_importable_only_inside_the_block(one):
    path = list(sys.path)
    with activate_modules(one):
        assert sys.path == [str(one), *path]
        assert imported("whose").name == "one"
    assert sys.path == path


def test_sys_path_is_restored_with_mixed_entries(one, two, tmp_path, monkeypatch):
    with activate_modules(one):
        for entry in (one / "lib", tmp_path / "shared", one):
            monkeypatch.syspath_prepend(entry)
        path = list(sys.path)
        for _ in range(2):
            with activate_modules(two):
                assert str(one) not in sys.path
            assert sys.path == path


def test_duplicate_path_entry_of_a_plugin_is_removed(one, two, tmp_path, monkeypatch):
    path = list(sys.path)
    for _ in range(2):
        with activate_modules(one):
            sys.path[:0] = [str(one / "lib"), str(one)]
        for root in (one, two, one):
            with activate_modules(root):
                pass
        assert sys.path == path


def test_sys_path_is_restored_after_an_exception(one):
    path = list(sys.path)
    with pytest.raises(KeyError), activate_modules(one):
        raise KeyError
    assert sys.path == path


def test_path_entry_added_in_the_block_is_kept(one, tmp_path):
    with activate_modules(one):
        sys.path.append(str(tmp_path))
    assert str(tmp_path) in sys.path
    assert str(one) not in sys.path
    sys.path.remove(str(tmp_path))


def test_same_name_refers_to_each_directorys_own_module(one, two):
    for root, name in ((one, "one"), (two, "two"), (one, "one"), (two, "two")):
        with activate_modules(root):
            assert imported("whose").name == name
            assert imported("whose.part").name == name


def test_module_is_imported_once_across_activations(one, two):
    with activate_modules(two):
        others = imported("whose.part")
    with activate_modules(one):
        first = imported("whose.part")
    with activate_modules(two):
        assert imported("whose.part") is others
    with activate_modules(one):
        assert imported("whose.part") is first


def test_nested_blocks_have_their_own_modules(one, two):
    with activate_modules(one):
        outer = imported("whose.part")
        with activate_modules(two):
            assert imported("whose.part").name == "two"
            with activate_modules(one):
                assert imported("whose.part") is outer
            assert imported("whose.part").name == "two"
        assert imported("whose.part") is outer
        assert sys.path[0] == str(one)


def test_shadowed_module_is_restored_after_block_and_exception(one):
    other = types.ModuleType("whose")
    other.__file__ = "/elsewhere/whose.py"
    sys.modules["whose"] = other
    with activate_modules(one):
        assert imported("whose").name == "one"
    assert sys.modules["whose"] is other
    assert "whose.part" not in sys.modules
    with pytest.raises(KeyError), activate_modules(one):
        raise KeyError
    assert sys.modules["whose"] is other


def test_modules_without_name_clash_remain(one):
    bystander = types.ModuleType("bystander")
    bystander.__file__ = "/elsewhere/bystander.py"
    sys.modules["bystander"] = bystander
    with activate_modules(one):
        assert sys.modules["bystander"] is bystander


def test_installed_modules_are_always_shared(tmp_path):
    for name in ("json", "numpy.__init__"):
        make(tmp_path, name, "raise RuntimeError('shadows an installed module')")
    with activate_modules(tmp_path):
        assert imported("json") is json
        assert imported("numpy") is numpy


def test_module_added_later_is_found(one, two):
    with activate_modules(one):
        imported("whose")
    make(two, "added", "name = 'two'")
    make(one, "added", "name = 'one'")
    for root, name in ((one, "one"), (two, "two")):
        with activate_modules(root):
            assert imported("added").name == name


def test_root_may_be_relative(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in ("one", "one/", one):
        with activate_modules(root):
            assert imported("whose").name == "one"
            assert sys.path[0] == str(one)
        assert "whose" not in sys.modules


def test_missing_directory_raises_and_changes_nothing(tmp_path):
    path = list(sys.path)
    with (
        pytest.raises(ConfigError, match="the plugin's directory does not exist") as caught,
        activate_modules(tmp_path / "gone"),
    ):
        raise AssertionError("must not be entered")
    assert caught.value.path == tmp_path / "gone"
    assert sys.path == path


def test_is_within_checks_the_file_of_a_module(one):
    with activate_modules(one):
        module = imported("whose.part")
    assert is_within(module, one)
    assert is_within(module, str(one))
    assert not is_within(module, str(one)[:-1])
    assert not is_installed(module)


def test_namespace_package_is_within_its_directories(tmp_path):
    make(tmp_path, "spread.part", "")
    with activate_modules(tmp_path):
        assert is_within(imported("spread"), tmp_path)


@pytest.mark.parametrize("module", [sys, json, threading, numpy, pytest])
def test_stdlib_and_site_packages_are_installed(module):
    assert is_installed(module)


def test_is_installed_path_recognizes_site_packages(tmp_path):
    assert is_installed_path(str(Path(json.__file__).parent.parent))
    assert is_installed_path(str(Path(pytest.__file__).parent.parent))
    assert not is_installed_path(str(tmp_path))


def test_fresh_modules_are_imported_again_and_previous_ones_restored(tmp_path):
    make(tmp_path, "counted.__init__", "")
    make(tmp_path, "counted.state", "calls = 0")
    make(tmp_path, "kept", "calls = 0")
    with activate_modules(tmp_path):
        state, kept = imported("counted.state"), imported("kept")
    state.calls = kept.calls = 1
    with activate_modules(tmp_path):
        path = list(sys.path)
        with fresh_modules(tmp_path, but=["kept"]):
            assert imported("counted.state").calls == 0
            assert imported("kept") is kept
        assert sys.modules["counted.state"] is state
        assert sys.modules["kept"] is kept
        assert sys.path == path


def test_new_modules_of_a_fresh_block_are_removed(tmp_path):
    make(tmp_path, "brand_new", "")
    with fresh_modules(tmp_path):
        imported("brand_new")
    with activate_modules(tmp_path):
        assert "brand_new" not in sys.modules


def test_sys_modules_and_sys_path_are_restored(one, two):
    modules, path = dict(sys.modules), list(sys.path)
    for root in (one, two):
        with activate_modules(root):
            imported("whose.part")
    assert sys.modules == modules
    assert sys.path == path


def test_module_imported_before_the_block_is_kept(one, two, monkeypatch):
    monkeypatch.syspath_prepend(one)
    before = imported("whose.part")
    monkeypatch.undo()
    with activate_modules(two):
        assert imported("whose.part").name == "two"
    with activate_modules(one):
        assert imported("whose.part") is before
    assert sys.modules["whose.part"] is before


def test_path_entry_inside_a_plugin_belongs_to_it(one, two):
    for root, name in ((one, "one"), (two, "two")):
        make(root / "lib", "helper", f"name = {name!r}")
        with activate_modules(root):
            sys.path.append(str(root / "lib"))
            assert imported("helper").name == name
        assert str(root / "lib") not in sys.path
        assert "helper" not in sys.modules
    with activate_modules(one):
        assert str(one / "lib") in sys.path
        assert imported("helper").name == "one"


def test_module_outside_of_plugins_is_shared(one, two, tmp_path, monkeypatch):
    make(tmp_path, "next_to_plugins", "")
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for root in (one, two):
        with activate_modules(root):
            found.add(imported("next_to_plugins"))
    assert found == {imported("next_to_plugins")}


def test_module_of_another_plugin_on_sys_path_is_shared(one, two, monkeypatch):
    make(one, "only_in_one", "")
    for root in (one, two):
        monkeypatch.syspath_prepend(root)
    found = set()
    for root in (one, two, one):
        with activate_modules(root):
            found.add(imported("only_in_one"))
            assert imported("whose").name == root.name
    assert found == {imported("only_in_one")}


def test_innermost_plugin_owns_a_module(one):
    inner = make(one / "inner", "whose.__init__", "name = 'inner'")
    for root, name in ((one, "one"), (inner, "inner"), (one, "one"), (inner, "inner")):
        with activate_modules(root):
            assert imported("whose").name == name


def test_namespace_packages_are_separate(tmp_path):
    for name in ("left", "right", "left"):
        make(tmp_path / name, "spread_out.part", f"name = {name!r}")
        with activate_modules(tmp_path / name):
            assert imported("spread_out.part").name == name


def test_lazy_modules_are_not_loaded(one):
    make(one, "lazy_one", "import lazy_two")
    spec = importlib.util.spec_from_file_location("lazy_one", one / "lazy_one.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules["lazy_one"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lazy_one"])
    sys.modules["no_module"] = object()
    with activate_modules(one):
        imported("whose")
    with activate_modules(one), pytest.raises(ModuleNotFoundError, match="lazy_two"):
        getattr(sys.modules["lazy_one"], "used")  # noqa: B009 - the access is what is tested


def test_blocks_may_end_in_any_order(one, two):
    path = list(sys.path)
    first, second = activate_modules(one), activate_modules(two)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert imported("whose").name == "two"
    second.__exit__(None, None, None)
    assert "whose" not in sys.modules
    assert sys.path == path


def test_scope_lasts_until_the_next_activation_and_may_contain_blocks(one, two):
    modules, path = dict(sys.modules), list(sys.path)
    scope = ModuleScope()
    scope.activate(str(one))
    assert imported("whose").name == "one"
    with activate_modules(two):
        assert imported("whose").name == "two"
    assert imported("whose").name == "one"
    scope.activate(str(two))
    assert imported("whose").name == "two"
    scope.activate(None)
    assert "whose" not in sys.modules
    scope.activate(str(one))
    scope.close()
    scope.close()
    assert sys.modules == modules
    assert sys.path == path


def test_scope_takes_effect_over_an_unclosed_block(one, two):
    scope, unclosed = ModuleScope(), activate_modules(two)
    scope.activate(str(one))
    unclosed.__enter__()
    scope.activate(str(one))
    with activate_modules(one):
        assert imported("whose").name == "one"
    assert imported("whose").name == "one"
    unclosed.__exit__(None, None, None)
    assert imported("whose").name == "one"
    scope.close()


def rewrite(root: Path, name: str, text: str) -> None:
    """Edit a file without changing its size or the second of its mtime, which is all that bytecode records."""
    path = root / (name.replace(".", "/") + ".py")
    before = path.stat()
    assert len(text) == before.st_size
    path.write_text(text)
    second = before.st_mtime_ns // 10**9 * 10**9
    later = second + (before.st_mtime_ns - second + 1) % 10**9
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("pause", [0, 0.06])
def test_edited_module_is_imported_again_in_the_next_block(one, pause, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with activate_modules(one):
        assert imported("whose.part").name == "one"
        assert Path(importlib.util.cache_from_source(imported("whose.part").__file__)).exists()
    threading.Event().wait(pause)  # longer than a file counts as recent
    for text in ("'two'", "'one'", "'two'"):
        rewrite(one, "whose.part", f"name = {text}")
        with activate_modules(one):
            assert imported("whose.part").name == text.strip("'")


@pytest.fixture
def _coarse_timestamps(monkeypatch):
    """As on a file system with coarse timestamps, so that a slow machine edits a file within one of them too."""
    monkeypatch.setattr(file_state, "_RECENT_NS", 60_000_000_000)


@pytest.mark.usefixtures("_coarse_timestamps")
def test_immediate_edit_with_unchanged_mtime_is_seen(one):
    with activate_modules(one):
        before = imported("whose.part").__file__
    status = os.stat(before)
    Path(before).write_text("name = 'two'")
    os.utime(before, ns=(status.st_atime_ns, status.st_mtime_ns))
    with activate_modules(one):
        assert imported("whose.part").name == "two"


def test_touched_file_is_not_imported_again(one):
    with activate_modules(one):
        before = imported("whose.part")
    os.utime(one / "whose" / "part.py", ns=(10**18, 10**18))
    with activate_modules(one):
        assert imported("whose.part") is before


def test_edit_reloads_all_modules_of_that_plugin_only(one, two):
    make(one, "uses", "from whose.part import name")
    with activate_modules(two):
        others = imported("whose.part")
    with activate_modules(one):
        assert imported("uses").name == "one"
    rewrite(one, "whose.part", "name = 'new'")
    with activate_modules(one):
        assert imported("uses").name == "new"
    with activate_modules(two):
        assert imported("whose.part") is others


def test_edit_of_a_module_in_use_is_seen_by_the_next_block(one):
    with activate_modules(one):
        imported("whose.part")
        threading.Event().wait(0.02)
        make(one, "whose.part", "name = 'edited'")
        with activate_modules(one):
            assert imported("whose.part").name == "one", "an outer block is using it"
    with activate_modules(one):
        assert imported("whose.part").name == "edited"


@pytest.mark.usefixtures("_coarse_timestamps")
def test_added_and_deleted_files_are_seen(one):
    for number in range(2):
        with activate_modules(one):
            imported("whose.part")
        before = (one / "whose").stat()
        make(one, f"whose.new{number}", "")
        os.utime(
            one / "whose", ns=(before.st_atime_ns, before.st_mtime_ns)
        )  # as if added within the resolution of timestamps
        with activate_modules(one):
            imported(f"whose.new{number}")
    (one / "whose" / "new1.py").unlink()
    with activate_modules(one), pytest.raises(ModuleNotFoundError):
        imported("whose.new1")
    make(one, "whose.new1", "again = True")
    with activate_modules(one):
        assert imported("whose.new1").again


def test_kept_test_modules_survive_an_edit(one):
    make(one, "whose.test_it", "from .part import name")
    with activate_modules(one):
        package, test, part = imported("whose"), imported("whose.test_it"), imported("whose.part")
        keep_module("whose.test_it")
    rewrite(one, "whose.part", "name = 'new'")
    make(one, "whose.test_it", "raise RuntimeError")
    with activate_modules(one):
        assert imported("whose.test_it") is test
        assert imported("whose") is package
        from whose import part as new

        assert new is not part
        assert (test.name, new.name) == ("one", "new")
    with activate_modules(one):
        assert imported("whose.part") is new


def test_modules_of_a_deleted_plugin_are_freed(tmp_path):
    import gc
    import shutil
    import weakref

    make(tmp_path / "gone", "goes", "class Big: pass")
    with activate_modules(tmp_path / "gone"):
        big = weakref.ref(imported("goes").Big)
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "next").mkdir()
    with activate_modules(tmp_path / "next"):
        pass
    gc.collect()
    assert big() is None

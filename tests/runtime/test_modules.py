"""Whose modules a name means: a plugin's own inside its block, everybody's outside."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import types
from pathlib import Path

import numpy
import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.modules import fresh_modules, is_installed, is_installed_path, is_within, modules_of


@pytest.fixture(autouse=True)
def _forgets_modules():
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


def test_modules_of_a_directory_are_importable_inside_the_block_only(one):
    path = list(sys.path)
    with modules_of(one):
        assert sys.path == [str(one), *path]
        assert imported("whose").name == "one"
    assert sys.path == path


def test_the_import_path_is_restored_after_a_failure(one):
    path = list(sys.path)
    with pytest.raises(KeyError), modules_of(one):
        raise KeyError
    assert sys.path == path


def test_what_the_block_adds_to_the_import_path_stays(one, tmp_path):
    with modules_of(one):
        sys.path.append(str(tmp_path))
    assert str(tmp_path) in sys.path
    assert str(one) not in sys.path
    sys.path.remove(str(tmp_path))


def test_the_same_name_means_each_directorys_own_module(one, two):
    for root, name in ((one, "one"), (two, "two"), (one, "one"), (two, "two")):
        with modules_of(root):
            assert imported("whose").name == name
            assert imported("whose.part").name == name


def test_a_module_is_imported_once_however_often_it_is_put_aside(one, two):
    with modules_of(two):
        others = imported("whose.part")
    with modules_of(one):
        first = imported("whose.part")
    with modules_of(two):
        assert imported("whose.part") is others
    with modules_of(one):
        assert imported("whose.part") is first


def test_nested_blocks_each_have_their_own(one, two):
    with modules_of(one):
        outer = imported("whose.part")
        with modules_of(two):
            assert imported("whose.part").name == "two"
            with modules_of(one):
                assert imported("whose.part") is outer
            assert imported("whose.part").name == "two"
        assert imported("whose.part") is outer
        assert sys.path[0] == str(one)


def test_a_foreign_module_comes_back_after_the_block_and_after_a_failure(one):
    foreign = types.ModuleType("whose")
    foreign.__file__ = "/elsewhere/whose.py"
    sys.modules["whose"] = foreign
    with modules_of(one):
        assert imported("whose").name == "one"
    assert sys.modules["whose"] is foreign
    assert "whose.part" not in sys.modules
    with pytest.raises(KeyError), modules_of(one):
        raise KeyError
    assert sys.modules["whose"] is foreign


def test_modules_whose_names_do_not_clash_never_move(one):
    bystander = types.ModuleType("bystander")
    bystander.__file__ = "/elsewhere/bystander.py"
    sys.modules["bystander"] = bystander
    with modules_of(one):
        assert sys.modules["bystander"] is bystander


def test_installed_modules_never_move(tmp_path):
    for name in ("json", "numpy.__init__"):
        make(tmp_path, name, "raise RuntimeError('shadows an installed module')")
    with modules_of(tmp_path):
        assert imported("json") is json
        assert imported("numpy") is numpy


def test_a_module_that_is_added_later_is_found(one, two):
    with modules_of(one):
        imported("whose")
    make(two, "added", "name = 'two'")
    make(one, "added", "name = 'one'")
    for root, name in ((one, "one"), (two, "two")):
        with modules_of(root):
            assert imported("added").name == name


def test_a_directory_that_does_not_exist_is_told_and_changes_nothing(tmp_path):
    path = list(sys.path)
    with (
        pytest.raises(ConfigError, match="the plugin's directory does not exist") as caught,
        modules_of(tmp_path / "gone"),
    ):
        raise AssertionError("must not be entered")
    assert caught.value.path == tmp_path / "gone"
    assert sys.path == path


def test_it_is_known_where_a_module_comes_from(one):
    with modules_of(one):
        module = imported("whose.part")
    assert is_within(module, one)
    assert is_within(module, str(one))
    assert not is_within(module, str(one)[:-1])
    assert not is_installed(module)


def test_a_package_without_a_file_is_where_its_directories_are(tmp_path):
    make(tmp_path, "spread.part", "")
    with modules_of(tmp_path):
        assert is_within(imported("spread"), tmp_path)


@pytest.mark.parametrize("module", [sys, json, threading, numpy, pytest])
def test_python_and_its_packages_are_installed(module):
    assert is_installed(module)


def test_the_import_path_of_installed_packages_is_told_from_others(tmp_path):
    assert is_installed_path(str(Path(json.__file__).parent.parent))
    assert is_installed_path(str(Path(pytest.__file__).parent.parent))
    assert is_installed_path(str(tmp_path / "python311.zip")), "what is not there has nothing to import"
    assert not is_installed_path(str(tmp_path))


def test_fresh_modules_are_imported_anew_and_those_of_before_come_back(tmp_path):
    make(tmp_path, "counted.__init__", "")
    make(tmp_path, "counted.state", "calls = 0")
    make(tmp_path, "kept", "calls = 0")
    with modules_of(tmp_path):
        state, kept = imported("counted.state"), imported("kept")
    state.calls = kept.calls = 1
    path = list(sys.path)
    with fresh_modules(tmp_path, but=["kept"]):
        assert imported("counted.state").calls == 0
        assert imported("kept") is kept
    assert sys.modules["counted.state"] is state
    assert sys.modules["kept"] is kept
    assert sys.path == path


def test_modules_that_are_new_in_a_fresh_block_do_not_stay(tmp_path):
    make(tmp_path, "brand_new", "")
    with fresh_modules(tmp_path):
        imported("brand_new")
    assert "brand_new" not in sys.modules

"""Tests for the import path of a call: a worker has the caller's entries of `sys.path` in the caller's order."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from synapse_runtime.executors.import_path import ImportPath
from synapse_runtime.executors.path_mapping import PathMap

STDLIB, SITE = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")


@pytest.fixture(autouse=True)
def _restore_path():
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def directories(tmp_path: Path) -> tuple[str, str, str]:
    for name in "abc":
        (tmp_path / name).mkdir()
    a, b, c = (str(tmp_path / name) for name in "abc")
    return a, b, c


def test_own_entries_are_those_before_and_after_the_installed_ones(directories, tmp_path):
    a, b, c = directories
    missing = str(tmp_path / "missing")
    assert ImportPath.of([f"{SITE}/ray", a, missing, STDLIB, b, SITE, c]) == ((a,), (b, c))


def test_file_such_as_a_zip_is_an_own_entry(tmp_path):
    path = tmp_path / "modules.zip"
    path.touch()
    assert ImportPath.of([str(path), STDLIB]).first == (str(path),)


def test_entries_of_a_worker_on_another_machine_are_those_in_the_plugin():
    path = ImportPath(("/home/ada/digits/lib", "/home/ada/other"), ("/home/ada/digits",))
    assert path.to_worker(PathMap("/home/ada/digits", "/tmp/x")) == (("/tmp/x/lib",), ("/tmp/x",))


def test_order_of_the_caller_applies_and_is_put_back(directories):
    a, b, c = directories
    sys.path[:] = [c, STDLIB, SITE, a]
    with ImportPath((a,), (b,)).applied(c):
        assert sys.path == [c, a, STDLIB, SITE, b]
    assert sys.path == [c, STDLIB, SITE, a]
    with ImportPath((), ()).applied(None):
        assert sys.path == [c, STDLIB, SITE, a]


def test_entry_that_does_not_exist_is_left_out(tmp_path):
    sys.path[:] = [STDLIB]
    with ImportPath((str(tmp_path / "missing"),), ()).applied(None):
        assert sys.path == [STDLIB]


def test_what_the_action_adds_stays_and_what_it_removes_is_gone(directories):
    a, b, c = directories
    sys.path[:] = [STDLIB, SITE, c]
    with ImportPath((a,), ()).applied(None):
        sys.path.insert(0, "/vendored")
        sys.path.append(b)
        sys.path.remove(c)
    assert sys.path == ["/vendored", STDLIB, SITE, b]

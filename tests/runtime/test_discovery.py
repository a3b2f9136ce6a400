"""Tests for finding a plugin's config file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.plugins.discovery import CONFIG_NAMES, config_file_in, find_config_above, is_plugin


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_config_file_is_found_by_name(tmp_path, name):
    (tmp_path / name).write_text("anything: at all\n")
    assert config_file_in(tmp_path) == tmp_path / name


def test_first_of_several_config_files_is_used(tmp_path):
    for name in reversed(CONFIG_NAMES):
        (tmp_path / name).write_text("code: x\n")
        assert config_file_in(tmp_path) == tmp_path / name
        assert find_config_above(tmp_path) == tmp_path / name


def test_directory_without_config_file_returns_none(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    (tmp_path / "settings.yaml").write_text("code: x\n")
    assert config_file_in(tmp_path) is None
    assert config_file_in(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", ["code: x\n", "name: x\nactions:\n  train: a:B\n", "# c\n\ncode : x"])
def test_nearest_plugin_above_is_found(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    deep = tmp_path / "tests" / "deep"
    deep.mkdir(parents=True)
    assert find_config_above(deep) == tmp_path / "config.yaml"
    (tmp_path / "tests" / "synapse.yml").write_text(content)
    assert find_config_above(deep) == tmp_path / "tests" / "synapse.yml"


@pytest.mark.parametrize("content", ["model: x\n", "", "settings:\n  code: x\n", "# code: x\n", "encode: x\n"])
def test_config_file_of_another_program_is_ignored(tmp_path, content):
    (tmp_path / "config.yaml").write_text("code: x\n")
    inner = tmp_path / "experiment"
    inner.mkdir()
    (inner / "config.yaml").write_text(content)
    assert find_config_above(inner) == tmp_path / "config.yaml"


def test_config_file_of_another_program_does_not_hide_the_plugin(tmp_path):
    (tmp_path / "config.yaml").write_text("optimizer: adam\n")
    (tmp_path / "synapse.yaml").write_text("code: x\n")
    assert find_config_above(tmp_path) == tmp_path / "synapse.yaml"


def test_binary_config_file_is_no_error(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "config.yaml").write_bytes(b"\xff\xff\ncode: x\n")
    assert find_config_above(inner) == inner / "config.yaml"
    assert find_config_above(tmp_path) != tmp_path / "config.yaml"


def test_plugin_is_found_above_a_missing_directory(tmp_path):
    (tmp_path / "config.yaml").write_text("code: x\n")
    assert find_config_above(tmp_path / "not" / "yet") == tmp_path / "config.yaml"


def test_discovery_imports_only_the_standard_library():
    code = (
        "import sys; import synapse_runtime.plugins.discovery; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'}))"
    )
    bare = subprocess.run(
        [sys.executable, "-c", code.replace("import synapse_runtime.plugins.discovery; ", "")],
        capture_output=True,
        text=True,
        check=True,
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) - set(eval(bare.stdout)) == {"synapse_runtime"}


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfcode: x\n", b'"code": x\n', b"'actions': {}\n", b"{code: x}\n", b'{ "code": "x"}\r\n']
)
def test_plugin_keys_are_recognized_in_all_notations(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    assert find_config_above(tmp_path / "tests") == tmp_path / "config.yaml"
    assert is_plugin(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("model: x\n")
    assert not is_plugin(tmp_path / "other")


# Whose files are trusted. Root can give files to other users.

OTHER = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like `/tmp`, in which others may create files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


@pytest.fixture
def project(shared: Path) -> Path:
    """A directory of this user in it, with a plugin's config file above, which tests may change."""
    (shared / "config.yaml").write_text("code: x\n")
    directory = shared / "project"
    directory.mkdir(mode=0o755)
    return directory


def search(start: Path, **options: Any) -> tuple[Path | None, list[str]]:
    reasons: list[str] = []
    return find_config_above(start, on_untrusted=reasons.append, **options), reasons


def test_config_file_in_a_directory_that_others_may_write_to_is_ignored(project, shared):
    found, (reason,) = search(project)
    assert found is None
    assert reason == (
        f"{shared / 'config.yaml'} is ignored: others may write to its directory. If you trust it, add {shared} to the "
        "environment variable SYNAPSE_SAFE_DIRECTORIES, or name it: --path, pytest --synapse-plugin"
    )


@as_root
@pytest.mark.parametrize(
    ("name", "what"), [("config.yaml", "the file"), (".", "its directory")], ids=["file", "directory"]
)
def test_config_file_of_another_user_is_ignored(project, shared, name, what):
    shared.chmod(0o755)
    os.chown(shared / name, OTHER, OTHER)
    found, (reason,) = search(project)
    assert found is None
    assert f"{what} belongs to another user, nobody." in reason


@as_root
def test_config_file_of_the_owner_of_the_tests_is_trusted(project, shared):
    shared.chmod(0o755)
    for path in (shared, shared / "config.yaml"):
        os.chown(path, OTHER, OTHER)
    assert search(project, owners=(OTHER,)) == (shared / "config.yaml", [])


@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_config_file_that_others_may_write_to_is_ignored(project, shared, mode):
    shared.chmod(0o755)
    (shared / "config.yaml").chmod(mode)
    found, (reason,) = search(project)
    assert found is None
    assert "others may write to the file" in reason


@as_root
def test_group_may_write_if_it_is_the_owners_own(project, shared):
    shared.chmod(0o775)
    assert search(project) == (shared / "config.yaml", [])  # root's group is called root
    os.chown(shared, 0, OTHER)
    found, (reason,) = search(project)
    assert found is None
    assert "its group may write to its directory" in reason


@pytest.mark.parametrize("form", ["{}", "/nowhere:{}", "{}/", "*"])
def test_environment_variable_allows_directories(project, shared, monkeypatch, form):
    monkeypatch.setenv("SYNAPSE_SAFE_DIRECTORIES", form.format(shared))
    assert search(project) == (shared / "config.yaml", [])


def test_directory_below_an_allowed_one_is_not_allowed(project, shared, monkeypatch):
    monkeypatch.setenv("SYNAPSE_SAFE_DIRECTORIES", str(shared.parent))
    assert search(project)[0] is None


def test_plugin_above_one_that_is_ignored_is_found(project, shared):
    (project / "inner").mkdir()
    (project / "config.yaml").write_text("code: x\n")
    (project / "inner" / "config.yaml").write_text("code: x\n")
    (project / "inner" / "config.yaml").chmod(0o666)
    found, reasons = search(project / "inner")
    assert found == project / "config.yaml"
    assert len(reasons) == 1


# Where the search ends.


def test_search_ends_at_the_top_of_the_repository(tmp_path):
    (tmp_path / "config.yaml").write_text("code: x\n")
    (tmp_path / "repository" / "tests").mkdir(parents=True)
    assert find_config_above(tmp_path / "repository" / "tests") == tmp_path / "config.yaml"
    (tmp_path / "repository" / ".git").mkdir()
    assert find_config_above(tmp_path / "repository" / "tests") is None


@pytest.mark.parametrize(("top", "found"), [("", True), ("repository", False), ("repository/tests", False)])
def test_search_ends_at_the_higher_of_repository_and_root_directory(tmp_path, top, found):
    (tmp_path / "config.yaml").write_text("code: x\n")
    (tmp_path / "repository" / "tests").mkdir(parents=True)
    (tmp_path / "repository" / ".git").mkdir()
    expected = tmp_path / "config.yaml" if found else None
    assert find_config_above(tmp_path / "repository" / "tests", top=tmp_path / top) == expected


def test_root_directory_below_the_repository_does_not_end_the_search(tmp_path):
    (tmp_path / "plugins" / "one").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "config.yaml").write_text("code: x\n")
    assert find_config_above(tmp_path / "plugins" / "one", top=tmp_path / "plugins") == tmp_path / "config.yaml"


def test_root_directory_elsewhere_does_not_count(tmp_path):
    (tmp_path / "config.yaml").write_text("code: x\n")
    (tmp_path / "tests").mkdir()
    assert find_config_above(tmp_path / "tests", top=tmp_path / "other") == tmp_path / "config.yaml"

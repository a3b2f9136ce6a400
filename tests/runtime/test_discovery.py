"""Tests for finding a plugin's config file."""

from __future__ import annotations

import subprocess
import sys

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

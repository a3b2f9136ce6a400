"""Archives: which files of a plugin's directory are packed, and that the same content makes the same package."""

from __future__ import annotations

import io
import os
import random
import sys
import zipfile
from pathlib import Path

import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.executors.ray import archive
from synapse_runtime.executors.ray.archive import PackageBuilder


def make(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return root


def names(root: Path, **options: tuple[str, ...]) -> list[str]:
    return [entry.name for entry in PackageBuilder(root, **options).entries()]


def test_caches_virtual_environments_and_repositories_are_excluded(tmp_path):
    make(
        tmp_path,
        "config.yaml",
        "plugin/train.py",
        "plugin/train.pyc",
        "plugin/__pycache__/train.cpython-311.pyc",
        ".git/HEAD",
        ".hg/store",
        ".svn/entries",
        ".venv/lib/x.py",
        "venv/lib/x.py",
        "my-own-env/pyvenv.cfg",
        "my-own-env/lib/x.py",
        "node_modules/left-pad/index.js",
        ".tox/x",
        ".nox/x",
        ".pytest_cache/x",
        ".mypy_cache/x",
        ".ruff_cache/x",
        ".ipynb_checkpoints/x",
        "data/.DS_Store",
        "data/table.csv",
    )
    assert names(tmp_path) == ["config.yaml", "data/table.csv", "plugin/train.py"]


def test_gitignore_applies_with_the_rules_of_git(tmp_path):
    make(
        tmp_path,
        "a.log",
        "kept.log",
        "logs/b.log",
        "logs/kept.log",
        "build/x.py",
        "lib/build/y.py",
        "weights/big.npz",
        "lib/weights/small.npz",
    )
    (tmp_path / ".gitignore").write_text("# a comment\n*.log\n!kept.log\n/weights/\nbuild/\n")
    (tmp_path / "logs" / ".gitignore").write_text("kept.log\n!b.log\n")
    assert names(tmp_path) == [".gitignore", "kept.log", "lib/weights/small.npz", "logs/.gitignore", "logs/b.log"]


def test_synapseignore_overrides_gitignore_and_is_overridden_by_rayignore(tmp_path):
    make(tmp_path, "a.bin", "b.bin", "c.bin", "config.yaml")
    (tmp_path / ".gitignore").write_text("*.bin\n")
    (tmp_path / ".synapseignore").write_text("!a.bin\n!b.bin\n.*ignore\n")
    (tmp_path / ".rayignore").write_text("b.bin\n")
    assert names(tmp_path) == ["a.bin", "config.yaml"]


def test_rayignore_excludes_more_and_can_include_what_gitignore_excludes(tmp_path):
    make(tmp_path, "weights/trained.npz", "videos/a.mp4", "config.yaml")
    (tmp_path / ".gitignore").write_text("weights/\n")
    (tmp_path / ".rayignore").write_text("videos/\n!weights/\n")
    assert names(tmp_path) == [".gitignore", ".rayignore", "config.yaml", "weights/trained.npz"]


def test_ignore_files_above_the_plugin_apply_up_to_the_top_of_the_repository(tmp_path):
    make(tmp_path, "repo/.git/HEAD", "repo/plugins/mine/a.tmp", "repo/plugins/mine/b.py", "repo/plugins/mine/c.txt")
    (tmp_path / ".gitignore").write_text("*.py\n")  # outside the repository
    (tmp_path / "repo" / ".gitignore").write_text("*.tmp\n/plugins/mine/c.txt\n")
    assert names(tmp_path / "repo" / "plugins" / "mine") == ["b.py"]


def test_plugin_that_its_repository_ignores_as_a_whole_is_packed(tmp_path):
    make(tmp_path, ".git/HEAD", "generated/config.yaml", "generated/a.tmp")
    (tmp_path / ".gitignore").write_text("generated/\n")
    (tmp_path / "generated" / ".gitignore").write_text("*.tmp\n")
    assert names(tmp_path / "generated") == [".gitignore", "config.yaml"]


def test_required_files_are_packed_even_if_ignore_files_exclude_them(tmp_path):
    make(tmp_path, "wheels/a.whl", "wheels/b.txt", "requirements.txt", "deep/down/c.whl", "deep/other.txt")
    (tmp_path / ".gitignore").write_text("*\n")
    always = ("requirements.txt", "wheels/a.whl", "deep/down")
    assert names(tmp_path, always=always) == ["deep/down/c.whl", "requirements.txt", "wheels/a.whl"]


def test_excludes_are_patterns_relative_to_the_plugins_directory(tmp_path):
    make(tmp_path, "a.bin", "lib/b.bin", "lib/c.py")
    assert names(tmp_path, excludes=("/a.bin", "lib/*.bin")) == ["lib/c.py"]


def test_links_are_followed_except_broken_ones_and_those_to_a_parent_directory(tmp_path):
    make(tmp_path, "elsewhere/shared.py", "plugin/own.py", "plugin/sub/x.py")
    plugin = tmp_path / "plugin"
    (plugin / "shared.py").symlink_to(tmp_path / "elsewhere" / "shared.py")
    (plugin / "everything").symlink_to(tmp_path / "elsewhere")
    (plugin / "sub" / "up").symlink_to(plugin)
    (plugin / "broken").symlink_to(tmp_path / "missing")
    os.mkfifo(plugin / "pipe")
    assert names(plugin) == ["everything/shared.py", "own.py", "shared.py", "sub/x.py"]
    with zipfile.ZipFile(io.BytesIO(PackageBuilder(plugin).package().data)) as archive:
        assert archive.read("shared.py") == b"content of elsewhere/shared.py"


def test_empty_directories_and_permissions_are_packed(tmp_path):
    make(tmp_path, "run.sh", "plain.txt")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "weights").mkdir()
    with zipfile.ZipFile(io.BytesIO(PackageBuilder(tmp_path).package().data)) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes == {"plain.txt": 0o644, "run.sh": 0o755, "weights/": 0o755}


def test_package_depends_on_the_content_but_not_on_location_and_time(tmp_path):
    one, other = make(tmp_path / "one", "b.py", "a/c.py"), make(tmp_path / "other", "a/c.py", "b.py")
    os.utime(other / "b.py", (1, 1))
    assert PackageBuilder(one).package() == PackageBuilder(other).package()
    (other / "b.py").write_text("content of b.PY")
    assert PackageBuilder(one).package().uri != PackageBuilder(other).package().uri


def test_directory_is_packed_again_only_if_a_file_has_changed(tmp_path):
    builder = PackageBuilder(make(tmp_path, "a.py"))
    first = builder.package()
    assert builder.package() is first
    (tmp_path / "a.py").write_text("changed")
    second = builder.package()
    assert second.uri != first.uri
    make(tmp_path, "b.py")
    assert builder.package().uri != second.uri
    (tmp_path / ".rayignore").write_text("b.py\n.rayignore\n")
    assert builder.package() == second


def test_error_for_a_plugin_that_is_too_large_lists_its_largest_files(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1_000_000)
    make(tmp_path, "config.yaml", "plugin/a.py")
    (tmp_path / "weights").mkdir()
    for number in range(7):
        (tmp_path / "weights" / f"{number}.npz").write_bytes(random.Random(number).randbytes(100_000 * (number + 1)))
    with pytest.raises(ConfigError) as caught:
        PackageBuilder(tmp_path).package()
    first, *listed = str(caught.value).splitlines()
    assert first.startswith(
        f"{tmp_path}: the plugin is too large to upload: 2.8 MB in 9 files, more than 1.0 MB when compressed."
    )
    assert ".rayignore" in first
    assert [line.split() for line in listed] == [
        [f"{size}.0", "kB", f"weights/{number}.npz"]
        for number, size in ((6, 700), (5, 600), (4, 500), (3, 400), (2, 300))
    ]


def test_size_limit_applies_to_the_compressed_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1_000_000)
    (tmp_path / "zeros.bin").write_bytes(bytes(10_000_000))
    assert len(PackageBuilder(tmp_path).package().data) < 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="requires a file that even root cannot read")
def test_error_for_an_unreadable_file_names_it(tmp_path):
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError, match="memory: cannot be read"):
        PackageBuilder(tmp_path).package()


@pytest.mark.parametrize("name", [".gitignore", ".synapseignore", ".rayignore"])
def test_ignore_file_that_cannot_be_read_is_a_config_error(unreadable_file, name):
    path = unreadable_file(name)
    with pytest.raises(ConfigError, match=r"cannot be read: Permission denied; it says which files .* change its perm"):
        names(path.parent)

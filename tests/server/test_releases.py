"""Uploads: hostile zip files, limits, and the hash of a plugin's content."""

from __future__ import annotations

import errno
import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from synapse_runtime.executors.ray.archive import PackageBuilder
from synapse_runtime.server import releases
from synapse_runtime.server.releases import BadArchive, Releases, Upload, unpack
from synapse_runtime.server.store import Store, StoreUnavailable
from tests.server.conftest import CONFIG, Client, plugin_zip, write_plugin, zipped


def named(name: str) -> bytes:
    return zipped({"config.yaml": CONFIG, name: "x"})


def special(mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("plugin/link")
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped({"a": "x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    return buffer.getvalue()


def bomb() -> bytes:
    """A file that says that it has 600 MB."""
    data = bytearray(zipped({"a": "x"}))
    start = data.index(b"PK\x01\x02") + 24
    data[start : start + 4] = (600_000_000).to_bytes(4, "little")
    return bytes(data)


def lying_bomb() -> bytes:
    """A file of 10 MB that says that it has 10 bytes."""
    data = bytearray(zipped({"a": bytes(10_000_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(signature) + offset
        data[start : start + 4] = (10).to_bytes(4, "little")
    return bytes(data)


def many() -> bytes:
    return zipped({f"{number}": "" for number in range(10_001)})


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (lambda: named("../evil.py"), "leaves the directory"),
    "inner parent": (lambda: named("plugin/../../evil.py"), "leaves the directory"),
    "absolute": (lambda: named("/tmp/evil.py"), "not a relative path"),
    "drive": (lambda: named("C:/evil.py"), "not a relative path"),
    "backslash": (lambda: named("..\\evil.py"), "not a relative path"),
    "empty part": (lambda: named("plugin//evil.py"), "empty parts"),
    "dot": (lambda: named("./evil.py"), "empty parts"),
    "long name": (lambda: named("a" * 300), "cannot be unpacked"),
    "file that is a directory": (lambda: zipped({"a": "x", "a/b": "y"}), "twice"),
    "symbolic link": (lambda: special(stat.S_IFLNK | 0o777), "link or a special file"),
    "device": (lambda: special(stat.S_IFCHR | 0o666), "link or a special file"),
    "encrypted": (encrypted, "encrypted"),
    "twice": (twice, "twice"),
    "bomb": (bomb, "more than 500 MB"),
    "lying bomb": (lying_bomb, "not a valid zip file"),
    "many files": (many, "more than 10,000"),
    "no zip file": (lambda: b"PK\x03\x04 nonsense", "not a valid zip file"),
    "empty": (lambda: b"", "not a valid zip file"),
    "cut": (lambda: plugin_zip()[:-40], "not a valid zip file"),
    "damaged": (lambda: plugin_zip().replace(b"PK\x03\x04", b"PK\x03\x05", 1), "not a valid zip file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, name: str) -> None:
    make, text = HOSTILE[name]
    (tmp_path / "files").mkdir()
    (tmp_path / "a.zip").write_bytes(make())
    with pytest.raises(BadArchive, match=text):
        unpack(tmp_path / "a.zip", tmp_path / "files")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "files"]


def test_refused_upload_leaves_nothing_behind(client: Client) -> None:
    before = client.json("/plugin_releases/")["count"]
    for archive in (named("../evil.py"), b"", zipped({"a.txt": "x"}), zipped({"config.yaml": "actions: ["})):
        answer = client.publish(archive, plugin="refused")
        assert answer.status_code == 400, answer.text
        assert "tmp" not in answer.json()["detail"]
    assert client.json("/plugin_releases/")["count"] == before
    assert client.get("/plugins/refused/").status_code == 404


def test_upload_needs_a_form_with_a_file(client: Client) -> None:
    assert client.post("/plugin_releases/", json={"plugin": "a", "version": "1"}).status_code == 400
    assert client.post("/plugin_releases/", data={"plugin": "a"}, files={}).status_code == 400
    assert client.post("/plugin_releases/", files={"file": ("a.zip", b"x")}).status_code == 422
    assert client.publish(plugin_zip(), config="{").status_code == 400
    other = client.publish(plugin_zip("other"), plugin="mismatch")
    assert other.status_code == 400
    assert "code is 'other'" in other.json()["detail"]


def test_upload_without_a_config_file_gets_the_one_that_was_sent(client: Client) -> None:
    config = '{"code": "sent", "name": "Sent", "actions": {"a": {"entrypoint": "main.run"}}}'
    main = "from synapse_runtime.decorators import action\n@action\ndef run(params, context):\n    return params\n"
    assert client.publish(zipped({"main.py": main}), plugin="sent", config=config).status_code == 201
    assert client.run("a", {"x": 1}, plugin="sent")["result"] == {"x": 1}


def test_large_bodies_are_refused(client: Client) -> None:
    big = b'{"action": "echo", "params": {"a": "' + b"x" * 10_000_000 + b'"}}'
    answer = client.post("/plugins/lab/run/", content=big)
    assert (answer.status_code, answer.json()["detail"]) == (413, "the body is larger than 10 MB")

    def pieces():  # type: ignore[no-untyped-def]
        for _ in range(120):
            yield b" " * 100_000

    assert client.post("/plugins/lab/run/", content=pieces()).status_code == 413


def test_upload_may_be_larger_than_other_bodies(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import os

    big = zipped({"config.yaml": CONFIG.replace("lab", "big"), "weights.bin": os.urandom(12_000_000)})
    assert client.publish(big, plugin="big").status_code == 201
    monkeypatch.setattr(releases, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(BadArchive, match="larger than"):
        releases._copy(io.BytesIO(big), tmp_path / "copy")


def test_full_disk_is_not_the_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.in_directory(tmp_path)
    known = Releases(store, tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "chmod", fail)
    upload = Upload("uploaded", "1.0.0", False, None, None, io.BytesIO(plugin_zip()))
    with pytest.raises(StoreUnavailable, match="No space left"):
        known.publish(upload)
    assert store.plugins() == []
    assert [*(tmp_path / "releases").iterdir()] == []
    store.close()


def test_content_of_a_directory_is_that_of_its_archive(tmp_path: Path) -> None:
    directory = write_plugin(tmp_path / "plugin")
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    (directory / ".gitignore").write_text("*.npz\n")
    (directory / "weights.npz").write_text("ignored")
    (tmp_path / "a.zip").write_bytes(PackageBuilder(directory).package().data)
    (tmp_path / "files").mkdir()
    store = Store.in_directory(tmp_path)
    known = Releases(store, tmp_path)
    content = known.content_of(directory)
    assert unpack(tmp_path / "a.zip", tmp_path / "files") == content
    assert (tmp_path / "files" / "run.sh").stat().st_mode & 0o111
    (directory / "weights.npz").write_text("changed")
    assert known.content_of(directory) == content
    (directory / "run.sh").chmod(0o644)
    assert known.content_of(directory) != content
    store.close()

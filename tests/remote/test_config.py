"""Where host, credentials and agent come from, and how the file with the login is read and written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from synapse_runtime.errors import ConfigError, CredentialsWarning, RemoteError
from synapse_runtime.executors.remote.config import (
    DEFAULT_HOST,
    LocalServer,
    Secret,
    Settings,
    config_file,
    local_servers,
    read_file,
    resolve_settings,
    update_file,
)


def write(home: Path, data: object, mode: int = 0o600) -> Path:
    path = home / ".synapse" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    path.chmod(mode)
    return path


IN_FILE = {
    "host": "https://file.example",
    "access_token": "syn_file",
    "tenant": "of-file",
    "agent": {"id": 3, "name": "lab"},
}


class TestOrder:
    def test_option_then_environment_then_file_for_each_value(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(write(home, IN_FILE))
        found = resolve_settings()
        assert (found.host, found.access_token, found.tenant, found.agent) == (
            "https://file.example",
            Secret("syn_file"),
            "of-file",
            "3",
        )
        assert set(found.sources.values()) == {path}
        monkeypatch.setenv("SYNAPSE_HOST", "https://env.example/api/")
        monkeypatch.setenv("SYNAPSE_AGENT_ID", "8")
        found = resolve_settings(token="syn_option", agent="gpu")
        assert (found.host, found.access_token, found.tenant, found.agent) == (
            "https://env.example/api",
            Secret("syn_option"),
            "of-file",
            "gpu",
        )
        assert found.sources == {"host": "SYNAPSE_HOST", "access_token": "option", "tenant": path, "agent": "option"}

    def test_user_token_wins_except_over_the_option(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(home, IN_FILE | {"user_token": "u"})
        monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "syn_env")
        found = resolve_settings()
        assert (found.user_token, found.access_token) == (Secret("u"), None)
        found = resolve_settings(token="syn_option")
        assert (found.user_token, found.access_token) == (None, Secret("syn_option"))

    def test_nothing_is_configured(self) -> None:
        found = resolve_settings()
        assert found == Settings(DEFAULT_HOST, sources={"host": "default"})
        with pytest.raises(RemoteError, match=r"no credentials for .*: run `synapse login`, or set SYN"):
            found.require_credentials()

    def test_default_host_gets_no_token_that_was_not_meant_for_it(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "syn_env")
        with pytest.raises(RemoteError, match=r"\(SYNAPSE_ACCESS_TOKEN\) is not sent to the default host"):
            resolve_settings().require_credentials()
        resolve_settings(host=DEFAULT_HOST).require_credentials()
        write(home, {"host": DEFAULT_HOST})
        resolve_settings().require_credentials()

    @pytest.mark.parametrize("host", ["ftp://x", "x", "https://", "https://u:p@x", "https://x/?a=1", "http://[::1"])
    def test_host_that_is_no_url(self, host: str) -> None:
        with pytest.raises(RemoteError) as caught:
            resolve_settings(host=host)
        assert "u:p" not in str(caught.value)

    @pytest.mark.parametrize("token", ["syn\r\nHost: evil", "two words", "größe"])
    def test_token_that_no_header_can_have_is_not_shown(self, token: str) -> None:
        with pytest.raises(RemoteError, match=r"the access token .option. contains") as caught:
            resolve_settings(token=token)
        assert token not in str(caught.value)


class TestFile:
    def test_unknown_keys_are_kept_and_only_the_owner_can_read_it(self, home: Path) -> None:
        path = write(home, IN_FILE | {"environments": {"dev": {}}}, 0o644)
        update_file({"access_token": "syn_new", "agent": None})
        assert json.loads(path.read_text()) == {
            "host": "https://file.example",
            "access_token": "syn_new",
            "tenant": "of-file",
            "environments": {"dev": {}},
        }
        assert path.stat().st_mode & 0o777 == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]

    def test_mode_is_never_widened(self, home: Path) -> None:
        path = write(home, {}, 0o400)
        update_file({"host": "https://h"})
        assert path.stat().st_mode & 0o777 == 0o400

    def test_it_is_created_for_its_owner_only(self, home: Path) -> None:
        before = os.umask(0)
        try:
            path = update_file({"host": "https://h"})
        finally:
            os.umask(before)
        assert path == config_file()
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    def test_link_is_kept(self, home: Path, tmp_path: Path) -> None:
        target = tmp_path / "dotfiles.json"
        target.write_text("{}")
        (home / ".synapse").mkdir()
        config_file().symlink_to(target)
        update_file({"host": "https://h"})
        assert config_file().is_symlink()
        assert json.loads(target.read_text()) == {"host": "https://h"}

    def test_failed_write_leaves_it_as_it_was(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(home, IN_FILE)
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
            update_file({"host": "https://h"})
        assert json.loads(path.read_text()) == IN_FILE
        assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]

    def test_file_that_others_can_write_is_ignored_with_a_warning(self, home: Path) -> None:
        write(home, IN_FILE, 0o602)
        with pytest.warns(CredentialsWarning, match=r"config.json: ignored: can be written by others; run `chmod o-w`"):
            assert resolve_settings().host == DEFAULT_HOST
        with pytest.raises(ConfigError, match="can be written by others"):
            update_file({})

    def test_file_in_a_directory_that_others_can_write(self, home: Path) -> None:
        write(home, IN_FILE).parent.chmod(0o777)
        problems: list[str] = []
        assert resolve_settings(on_problem=problems.append).access_token is None
        assert "its directory can be written by others" in problems[0]

    def test_file_of_another_user(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(home, IN_FILE)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        if config_file().stat().st_uid == 0:  # root may write for users
            os.chown(config_file(), 4321, -1)
        problems: list[str] = []
        assert resolve_settings(on_problem=problems.append).access_token is None
        assert "belongs to another user" in problems[0]

    def test_pipe_does_not_block(self, home: Path) -> None:
        (home / ".synapse").mkdir()
        os.mkfifo(config_file(), 0o600)
        with pytest.raises(ConfigError, match="not a regular file"):
            read_file()

    @pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '"x"'])
    def test_file_that_is_no_object_is_an_error_that_names_it(self, home: Path, text: str) -> None:
        write(home, text)
        with pytest.raises(ConfigError, match=r"config.json: (not JSON|expected a JSON object)"):
            resolve_settings()

    def test_values_of_other_types_are_ignored(self, home: Path) -> None:
        write(home, {"host": ["https://h"], "access_token": None, "agent": {"name": "no id"}, "tenant": ""})
        assert resolve_settings() == Settings(DEFAULT_HOST, sources={"host": "default"})


class TestLocalServers:
    def register(self, home: Path, name: str, data: object, mode: int = 0o600) -> Path:
        path = home / "state" / "synapse" / "servers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
        path.chmod(mode)
        return path

    def test_own_running_ones_are_found_newest_first(self, home: Path) -> None:
        data = {"host": "http://127.0.0.1:1", "token": "syn_a", "pid": os.getpid()}
        os.utime(self.register(home, "a.json", data), (1, 1))
        self.register(home, "b.json", data | {"host": "http://127.0.0.1:2"})
        self.register(home, "dead.json", data | {"pid": 2**22 + 1})
        self.register(home, "open.json", data, 0o644)
        self.register(home, "broken.json", {"host": 1})
        (home / "state" / "synapse" / "servers" / "link.json").symlink_to("a.json")
        assert local_servers() == [
            LocalServer("http://127.0.0.1:2", Secret("syn_a"), os.getpid()),
            LocalServer("http://127.0.0.1:1", Secret("syn_a"), os.getpid()),
        ]

    def test_there_may_be_none(self) -> None:
        assert local_servers() == []

"""`synapse doctor`: its findings as text, as a table and as JSON. For running clusters see test_cluster.py."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synapse_runtime import __version__
from synapse_runtime.cli.doctor import cluster_checks, local_checks
from synapse_runtime.cli.doctor.checks import CHECKS, run_check
from synapse_runtime.cli.doctor.findings import Check, Finding, ok, without_secrets
from synapse_runtime.errors import ClusterError
from tests.cli.processes import SCRIPT, Finished, Synapse, status_of, synapse_in
from tests.patience import patience
from tests.ray.clusters import ROOT

GIBBERISH = "qx7-w9z-k3v"


WITHOUT_SITE = [sys.executable, "-S", "-m", "synapse_runtime"]


def packages_without(directory: Path, *names: str) -> dict[str, str]:
    """Return environment variables that give a Python started with `-S` all packages except those named."""
    for entry in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for package in entry.iterdir():
            if not package.name.startswith((*names, "__pycache__")):
                (directory / package.name).symlink_to(package)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)])}


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove environment variables that would change the findings."""
    for name in os.environ:
        if name.startswith(("RAY_", "SYNAPSE_", "PYTEST_", "PYTHON", "COV")):
            monkeypatch.delenv(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def package(directory: Path, name: str, version: str) -> None:
    """Write the metadata of an installed package, found once the directory is on `sys.path`."""
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def command_at(directory: Path, text: str) -> str:
    """Write a `synapse` script to a directory, and return a PATH that starts with that directory."""
    directory.mkdir()
    script = directory / "synapse"
    script.write_text(text)
    script.chmod(0o755)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"


def finding(check: Check, what: str, state: str | None = None) -> Finding:
    """Return the only finding of a check with this name, and with this state if one is given."""
    found = [one for one in check() if one.what == what and state in (None, one.state)]
    assert len(found) == 1, found
    return found[0]


def found_in(done: Finished, what: str) -> dict[str, Any]:
    """Return the only finding with this name in the output of `synapse doctor --json`."""
    (found,) = [one for one in done.result["findings"] if one["what"] == what]
    return found


class TestCommand:
    def test_prints_plain_lines_by_topic_and_exits_with_0_without_problems(self, synapse: Synapse) -> None:
        done = synapse("doctor", PATH=f"{Path(SCRIPT).parent}{os.pathsep}{os.environ['PATH']}")
        assert (done.status, done.stderr) == (0, ""), done.stdout
        lines = done.stdout.splitlines()
        assert [line for line in lines[:-1] if not line.startswith(" ")] == [*CHECKS]
        assert f"  ok       pytest-synapse-harness: {__version__}" in lines
        assert f"  ok       synapse: {SCRIPT}" in lines
        assert "  ok       cluster: ephemeral, started when first needed" in lines
        assert (
            f"  ok       plugin: demo, {synapse.cwd}/config.yaml; actions: train, infer, fail, whisper," in done.stdout
        )
        assert "\n  problem  " not in done.stdout

    def test_prints_a_table_on_a_terminal(self, synapse: Synapse) -> None:
        with synapse.on_terminal(command=("doctor",), RAY_ADDRESS="127.0.0.1:1") as child:
            child.expect("Installed")
            child.expect("✓.*pytest-synapse-harness.*" + __version__)
            child.expect("✗.*cluster .*no cluster answers at 127.0.0.1:1")
            child.expect("→ set RAY_ADDRESS to a reachable cluster, or unset it")
            child.expect("1 problem")
            assert status_of(child) == 1

    def test_prints_each_finding_as_json(self, synapse: Synapse) -> None:
        done = synapse("doctor", "--json", SYNAPSE_MODE="clown")
        assert done.status == 1
        assert all([*one] == ["topic", "state", "what", "text", "fix"] for one in done.result["findings"])
        assert {one["topic"] for one in done.result["findings"]} == {*CHECKS}
        (wrong,) = [one for one in done.result["findings"] if one["state"] == "problem"]
        assert (wrong["what"], wrong["fix"]) == ("SYNAPSE_MODE", "choose from local, task, job, remote, all")

    def test_alias_of_a_mode_is_not_a_problem(self, synapse: Synapse) -> None:
        done = synapse("doctor", "--json", SYNAPSE_MODE="local, jobs-api")
        assert [one["what"] for one in done.result["findings"] if one["state"] == "problem"] == []

    def test_works_without_ray_and_names_what_requires_it(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse("doctor", "--json", command=WITHOUT_SITE, **packages_without(tmp_path, "ray", "pytest_cov"))
        assert (done.status, done.stderr) == (0, "")
        assert found_in(done, "ray") == {
            "topic": "Installed",
            "state": "ok",
            "what": "ray",
            "text": "not installed; required for task and job mode: pip install 'pytest-synapse-harness[ray]'",
            "fix": "",
        }
        assert "pytest-synapse-harness[cov]" in found_in(done, "pytest-cov")["text"]
        assert found_in(done, "task and job mode")["state"] == "warning"
        assert found_in(done, "task and job mode")["fix"] == "pip install 'pytest-synapse-harness[ray]'"
        assert found_in(done, "plugin")["text"].startswith("demo, ")

    def test_missing_dependency_of_the_command_is_a_one_line_error(self, synapse: Synapse, tmp_path: Path) -> None:
        done = synapse("doctor", command=WITHOUT_SITE, **packages_without(tmp_path, "typer", "pydantic"))
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.startswith("error: the command cannot start: No module named 'typer'; reinstall ")

    def test_unresponsive_cluster_times_out(self, synapse: Synapse, silent: str) -> None:
        done = synapse("doctor", "--json", RAY_ADDRESS=silent)
        assert done.status == 1
        assert done.seconds < patience(60)  # without a time limit, it would take minutes
        (wrong,) = [one for one in done.result["findings"] if one["state"] == "problem"]
        assert (wrong["what"], wrong["text"]) == ("cluster", "no answer within 6 s")

    def test_warns_of_unknown_fields_in_the_plugins_config_file(self, synapse: Synapse, tmp_path: Path) -> None:
        config = tmp_path / "config.yaml"
        config.write_text("code: demo\nactions:\n  train:\n    entrypont: plugin.train:Train\n")
        done = synapse("doctor", "--json", cwd=tmp_path)
        of_plugin = [(one["state"], one["text"]) for one in done.result["findings"] if one["what"] == "plugin"]
        assert of_plugin == [
            ("ok", f"demo, {config}; actions: train"),
            ("warning", f"{config}:4: unknown field 'entrypont' in actions.train; did you mean 'entrypoint'?"),
        ]

    def test_shows_no_secrets_of_environment_or_config_file(self, synapse: Synapse, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(f"code: demo\nenv:\n  PASSWORD: {GIBBERISH}\n  B: [x]\nactions: 5\n")
        names = ("RAY_AUTH_TOKEN", "API_KEY", "PYTHONPATH", "PYTEST_ADDOPTS", "SYNAPSE_MODE", "COVERAGE_FILE")
        variables = dict.fromkeys(names, GIBBERISH) | {"RAY_ADDRESS": f"http://me:{GIBBERISH}@127.0.0.1:1"}
        done = synapse("doctor", cwd=tmp_path, command=[SCRIPT], **variables)
        assert done.status == 1
        assert f"{tmp_path / 'config.yaml'}:5: actions: " in done.stdout
        assert "http://…@127.0.0.1:1" in done.stdout
        assert GIBBERISH not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


class TestEachCheck:
    def test_that_fails_keeps_earlier_findings(self) -> None:
        def breaks() -> Iterator[Finding]:
            yield ok("first", "there")
            raise RuntimeError("cable cut")

        before, after = run_check("cables", breaks)
        assert before == ok("first", "there")
        assert (after.state, after.what, after.text) == (
            "problem",
            "cables",
            "this check failed: RuntimeError: cable cut",
        )

    def test_that_raises_a_plugin_error_reports_its_message(self) -> None:
        def refuses() -> Iterator[Finding]:
            raise ClusterError("delete it")
            yield

        assert [(one.state, one.text) for one in run_check("state", refuses)] == [("problem", "delete it")]

    def test_that_raises_system_exit_is_a_problem(self) -> None:
        def ends() -> Iterator[Finding]:
            sys.exit("no more")
            yield

        assert [one.text for one in run_check("end", ends)] == ["this check failed: SystemExit: no more"]

    def test_that_hangs_times_out(self) -> None:
        def hangs() -> Iterator[Finding]:
            yield ok("first", "there")
            time.sleep(5)

        began = time.monotonic()
        found = run_check("disk", hangs, limit=0.1)
        assert [one.text for one in found] == ["there", "no answer within 0.1 s"]
        assert time.monotonic() - began < patience(2)

    def test_secrets_are_replaced_by_their_names(self) -> None:
        variables = {"MY_TOKEN": "abcdefgh", "THE_SECRET": "abcdefghij", "SHORT_KEY": "us", "TOKEN_PATH": "/some/file"}
        text = without_secrets("abcdefghij, abcdefgh, us, /some/file", variables)
        assert text == "<THE_SECRET>, <MY_TOKEN>, us, /some/file"


class TestPackages:
    @pytest.fixture
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A directory at the start of `sys.path`."""
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    def test_too_old_is_a_problem_with_a_fix(self, elsewhere: Path) -> None:
        package(elsewhere, "pytest", "7.4.0")
        found = finding(local_checks.packages, "pytest")
        assert (found.state, found.text) == ("problem", "7.4.0, but >=8.2 is required")
        assert found.fix == "pip install 'pytest>=8.2'"

    def test_missing_dependency_of_an_extra_is_a_problem(self, elsewhere: Path) -> None:
        package(elsewhere, "ray", "2.60.0")
        with (elsewhere / "ray-2.60.0.dist-info" / "METADATA").open("a") as metadata:
            metadata.write('Provides-Extra: default\nRequires-Dist: no-such-package>=1; extra == "default"\n')
        found = finding(local_checks.packages, "ray")
        assert (found.state, found.text) == (
            "problem",
            "2.60.0, but no-such-package is not installed; required for task and job mode",
        )
        assert found.fix == "pip install 'pytest-synapse-harness[ray]'"

    def test_missing_dependency_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = local_checks._version
        monkeypatch.setattr(local_checks, "_version", lambda name: None if name == "typer" else real(name))
        found = finding(local_checks.packages, "typer")
        assert (found.state, found.text, found.fix[:20]) == ("problem", "not installed", "pip install 'typer>=")

    def test_this_package_must_be_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local_checks, "DISTRIBUTION", "pytest-synapse-not-installed")
        found = finding(local_checks.packages, "pytest-synapse-not-installed")
        assert (found.state, found.fix) == ("problem", f"pip install -e {ROOT}")

    def test_sdk_version_is_shown(self, elsewhere: Path) -> None:
        package(elsewhere, "synapse_sdk", "2026.2.17")
        assert finding(local_checks.packages, "synapse-sdk").text.startswith("2026.2.17; ")

    def test_ray_that_cannot_be_imported_is_a_problem(self, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (elsewhere / "ray.py").write_text("raise ImportError('libfoo.so is missing')\n")
        monkeypatch.delitem(sys.modules, "ray", raising=False)
        found = finding(cluster_checks.ray, "task and job mode")
        assert (found.state, found.text) == ("problem", "Ray cannot be imported: libfoo.so is missing")


class TestCommandOnPath:
    @pytest.mark.parametrize(
        ("script", "text"),
        [
            ("#!/usr/bin/python3\nfrom synapse_sdk.cli import cli\n", "belongs to synapse-sdk"),
            ("#!/bin/sh\necho synapse\n", "belongs to another program"),
            (
                "#!/opt/py/bin/python\nfrom synapse_runtime.cli import main\n",
                "belongs to another Python, in /opt/py/bin",
            ),
        ],
    )
    def test_of_another_package_or_python_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
    ) -> None:
        monkeypatch.setenv("PATH", command_at(tmp_path / "bin", script))
        found = finding(local_checks.command, "synapse")
        assert (found.state, found.text) == ("warning", f"{tmp_path}/bin/synapse {text}")
        assert found.fix == "use `python -m synapse_runtime` instead"

    @pytest.mark.parametrize("first", ["#!{}\n", "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n"])
    def test_of_this_package_is_ok_even_with_a_python_path_too_long_for_a_shebang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
    ) -> None:
        script = first.format(sys.executable) + "from synapse_runtime.cli import main\n"
        monkeypatch.setenv("PATH", command_at(tmp_path / "bin", script))
        assert finding(local_checks.command, "synapse") == ok("synapse", f"{tmp_path}/bin/synapse")

    def test_missing_is_a_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert finding(local_checks.command, "synapse").text == "no such command on the PATH"


class TestPlugin:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_is_found_in_a_parent_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "config.yaml").write_text("code: demo\nactions:\n  train: plugin.train:Train\n")
        (tmp_path / "tests").mkdir()
        monkeypatch.chdir(tmp_path / "tests")
        assert finding(local_checks.plugin, "plugin") == ok("plugin", f"demo, {tmp_path}/config.yaml; actions: train")

    def test_missing_is_ok(self) -> None:
        found = finding(local_checks.plugin, "plugin")
        assert (found.state, found.text[:9]) == ("ok", "none here")

    def test_without_actions_is_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("code: demo\n")
        assert finding(local_checks.plugin, "plugin", "warning").fix == "define them under `actions:` in config.yaml"

    def test_unreadable_config_is_a_problem_with_file_and_line(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("code: demo\nactions: [unclosed\n")
        found = finding(local_checks.plugin, "plugin")
        assert found.state == "problem"
        assert found.text.startswith(f"{tmp_path}/config.yaml:3: invalid YAML")


@pytest.mark.usefixtures("no_settings")
class TestVariables:
    def test_are_listed_with_their_meaning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {
            "RAY_ADDRESS": "a:1",
            "RAY_B": "1",
            "COVERAGE_FILE": "f",
            "SYNAPSE_MODE": "task",
            "PYTHONPATH": "/x",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        meanings = {one.what: one.text for one in local_checks.variables()}
        assert meanings.keys() >= settings.keys()
        assert meanings["SYNAPSE_MODE"] == "set: default mode of tests"
        assert meanings["RAY_ADDRESS"] != meanings["RAY_B"]

    def test_empty_ones_are_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNAPSE_MODE", "")
        assert "SYNAPSE_MODE" not in [one.what for one in local_checks.variables()]

    @pytest.mark.parametrize("modes", ["local", "task,job", "all", "local, task"])
    def test_synapse_mode_may_name_modes(self, monkeypatch: pytest.MonkeyPatch, modes: str) -> None:
        monkeypatch.setenv("SYNAPSE_MODE", modes)
        assert finding(local_checks.variables, "SYNAPSE_MODE").state == "ok"

    @pytest.mark.parametrize(
        ("name", "value", "fix"),
        [
            ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1", "pytest -p pytest_synapse.plugin"),
            ("PYTEST_ADDOPTS", "-q -p no:synapse", "remove `-p no:synapse`"),
            ("PYTHONBREAKPOINT", "0", "unset PYTHONBREAKPOINT"),
        ],
    )
    def test_that_disable_features_are_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fix: str
    ) -> None:
        monkeypatch.setenv(name, value)
        assert finding(local_checks.variables, name, "warning").fix == fix


@pytest.mark.usefixtures("no_settings")
class TestToken:
    def test_required_but_missing_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/nonexistent")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert [*cluster_checks._token()] == []  # clusters started by synapse have their own
        monkeypatch.setenv("RAY_ADDRESS", "host:6379")
        assert finding(cluster_checks._token, "token").state == "problem"
        monkeypatch.setenv("RAY_AUTH_TOKEN", GIBBERISH)
        assert finding(cluster_checks._token, "token") == ok("token", "from RAY_AUTH_TOKEN")

    def test_ignored_by_ray_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", GIBBERISH)
        found = finding(cluster_checks._token, "token")
        assert (found.state, found.fix) == ("warning", "set RAY_AUTH_MODE=token")

    def test_missing_file_is_a_problem(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        assert finding(cluster_checks._token, "token").text == "RAY_AUTH_TOKEN_PATH does not point to a file"
        (tmp_path / "token").write_text(GIBBERISH)
        assert finding(cluster_checks._token, "token") == ok("token", "from RAY_AUTH_TOKEN_PATH")


class TestProxy:
    @pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "ray.example.com:6379"])
    def test_without_use_is_not_shown(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert [*cluster_checks._proxy(address)] == []

    def test_for_a_dashboard_must_be_reachable(self, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
        def check() -> Iterator[Finding]:
            return cluster_checks._proxy("http://ray.example.com:8265")

        monkeypatch.setenv("http_proxy", f"http://user:word@{silent}")
        assert finding(check, "proxy") == ok("proxy", f"requests to the cluster are sent through {silent} (http_proxy)")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        found = finding(check, "proxy", "problem")
        assert found.text.startswith("nothing answers at 127.0.0.1:9 (http_proxy)")
        assert found.fix == "unset http_proxy, or add the cluster's host name to no_proxy"


class TestMachine:
    def test_resources_are_listed(self) -> None:
        listed = [one.what for one in local_checks.machine()]
        assert listed[:2] == ["CPUs", "memory"]
        assert "temporary files" in listed

    def test_little_memory_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local_checks, "_free_memory", lambda: 900_000_000)
        found = finding(local_checks.machine, "memory")
        assert (found.state, found.text) == ("warning", "0.9 GB free; a cluster and a worker need about 2 GB")

    def test_free_memory_respects_the_container_limit(self, tmp_path: Path) -> None:
        machine = tmp_path / "meminfo"
        assert local_checks._free_memory(machine, tmp_path) is None
        machine.write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
        assert local_checks._free_memory(machine, tmp_path) == 8000 * 1024
        for name, text in {"max": "5000000", "current": "4000000", "stat": "file 9\ninactive_file 500\n"}.items():
            (tmp_path / f"memory.{name}").write_text(text)
        assert local_checks._free_memory(machine, tmp_path) == 1_000_500
        (tmp_path / "memory.max").write_text("max\n")
        assert local_checks._free_memory(machine, tmp_path) == 8000 * 1024

    def test_little_shared_memory_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = SimpleNamespace(free=64 * 2**20, used=0)
        monkeypatch.setattr(shutil, "disk_usage", _of({"/dev/shm": small}, shutil.disk_usage))
        found = finding(local_checks.machine, "/dev/shm")
        assert (found.state, found.fix) == ("warning", "use docker run --shm-size=2g, or free up space")

    def test_nearly_full_disk_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        full = SimpleNamespace(free=10**9, used=99 * 10**9)
        monkeypatch.setattr(shutil, "disk_usage", _of({"/dev/shm": SimpleNamespace(free=10**9)}, lambda _: full))
        found = finding(local_checks.machine, "temporary files")
        assert found.state == "warning"
        assert "1.0 GB free: Ray stores no objects on a disk that is this full" in found.text

    @pytest.mark.parametrize(
        ("root", "text"),
        [("/a-directory/with-a-long/name", "allow at most 24"), ("/none/such", "is not writable")],
    )
    def test_unusable_temporary_directory_is_a_problem(
        self, monkeypatch: pytest.MonkeyPatch, root: str, text: str
    ) -> None:
        monkeypatch.setattr(
            "synapse_runtime.executors.ray.cluster.session_scope.new_directory", lambda: f"{root}/synapse-12345678"
        )
        found = finding(local_checks.machine, "temporary files")
        assert (found.state, found.fix[:11]) == ("problem", "set TMPDIR ")
        assert text in found.text

    def test_leftover_directory_of_a_cluster_is_a_warning(self, synapse: Synapse) -> None:
        for name in ("synapse-deadbeef", "synapse-plugin-x", "synapse-mine0000"):
            (synapse.temp / name).mkdir(mode=0o700)
        done = synapse("doctor", "--json")
        mine = [one for one in done.result["findings"] if one["fix"].startswith(f"rm -rf {synapse.temp}")]
        assert [one["fix"] for one in mine] == [f"rm -rf {synapse.temp / 'synapse-deadbeef'}"]
        assert (mine[0]["state"], done.status) == ("warning", 0)


def _of(known: dict[str, Any], other: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda path: known.get(path) or other(path)


def test_works_without_a_plugin_and_without_a_readable_home(tmp_path: Path) -> None:
    with synapse_in(tmp_path) as synapse:
        done = synapse("doctor", "--json", HOME="/nonexistent", XDG_STATE_HOME="/nonexistent")
    assert (done.status, done.stderr) == (0, "")
    assert found_in(done, "plugin")["text"].startswith("none here")

"""The commands that talk to a backend: `login`, `agent`, `plugin run --mode remote`, `plugin publish`, `job`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.core.execution import ActionRun, failure
from synapse_runtime.events import Event
from synapse_runtime.executors.remote.embedded_server import serve_embedded
from synapse_runtime.executors.remote.publish import config_of
from synapse_runtime.plugins.manifest import parse_manifest_leniently
from tests.cli.conftest import write_plugin
from tests.cli.processes import Synapse, interrupt, status_of, synapse_in
from tests.patience import patience, within
from tests.remote.stub import TOKEN, Job, PlainBackend, RuntimeBackend
from tests.server import conftest as lab_plugin

REMOTE = ("--mode", "remote")


@pytest.fixture(scope="module")
def plugin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plugin")
    write_plugin(root)
    return root


@pytest.fixture
def synapse(plugin_dir: Path, home: Path) -> Iterator[Synapse]:
    """The command in the plugin's directory, with a home directory of its own and no login."""
    with synapse_in(plugin_dir, HOME=str(home), XDG_STATE_HOME=str(home / "state")) as command:
        yield command


@pytest.fixture
def logged_in(synapse: Synapse, backend: PlainBackend) -> Synapse:
    """The command, with a login at the backend."""
    return log_in(synapse, backend)


def log_in(synapse: Synapse, backend: PlainBackend) -> Synapse:
    login = Path(synapse.env["HOME"]) / ".synapse" / "config.json"
    login.parent.mkdir()
    login.write_text(json.dumps({"host": backend.url, "access_token": TOKEN, "environments": {}}))
    login.chmod(0o600)
    return synapse


def stored(synapse: Synapse) -> dict[str, object]:
    path = Path(synapse.env["HOME"]) / ".synapse" / "config.json"
    found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return found


class TestLogin:
    def test_token_is_checked_and_stored(self, synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        done = synapse("login", "--host", f"{plain.url}/", "--token-file", str(tmp_path / "token"))
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0].startswith(f"Logged in to {plain.url}; saved in ")
        assert done.stdout.splitlines()[1] == "Connected agents: lab"
        assert stored(synapse) == {"host": plain.url, "access_token": TOKEN}
        done = synapse("whoami", "--json")
        assert done.result | {"host_from": "", "token_from": ""} == {
            "host": plain.url,
            "host_from": "",
            "token": "access token",
            "token_from": "",
            "tenant": None,
            "agent": None,
            "runtime": False,
        }
        assert TOKEN not in synapse("whoami").stdout

    def test_wrong_token_is_not_stored(self, synapse: Synapse, plain: PlainBackend) -> None:
        done = synapse("login", "--host", plain.url, "--token", "syn_wrong")
        assert (done.status, done.stdout) == (3, "")
        assert "does not accept the credentials (401): Invalid token." in done.stderr
        assert "syn_wrong" not in done.stderr
        assert stored(synapse) == {}

    def test_prompts_for_what_is_missing(self, synapse: Synapse, plain: PlainBackend) -> None:
        with synapse.on_terminal(command=("login",)) as child:
            child.expect(r"Host \[https://api.synapse.sh\]: ")
            child.sendline(plain.url)
            child.expect("Access token: ")
            child.sendline(TOKEN)
            child.expect("Logged in to")
            assert TOKEN not in child.before
            assert status_of(child) == 0
        assert stored(synapse)["access_token"] == TOKEN

    def test_nothing_is_prompted_for_without_a_terminal(self, synapse: Synapse) -> None:
        done = synapse("login")
        assert done.status == 2
        assert "--host" in done.stderr

    def test_local_server_is_found(self, synapse: Synapse, plain: PlainBackend) -> None:
        done = synapse("login", "--local")
        assert done.status == 3
        assert "no server of this user is running on this machine" in done.stderr
        servers = Path(synapse.env["XDG_STATE_HOME"]) / "synapse" / "servers"
        servers.mkdir(parents=True)
        (servers / "a.json").write_text(json.dumps({"host": plain.url, "token": TOKEN, "pid": os.getpid()}))
        (servers / "a.json").chmod(0o600)
        assert synapse("login", "--local", "--json").result["agents"] == ["lab"]
        assert stored(synapse)["host"] == plain.url
        assert synapse("login", "--local", "--host", plain.url).status == 0
        done = synapse("login", "--local", "--host", "http://127.0.0.1:1")
        assert done.stderr == (
            f"error: no server of this user is running at http://127.0.0.1:1; running are {plain.url}\n"
        )

    def test_logout_keeps_the_host_and_what_is_unknown(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)
        assert synapse("logout").stdout.endswith("config.json: access_token.\n")
        assert stored(synapse) == {"host": plain.url, "environments": {}}
        assert synapse("logout", "--json").result == {"removed": []}
        done = synapse("whoami")
        assert done.status == 3
        assert "run `synapse login`" in done.stderr

    def test_file_that_others_can_write_is_ignored_with_a_note(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)
        (Path(synapse.env["HOME"]) / ".synapse" / "config.json").chmod(0o666)
        done = synapse("whoami")
        assert done.status == 3
        assert "config.json: ignored: can be written by others" in done.stderr
        assert plain.requests == []


class TestAgent:
    def test_select_show_list_clear(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)
        plain.agents = [
            {"id": 1, "name": "old", "status": "disconnected"},
            {"id": 9, "name": "lab", "status": "connected", "url": "http://lab", "token": "0" * 40},
        ]
        assert "several" not in synapse("agent", "select").stdout
        assert stored(synapse)["agent"] == {"id": 9, "name": "lab", "url": "http://lab", "token": "0" * 40}
        assert synapse("agent", "show", "--json").result == {"id": 9, "name": "lab", "url": "http://lab"}
        done = synapse("agent", "list")
        assert done.stdout.splitlines()[2].split() == ["*", "9", "lab", "connected", "http://lab"]
        assert "0" * 40 not in done.stdout + synapse("agent", "list", "--json").stdout
        done = synapse("agent", "select", "old")
        assert "old is not connected now" in done.stderr
        assert synapse("agent", "clear", "-y").status == 0
        assert "agent" not in stored(synapse)
        assert synapse("agent", "show").status == 3
        assert "Did you mean 'lab'?" in synapse("agent", "select", "labb").stderr

    def test_selected_one_runs_jobs(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)
        plain.agents = [{"id": n, "name": f"a{n}", "status": "connected"} for n in (1, 2)]
        done = synapse.run("train", *REMOTE)
        assert done.status == 3
        assert "several agents are connected" in done.stderr
        synapse("agent", "select", "a2")
        assert synapse.run("train", *REMOTE).status == 0
        assert synapse.run("train", *REMOTE, "--agent", "1").status == 0
        assert [job.request["agent"] for job in plain.jobs.values()] == [2, 1]


class TestRun:
    def test_result_and_output_are_shown(self, logged_in: Synapse, backend: PlainBackend) -> None:
        done = logged_in.run("train", *REMOTE, "--param", "epochs=3")
        assert done.status == 0, done.stderr
        assert done.stdout.startswith("one\ntwo\nthree\nResult of train (remote, ")
        assert done.shown_result == {"status": "done"}
        job = backend.only_job()
        assert f"job {job.id} on {backend.url}: demo" in done.stderr
        assert job.request["params"] == {"epochs": 3}
        assert job.request.get("debug", True) is True

    def test_json_is_alone_on_standard_output(self, logged_in: Synapse) -> None:
        done = logged_in.run("train", *REMOTE, "--json")
        assert (done.status, done.result) == (0, {"status": "done"})
        record = logged_in.run("train", *REMOTE, "--json", "--full").result
        assert (record["mode"], record["status"]) == ("remote", "succeeded")

    def test_failure_has_the_exit_status_of_a_failed_action(self, logged_in: Synapse, backend: PlainBackend) -> None:
        def fail(job: Job) -> None:
            job.set(status="RUNNING")
            run = ActionRun("train", error=failure("train", ValueError("no weights")), is_started=True)
            job.end("FAILED", run=run, result={"error": "ValueError: no weights"})

        backend.script = fail
        done = logged_in.run("train", *REMOTE, "--no-debug")
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == "error: train failed: ValueError: no weights"

    def test_events_are_shown_as_they_come(self, synapse: Synapse, runtime: RuntimeBackend) -> None:
        log_in(synapse, runtime)

        def talk(job: Job) -> None:
            job.set(status="RUNNING")
            job.emit(Event("progress", data={"current": 1, "total": 4}, step="train"))
            job.end(run=ActionRun("train", result=1, is_started=True))

        runtime.script = talk
        assert "train: 1/4 (25%)" in synapse.run("train", *REMOTE).stdout

    def test_detached_job_is_fetched_by_the_suggested_command(self, logged_in: Synapse, backend: PlainBackend) -> None:
        done = logged_in.run("train", *REMOTE, "--detach")
        job_id = backend.only_job().id
        assert (done.status, done.stdout) == (0, f"{job_id}\n")
        assert done.stderr.endswith(f"to get its result: synapse job result {job_id}\n")
        assert logged_in.job("result", job_id, "--json").result == {"status": "done"}

    def test_plugin_that_only_the_backend_has(self, synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
        log_in(synapse, plain)
        done = synapse.run("train", *REMOTE, "--plugin", "digits", "--version", "1.2.0", cwd=tmp_path)
        assert done.status == 0, done.stderr
        assert plain.only_job().request["version"] == "1.2.0"
        assert plain.of("POST", "/run/")[0].path == "/plugins/digits/run/"
        done = synapse.run("train", *REMOTE, "--plugin", "unknown", cwd=tmp_path)
        assert done.status == 3
        assert "no plugin unknown" in done.stderr

    def test_inference_has_input_and_path(self, synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
        log_in(synapse, plain)
        plain.answers = [{"label": 3}]
        line = ("infer", *REMOTE, "-p", "digits", "--input", '{"a": 1}', "--infer-path", "/p", "--json")
        assert synapse.run(*line, cwd=tmp_path).result == {"label": 3}
        request = plain.of("POST", "/run/")[0].json
        assert (request["action"], request["params"]) == ("inference", {"input": {"a": 1}, "path": "/p"})

    def test_inference_without_input_has_the_path(self, synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
        log_in(synapse, plain)
        plain.answers = [{"label": 3}]
        line = ("infer", *REMOTE, "-p", "digits", "--infer-path", "/p", "--param", "top=2", "--json")
        assert synapse.run(*line, cwd=tmp_path).result == {"label": 3}
        assert plain.of("POST", "/run/")[0].json["params"] == {"path": "/p", "top": 2}

    def test_name_of_the_platform_is_that_of_the_config_file(
        self, synapse: Synapse, plain: PlainBackend, tmp_path: Path
    ) -> None:
        log_in(synapse, plain)
        (tmp_path / "config.yaml").write_text("code: digits\nactions: {inference: 'acts:infer'}\n")
        (tmp_path / "acts.py").write_text(
            "from synapse_runtime.decorators import action\n\n@action\ndef infer(params, context):\n    pass\n"
        )
        plain.answers = [{"label": 3}]
        assert synapse.run("infer", *REMOTE, "--input", "1", "--json", cwd=tmp_path).result == {"label": 3}
        done = synapse.run("infer", "--mode", "local", "--input", "1", cwd=tmp_path)
        assert (done.status, "Did you mean 'inference'?" in done.stderr) == (2, True)

    def test_inference_on_a_server_of_ours(self, synapse: Synapse, home: Path, tmp_path: Path) -> None:
        lab = lab_plugin.write_plugin(tmp_path / "lab")
        platforms = ("--params", '{"model": 1, "method": "post", "json": {"input": {"a": 1}, "path": "/p"}}')
        with serve_embedded([lab]) as server:
            host = ("--host", server.host, "--token", server.token)
            for line in (
                ("--path", str(lab), "--input", '{"a": 1}', "--infer-path", "/p"),
                ("-p", "lab", "--input", '{"a": 1}', "--infer-path", "/p"),
                ("-p", "lab", "--param", 'input={"a": 1}', "--infer-path", "/p"),
                ("-p", "lab", *platforms),
            ):
                done = synapse.run("infer", *REMOTE, *host, *line, "--json", cwd=home)
                assert (done.status, done.stdout) == (0, '{"answer":{"a":1},"path":"/p"}\n'), done.stderr

    def test_detached_job_of_a_server_of_ours(self, synapse: Synapse, home: Path, tmp_path: Path) -> None:
        """`synapse job` asks the backend, not a cluster, since the job's id is one of a backend."""
        with serve_embedded([]) as server:
            synapse.env |= {"SYNAPSE_HOST": server.host, "SYNAPSE_ACCESS_TOKEN": server.token}
            job_id = synapse.run("train", *REMOTE, "--detach").stdout.strip()
            assert synapse.job("result", job_id, "--json").result == {"epochs": 2, "batch_size": 16}
            assert synapse.job("status", job_id).stdout == "SUCCEEDED\n"

    def test_token_option_and_file(self, synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(TOKEN)
        host = ("--host", plain.url)
        assert synapse.run("train", *REMOTE, *host, "--token-file", str(tmp_path / "token")).status == 0
        assert synapse.run("train", *REMOTE, *host, "--token", TOKEN).status == 0
        done = synapse.run("train", *REMOTE, *host, "--token-file", "/nope")
        assert done.status == 2
        assert "cannot read '/nope': No such file or directory" in done.stderr

    def test_what_cannot_be_sent_exits_with_2(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)
        done = synapse.run("train", *REMOTE, "--timeout", "5")
        assert (done.status, done.stdout) == (2, "")
        assert "train has a timeout, which" in done.stderr
        done = synapse.run("trian", *REMOTE)
        assert done.status == 2
        assert "Did you mean 'train'" in done.stderr

    def test_nothing_is_prompted_or_sent_without_a_login(self, synapse: Synapse) -> None:
        done = synapse.run("train", *REMOTE)
        assert (done.status, done.stdout) == (3, "")
        assert done.stderr == (
            "error: no credentials for https://api.synapse.sh: run `synapse login`, or set SYNAPSE_ACCESS_TOKEN\n"
        )

    def test_ctrl_c_stops_the_job(self, synapse: Synapse, plain: PlainBackend) -> None:
        log_in(synapse, plain)

        def hang(job: Job) -> None:
            job.set(status="RUNNING")
            job.print("started")

        plain.script = hang
        with synapse.started("train", *REMOTE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            interrupt(process)
            assert process.wait(patience(20)) == 130
        assert plain.only_job().status == "STOPPED"

    @pytest.mark.parametrize(("answer", "status"), [("n", "RUNNING"), ("y", "STOPPED")])
    def test_ctrl_c_on_a_terminal_asks_whether_to_stop_the_job(
        self, synapse: Synapse, plain: PlainBackend, answer: str, status: str
    ) -> None:
        log_in(synapse, plain)

        def hang(job: Job) -> None:
            job.set(status="RUNNING")
            job.print("started")

        plain.script = hang
        with synapse.on_terminal("train", *REMOTE) as child:
            child.expect("started")
            child.sendintr()
            child.expect(r"Stop job .*\?")
            child.sendline(answer)
            if answer == "n":
                child.expect("to get its result: synapse job result ")
            assert status_of(child) == 130
        assert plain.only_job().status == status


class TestPublish:
    def test_dry_run_lists_files_and_writes_and_sends_nothing(self, synapse: Synapse, plugin_dir: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in plugin_dir.rglob("*.py")} | {plugin_dir: 0}
        done = synapse("plugin", "publish", "--dry-run")
        assert done.status == 0
        assert "config.yaml" in done.stdout.split()
        assert "demo@0.1.0: " in done.stderr
        assert "nothing was uploaded" in done.stderr
        assert synapse("plugin", "publish", "--dry-run", "--json").result["plugin"] == "demo"
        assert {path: path.stat().st_mtime_ns for path in plugin_dir.rglob("*.py")} | {plugin_dir: 0} == before

    def test_release_and_debug_release(self, logged_in: Synapse, backend: PlainBackend) -> None:
        done = logged_in("plugin", "publish")
        assert done.status == 2
        assert "--yes" in done.stderr
        done = logged_in("plugin", "publish", "-y")
        assert (done.status, done.stdout) == (0, f"Published demo@0.1.0 to {backend.url} (release 100).\n")
        done = logged_in("plugin", "publish", "-y")
        assert done.status == 3
        assert "demo@0.1.0 exists at" in done.stderr
        assert logged_in("plugin", "publish", "-y", "--debug", "--json").result["id"] == "101"

    def test_forms_of_the_config_file_are_sent(self) -> None:
        action = "{entrypoint: a:B, hyperparameters: {train_ui_schemas: [1]}, ui_schema: [2], result_schema: [3]}"
        manifest = parse_manifest_leniently(f"code: a\nactions:\n  train: {action}\n", Path("config.yaml"))
        forms = {"hyperparameters": {"train_ui_schemas": [1]}, "ui_schema": [2], "result_schema": [3]}
        assert config_of(manifest)["actions"]["train"] == {"entrypoint": "a.B", "method": "task"} | forms
        assert manifest.problems == ()


class TestDoctor:
    def findings(self, synapse: Synapse) -> list[tuple[str, str, str]]:
        found = synapse("doctor", "--json").result["findings"]
        return [(one["state"], one["what"], one["text"]) for one in found if one["topic"] == "Backend"]

    def test_login_and_agent_are_checked(self, synapse: Synapse, plain: PlainBackend) -> None:
        assert self.findings(synapse) == [("ok", "login", "not logged in; required for remote mode")]
        log_in(synapse, plain)
        [login, agent] = self.findings(synapse)
        assert login[:2] == ("ok", "login")
        assert login[2].startswith(f"{plain.url} accepts the token of ")
        assert agent == ("ok", "agent", "lab, the only connected one")
        plain.faults["/agents/"] = [401]
        [login] = self.findings(synapse)
        assert login[:2] == ("problem", "login")
        assert "does not accept the credentials (401)" in login[2]


class TestJob:
    def test_status_logs_result_list(self, logged_in: Synapse, backend: PlainBackend) -> None:
        job_id = logged_in.run("train", *REMOTE, "--detach").stdout.strip()
        assert within(10, lambda: backend.jobs[job_id].has_ended)
        assert logged_in.job("status", job_id).stdout == "SUCCEEDED\n"
        assert logged_in.job("logs", job_id).stdout == "one\ntwo\nthree\n"
        assert logged_in.job("logs", "-f", job_id).stdout == "one\ntwo\nthree\n"
        done = logged_in.job("result", job_id)
        assert done.shown_result == {"status": "done"}
        [listed] = logged_in.job("list", "--host", backend.url, "--json").result
        assert (listed["id"], listed["action"], listed["status"], listed["took"]) == (job_id, "train", "SUCCEEDED", 2.5)
        assert "had already ended" in logged_in.job("stop", job_id).stderr

    def test_stop(self, logged_in: Synapse, backend: PlainBackend) -> None:
        backend.script = lambda job: job.set(status="RUNNING")
        job_id = logged_in.run("train", *REMOTE, "--detach").stdout.strip()
        assert logged_in.job("stop", job_id, "--json").result == {"id": job_id, "status": "STOPPED"}

    def test_delete(self, synapse: Synapse, runtime: RuntimeBackend) -> None:
        log_in(synapse, runtime)
        job_id = synapse.run("train", *REMOTE, "--detach").stdout.strip()
        assert within(10, lambda: runtime.jobs[job_id].has_ended)
        assert synapse.job("delete", job_id).stderr == f"deleted job {job_id}\n"
        assert runtime.jobs == {}

    def test_unknown_one_exits_with_3(self, logged_in: Synapse, backend: PlainBackend) -> None:
        done = logged_in.job("status", "550e8400-e29b-41d4-a716-446655440000")
        assert (done.status, done.stdout) == (3, "")
        assert f"error: {backend.url} has no job '550e8400" in done.stderr


def test_ordinary_commands_do_not_import_httpx(synapse: Synapse) -> None:
    code = (
        "import sys\nfrom synapse_runtime.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    for arguments in (("--help",), ("plugin", "run", "train", "--mode", "local", "--json"), ("job", "--help")):
        done = synapse(*arguments, command=[sys.executable, "-c", code])
        assert done.status == 0
        assert not {"httpx", "stamina", "httpcore"} & {*done.stderr.split()}


def test_missing_package_is_named(synapse: Synapse, plain: PlainBackend, tmp_path: Path) -> None:
    log_in(synapse, plain)
    (tmp_path / "httpx.py").write_text("raise ModuleNotFoundError('no httpx', name='httpx')\n")
    for arguments in (("plugin", "run", "train", *REMOTE), ("whoami",), ("plugin", "publish", "--dry-run")):
        done = synapse(*arguments, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        assert done.status == 3
        assert "remote mode needs the package httpx: pip install 'pytest-synapse-harness[remote]'" in done.stderr

"""What a call sends, what it gives back, and what happens when the answer is not what it should be."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from synapse_runtime.core.execution import ActionRun, failure
from synapse_runtime.decorators import action
from synapse_runtime.errors import (
    ActionNotFoundError,
    ConfigError,
    ExecutionError,
    ExecutionTimeout,
    NotSupportedRemotely,
    RemoteError,
    ResultNotSerializable,
    ValidationError,
)
from synapse_runtime.executors.remote.executor import RemoteExecutor
from synapse_runtime.runner import run_plugin
from tests.remote.conftest import SHORT
from tests.remote.stub import TOKEN, Job, PlainBackend, RuntimeBackend

Connect = Callable[..., RemoteExecutor]


class Params(BaseModel):
    epochs: int = 1
    weights: Path = Path("w.npz")


@action
def of_this_file(params: dict[str, Any], context: Any) -> None: ...


class TestRequest:
    def test_plain_backend_gets_the_fields_of_the_v1_api_and_nothing_else(
        self, plain: PlainBackend, connect: Connect
    ) -> None:
        assert connect(plain, language="ko").execute("train", {"epochs": 2}) == {"status": "done"}
        [request] = plain.of("POST", "/run/")
        assert request.path == "/plugins/digits/run/"
        assert request.json == {
            "agent": 7,
            "action": "train",
            "params": {"epochs": 2},
            "debug": True,
            "language": "ko",
        }
        assert request.headers["synapse-access-token"] == f"Token {TOKEN}"
        assert request.headers["content-type"] == "application/json"

    def test_empty_params_and_no_debug_are_left_out(self, plain: PlainBackend, connect: Connect) -> None:
        connect(plain, debug=False, version="1.2.0").submit("deploy")
        assert plain.of("POST", "/run/")[0].json == {
            "agent": 7,
            "action": "deployment",
            "version": "1.2.0",
            "language": "en",
        }

    def test_runtime_backend_gets_the_whole_call(self, runtime: RuntimeBackend, connect: Connect) -> None:
        executor = connect(runtime, env={"LEVEL": 3}, timeout=9, language="ko", version="1.0.0", agent=None)
        executor.submit("infer", {"at": Path("a"), "nan": float("nan")})
        [request] = runtime.of("POST", "/runtime/jobs/")
        assert request.json == {
            "plugin": "digits",
            "action": "infer",
            "params": {"at": {"$type": "pathlib:Path", "value": "a"}, "nan": {"$float": "nan"}},
            "env": {"LEVEL": 3},
            "timeout": 9,
            "language": "ko",
            "version": "1.0.0",
        }
        connect(runtime, env={"NAMES": ["a", "b"], "RATE": 0.5}).submit("train")
        request = runtime.of("POST", "/runtime/jobs/")[1]
        assert request.json | {"language": "en"} == {
            "plugin": "digits",
            "action": "train",
            "params": {},
            "agent": 7,
            "env": {"NAMES": "a,b", "RATE": 0.5},
            "debug": True,
            "language": "en",
        }
        assert len(request.headers["idempotency-key"]) >= 32
        assert len(runtime.of("GET", "/runtime/")) == 2

    def test_model_is_sent_as_its_fields(self, backend: PlainBackend, connect: Connect) -> None:
        connect(backend).submit("train", Params(epochs=4))
        sent = (
            backend.requests[-1].json["params"] if backend.requests[-1].body else backend.only_job().request["params"]
        )
        assert sent["epochs"] == 4
        assert sent["weights"] in ("w.npz", {"$type": "pathlib:Path", "value": "w.npz"})

    def test_user_token_goes_with_its_tenant(
        self, plain: PlainBackend, monkeypatch: pytest.MonkeyPatch, connect: Connect
    ) -> None:
        monkeypatch.setenv("SYNAPSE_PLUGIN_RUN_USER_TOKEN", TOKEN)
        monkeypatch.setenv("SYNAPSE_PLUGIN_RUN_TENANT", "acme")
        monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "syn_other")
        with RemoteExecutor(plain.url, plugin="digits", agent=7, timeouts=SHORT) as executor:
            executor.submit("train")
        [request] = plain.of("POST", "/run/")
        assert (request.headers["authorization"], request.headers["synapse-tenant"]) == (f"Token {TOKEN}", "Token acme")
        assert "synapse-access-token" not in request.headers

    def test_path_of_the_host_is_kept(self, plain: PlainBackend) -> None:
        with (
            RemoteExecutor(plain.url + "/api/", TOKEN, plugin="digits", agent=7, timeouts=SHORT) as executor,
            pytest.raises(RemoteError, match="404"),
        ):
            executor.submit("train")
        assert {request.path for request in plain.requests} == {"/api/runtime/", "/api/plugins/digits/run/"}


class TestRefusedBeforeSending:
    def test_action_of_a_test_file(self, backend: PlainBackend, connect: Connect) -> None:
        with pytest.raises(NotSupportedRemotely, match="cannot be sent to a backend"):
            connect(backend).run(of_this_file)
        assert backend.requests == []

    def test_what_is_not_an_action(self, backend: PlainBackend, connect: Connect) -> None:
        with pytest.raises(ConfigError, match=r"test_run.Params is not an action"):
            connect(backend).run(Params)
        assert backend.requests == []

    @pytest.mark.parametrize(
        ("params", "part"),
        [
            ({"a": [1, {"b": (1, 2)}]}, r"params\['a'\]\[1\]\['b'\] is a tuple, which JSON does not have; pass a list"),
            ({"a": {1: 2}}, r"the key 1 of params\['a'\] is an int"),
            ({"at": Path("x")}, r"params\['at'\] is a pathlib.PosixPath"),
            ({"n": 2**70}, r"params\['n'\] is an int"),
        ],
    )
    def test_params_that_a_plain_backend_cannot_get(
        self, plain: PlainBackend, connect: Connect, params: Any, part: str
    ) -> None:
        with pytest.raises(NotSupportedRemotely, match=f"^train: {part}"):
            connect(plain).run("train", params)
        assert plain.of("POST", "/run/") == []

    def test_params_that_no_backend_can_get(self, runtime: RuntimeBackend, connect: Connect) -> None:
        with pytest.raises(NotSupportedRemotely, match=r"train: params\['a'\]\[1\] is a function, which cannot be"):
            connect(runtime).run("train", {"a": (1, lambda: None)})
        assert runtime.jobs == {}

    @pytest.mark.parametrize(
        ("options", "name", "reason"),
        [
            ({"timeout": 5}, "train", "train has a timeout, which"),
            ({"env": {"SEED": 1}}, "train", r"train has environment variables \(SEED\), which"),
            ({}, "plugin.train:Train", "'plugin.train:Train' is an entrypoint, not the name of an action, which"),
        ],
    )
    def test_what_a_plain_backend_has_no_field_for(
        self, plain: PlainBackend, connect: Connect, options: Any, name: str, reason: str
    ) -> None:
        with pytest.raises(NotSupportedRemotely, match=f"{reason} .* does not support: it has no /runtime/ extension"):
            connect(plain, **options).run(name)
        assert plain.of("POST", "/run/") == []

    def test_deleting_needs_the_extension(self, plain: PlainBackend, connect: Connect) -> None:
        with pytest.raises(NotSupportedRemotely, match="deleting a job needs an extension"):
            connect(plain).delete("j")

    def test_call_without_a_plugin(self, backend: PlainBackend, connect: Connect) -> None:
        with pytest.raises((NotSupportedRemotely, ActionNotFoundError)):
            connect(backend, plugin=None).run("train")


class TestLostAnswers:
    @pytest.mark.parametrize("fault", ["accept and drop", "accept and 502", "drop", "silence", 502, 504])
    def test_plain_backend_never_gets_a_call_twice(self, plain: PlainBackend, connect: Connect, fault: Any) -> None:
        plain.run_faults = [fault]
        with pytest.raises(RemoteError) as caught:
            connect(plain).run("train")
        assert len(plain.of("POST", "/run/")) == 1
        assert caught.value.may_be_accepted
        assert f"may have accepted the job, so it was not sent again; `synapse job list --host {plain.url}`" in str(
            caught.value
        )

    @pytest.mark.parametrize("status", [429, 503])
    def test_what_was_not_accepted_is_sent_again_when_the_backend_says_when(
        self, plain: PlainBackend, connect: Connect, status: int
    ) -> None:
        plain.run_faults = [status, status]
        assert connect(plain).execute("train") == {"status": "done"}
        assert len(plain.of("POST", "/run/")) == 3
        assert len(plain.jobs) == 1

    @pytest.mark.parametrize("status", [429, 503])
    def test_it_is_not_when_the_backend_does_not_say_when(
        self, plain: PlainBackend, connect: Connect, status: int
    ) -> None:
        plain.run_faults, plain.retry_after = [status], None
        with pytest.raises(RemoteError, match=f"{status}.*try again later") as caught:
            connect(plain).run("train")
        assert len(plain.of("POST", "/run/")) == 1
        assert not caught.value.may_be_accepted

    @pytest.mark.parametrize("fault", ["accept and drop", "accept and 502", "drop", 429, 502, 503, 504])
    def test_runtime_backend_gets_it_again_under_one_key(
        self, runtime: RuntimeBackend, connect: Connect, fault: Any
    ) -> None:
        runtime.run_faults = [fault, fault]
        assert connect(runtime).execute("train") == {"status": "done"}
        sent = runtime.of("POST", "/runtime/jobs/")
        assert len(sent) == 3
        assert len({request.headers["idempotency-key"] for request in sent}) == 1
        assert len(runtime.jobs) == 1

    def test_runtime_backend_that_never_answers_may_have_accepted_it(
        self, runtime: RuntimeBackend, connect: Connect
    ) -> None:
        runtime.run_faults = ["accept and drop"] * 9
        with pytest.raises(RemoteError, match=r"may have accepted the job, though its answers were lost"):
            connect(runtime).run("train")
        assert len(runtime.jobs) == 1

    def test_nan_is_sent_bare_to_a_plain_backend(self, plain: PlainBackend, connect: Connect) -> None:
        connect(plain).submit("train", {"loss": float("nan"), "worst": float("-inf")})
        assert b'"params":{"loss":NaN,"worst":-Infinity}' in plain.of("POST", "/run/")[0].body

    @pytest.mark.parametrize("body", [b"<html>" + b"x" * 500, b'"PENDING"', b'{"status": "PENDING"}', b"[1]", b""])
    def test_answer_without_a_job_is_an_error_that_shows_its_start(
        self, plain: PlainBackend, connect: Connect, body: bytes
    ) -> None:
        plain.run_faults = [body]
        with pytest.raises(RemoteError) as caught:
            connect(plain).run("train")
        assert repr(body[:200].decode())[:-1] in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_backend_that_is_not_there(self, connect: Connect, plain: PlainBackend) -> None:
        executor = RemoteExecutor("http://127.0.0.1:1", TOKEN, plugin="digits", agent=7, timeouts=SHORT)
        with pytest.raises(RemoteError, match=r"http://127.0.0.1:1 cannot be reached: .*refused"):
            executor.run("train")


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "was refused (400): as told"),
        (401, "does not accept the credentials (401): as told; run `synapse login`"),
        (403, "these credentials may not do that"),
        (404, "was not found (404): as told; check the name"),
        (409, "is in conflict"),
        (422, "was refused as invalid (422): as told"),
        (500, "failed at the backend (500)"),
    ],
)
def test_statuses_are_errors_that_say_what_to_do(
    backend: PlainBackend, connect: Connect, status: int, advice: str
) -> None:
    backend.run_faults = [status]
    with pytest.raises(RemoteError) as caught:
        connect(backend).run("train")
    assert advice in str(caught.value)
    assert caught.value.status == status


class TestOutcome:
    @pytest.mark.parametrize(
        ("fields", "kind", "text"),
        [
            ({"result": {"error": "no weights"}}, ExecutionError, "train failed: no weights"),
            ({"meta": {"error": {"message": "it hung", "error_type": "timeout"}}}, ExecutionTimeout, "it hung"),
            ({"meta": {"error": {"message": "bad", "error_type": "validation_error"}}}, ValidationError, "bad"),
            ({}, ExecutionError, "the backend does not say why"),
            ({"status": "STOPPED"}, ExecutionError, "was stopped"),
        ],
    )
    def test_failure_of_a_plain_backend(
        self, plain: PlainBackend, connect: Connect, fields: dict[str, Any], kind: type, text: str
    ) -> None:
        def fail(job: Job) -> None:
            job.print("Traceback (most recent call last):", '  File "a.py", line 1, in f', "ValueError: no weights")
            job.end(**{"status": "FAILED", **fields})

        plain.script = fail
        run = connect(plain).run("train")
        assert type(run.error) is kind
        assert text in str(run.error)
        if kind is not ValidationError and "status" not in fields:
            assert run.error.details.endswith("ValueError: no weights")

    def test_error_of_a_record_is_the_original(self, runtime: RuntimeBackend, connect: Connect) -> None:
        def fail(job: Job) -> None:
            try:
                {}["weights"]
            except KeyError as error:
                caught = error
            run = ActionRun("train", error=failure("train", caught), is_started=True, pid=41, host="worker-3")
            job.end("FAILED", run=run)

        runtime.script = fail
        executor = connect(runtime)
        with pytest.raises(ExecutionError, match="train failed: KeyError: 'weights'") as caught:
            executor.execute("train")
        assert isinstance(caught.value.__cause__, KeyError)
        [note] = caught.value.__notes__
        assert note.startswith("train ran in remote mode, job ")
        assert note.endswith("on worker-3, pid 41")

    def test_result_that_json_does_not_have(self, runtime: RuntimeBackend, connect: Connect) -> None:
        runtime.script = lambda job: job.end(run=ActionRun("train", result={"a": object()}, is_started=True))
        run = connect(runtime).run("train")
        assert isinstance(run.error, ResultNotSerializable)
        assert "the result of train contains a builtins:object, which JSON does not have" in str(run.error)

    def test_record_that_is_malformed(self, runtime: RuntimeBackend, connect: Connect) -> None:
        runtime.script = lambda job: job.end(record='{"format": 9}')
        with pytest.raises(RemoteError, match="malformed record: it has format 9"):
            connect(runtime).run("train")

    def test_values_come_back_as_their_types(self, runtime: RuntimeBackend, connect: Connect) -> None:
        result = {"path": Path("w.npz"), "shape": (2, 3), "loss": float("inf")}
        runtime.script = lambda job: job.end(run=ActionRun("train", result=result, is_started=True))
        executor = connect(runtime)
        run = executor.run("train")
        assert (run.result, run.mode, run.job_id) == (result, "remote", runtime.only_job().id)
        executor.delete(run.job_id)
        assert runtime.jobs == {}

    def test_awaiting(self, backend: PlainBackend, connect: Connect) -> None:
        executor = connect(backend)
        assert asyncio.run(executor.aexecute("train")) == {"status": "done"}


class TestInference:
    def test_answer_is_the_result(self, plain: PlainBackend, connect: Connect) -> None:
        plain.answers = [{"label": 3, "job_id": "not a job"}]
        run = connect(plain).run("infer", {"input": {"a": 1}, "path": "/p"})
        assert run.result == {"label": 3, "job_id": "not a job"}
        assert plain.of("POST", "/run/")[0].json["action"] == "inference"
        with pytest.raises(NotSupportedRemotely, match="its answer is no job"):
            connect(plain).submit("infer")

    def test_deferred_answer_is_asked_for_until_it_comes(
        self, plain: PlainBackend, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synapse_runtime.executors.remote.executor._TICKET_SECONDS", (0.01, 0.02))
        pending = {"__synapse_deferred__": True, "status": "pending", "ticket": "t1"}
        plain.answers = [pending, pending, {"label": 3}]
        assert connect(plain).execute("infer", {"model": 1, "json": {"x": 2}}) == {"label": 3}
        asked = [request.json["params"] for request in plain.of("POST", "/run/")]
        poll = {"model": 1, "json": {"__synapse_poll__": "t1"}}
        assert asked == [{"model": 1, "json": {"x": 2}}, poll, poll]

    @pytest.mark.parametrize(
        ("answer", "kind", "text"),
        [
            ({"status": "failed", "error": "no GPU"}, ExecutionError, "inference|infer failed: no GPU"),
            ({"status": "not_found", "ticket": "t"}, RemoteError, "has lost the deferred answer"),
        ],
    )
    def test_deferred_answer_that_fails(
        self, plain: PlainBackend, connect: Connect, answer: dict[str, Any], kind: type[Exception], text: str
    ) -> None:
        plain.answers = [{"__synapse_deferred__": True, **answer}]
        with pytest.raises(kind, match=text):
            connect(plain).execute("infer")


class TestAgents:
    def test_only_connected_one_is_taken_and_named(self, plain: PlainBackend, connect: Connect) -> None:
        plain.agents = [
            {"id": 1, "name": "old", "status": "disconnected"},
            {"id": 9, "name": "lab", "status": "CONNECTED"},
        ]
        notes: list[str] = []
        connect(plain, agent=None, on_note=notes.append).submit("train")
        assert notes[0] == "agent: lab (id 9), the only connected one"
        assert notes[1] == f"job {plain.only_job().id} on {plain.url}: digits train"
        assert plain.only_job().request["agent"] == 9

    @pytest.mark.parametrize(
        ("agents", "given", "text"),
        [
            ([], None, "no agent is connected at .* Available: none"),
            (
                ["a", "b"],
                None,
                r"several agents are connected .* Available: a \(id 0, connected\), b",
            ),
            (["lab", "b"], "labb", "has no agent 'labb'. Did you mean 'lab'?"),
        ],
    )
    def test_others_are_listed(
        self, plain: PlainBackend, connect: Connect, agents: list[str], given: str | None, text: str
    ) -> None:
        plain.agents = [{"id": n, "name": name, "status": "connected"} for n, name in enumerate(agents)]
        with pytest.raises(RemoteError, match=text):
            connect(plain, agent=given).submit("train")

    def test_name_is_looked_up_once(self, plain: PlainBackend, connect: Connect) -> None:
        executor = connect(plain, agent="lab")
        executor.submit("train")
        executor.submit("train")
        assert len(plain.of("GET", "/agents/")) == 1
        assert {job.request["agent"] for job in plain.jobs.values()} == {7}


class TestPlugin:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        root = tmp_path / "digits"
        (root / "lab").mkdir(parents=True)
        (root / "config.yaml").write_text(
            "code: digits\nversion: 1.2.3\nactions:\n  train: {entrypoint: 'lab.train:Train', method: job}\n"
        )
        (root / "lab" / "train.py").write_text("class Train:\n    def execute(self): ...\n")
        (root / ".env").write_text("SECRET=1\n")
        (root / ".gitignore").write_text("data/\n")
        (root / "data").mkdir()
        (root / "data" / "big.bin").write_bytes(b"0")
        return root

    def test_is_published_once_for_the_same_files(
        self, runtime: RuntimeBackend, connect: Connect, directory: Path
    ) -> None:
        import io
        import zipfile

        notes: list[str] = []
        for _ in range(2):
            executor = connect(runtime, plugin=directory, on_note=notes.append)
            executor.submit("train")
        [request] = runtime.of("POST", "/plugin_releases/")
        form = request.form
        assert list(form) == ["plugin", "version", "config", "debug", "file"]
        assert (form["plugin"], form["version"], form["debug"]) == (b"digits", b"1.2.3", b"True")
        config = json.loads(form["config"])
        assert config["actions"] == {"train": {"entrypoint": "lab.train.Train", "method": "job"}}
        names = zipfile.ZipFile(io.BytesIO(form["file"])).namelist()
        assert sorted(names) == [".gitignore", "config.yaml", "lab/train.py"]
        assert notes[0] == "published digits@1.2.3 as debug release 100"
        assert notes[1].endswith(": digits@1.0.0 train (release 100)")
        assert [job.request["version"] for job in runtime.jobs.values()] == ["1.2.3", "1.2.3"]
        (directory / "lab" / "train.py").write_text("class Train:\n    def execute(self): pass\n")
        executor.submit("train")
        assert len(runtime.of("POST", "/plugin_releases/")) == 2

    def test_directory_of_the_backend_with_the_same_files_is_run_as_it_is(
        self, runtime: RuntimeBackend, connect: Connect, directory: Path
    ) -> None:
        executor = connect(runtime, plugin=directory)
        executor.submit("train")
        [release] = runtime.contents.values()
        release["live"] = True
        executor.submit("train")
        assert len(runtime.of("POST", "/plugin_releases/")) == 1
        assert [job.request.get("version") for job in runtime.jobs.values()] == ["1.2.3", None]

    def test_is_published_each_time_if_the_backend_cannot_look_for_files(
        self, runtime: RuntimeBackend, connect: Connect, directory: Path
    ) -> None:
        runtime.features = ["jobs"]
        executor = connect(runtime, plugin=directory)
        executor.submit("train")
        executor.submit("train")
        assert len(runtime.of("POST", "/plugin_releases/")) == 2

    def test_is_not_published_when_told(self, runtime: RuntimeBackend, connect: Connect, directory: Path) -> None:
        connect(runtime, plugin=directory, publish=False).submit("train")
        assert runtime.releases == []
        assert "version" not in runtime.only_job().request

    def test_is_never_published_to_a_plain_backend(
        self, plain: PlainBackend, connect: Connect, directory: Path
    ) -> None:
        connect(plain, plugin=directory).submit("train")
        assert plain.releases == []

    def test_unknown_action_is_found_before_anything_is_sent(
        self, backend: PlainBackend, connect: Connect, directory: Path
    ) -> None:
        with pytest.raises(ActionNotFoundError, match="Did you mean 'train'"):
            connect(backend, plugin=directory).submit("trian")
        assert backend.requests == []

    def test_tracebacks_show_the_local_files_where_they_are_the_same(
        self, runtime: RuntimeBackend, connect: Connect, directory: Path, tmp_path: Path
    ) -> None:
        (directory / "lab" / "train.py").write_text("def train(params, context):\n    raise ValueError('no weights')\n")
        there = tmp_path / "releases" / "lab" / "train.py"
        there.parent.mkdir(parents=True)
        there.write_bytes((directory / "lab" / "train.py").read_bytes())

        def fail(job: Job) -> None:
            names: dict[str, Any] = {"__name__": "lab.train"}
            exec(compile(there.read_text(), str(there), "exec"), names)
            try:
                names["train"](None, None)
            except ValueError as error:
                caught = error
            caught.__traceback__ = caught.__traceback__.tb_next  # type: ignore[union-attr]
            job.end("FAILED", run=ActionRun("train", error=failure("train", caught), is_started=True))

        runtime.script = fail
        for source, file in ((None, directory / "lab" / "train.py"), ("# edited\n", there)):
            if source is not None:
                (directory / "lab" / "train.py").write_text(source)
            error = connect(runtime, plugin=directory, publish=False).run("train").error
            assert error is not None
            cause = error.__cause__
            assert cause is not None
            assert [frame.filename for frame in traceback.extract_tb(cause.__traceback__)] == [str(file)]

    def test_run_plugin_returns_the_job_of_a_plugin_by_code_or_directory(
        self, backend: PlainBackend, directory: Path
    ) -> None:
        options = {"host": backend.url, "token": TOKEN, "agent": 7, "timeouts": SHORT}
        for plugin in ("digits", str(directory)):
            job_id = run_plugin(plugin, "train", {"epochs": 1}, mode="remote", **options)
            assert backend.jobs[job_id].request["params"] == {"epochs": 1}

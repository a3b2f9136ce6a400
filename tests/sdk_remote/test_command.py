"""The SDK's command against our server."""

from __future__ import annotations

import json
import os

import pexpect

from synapse_runtime.executors.remote.backend import connect
from tests.patience import patience, within
from tests.sdk_remote.conftest import Sdk, write_digits
from tests.server.conftest import command


def test_login_is_valid_and_each_reads_the_file_of_the_other(sdk: Sdk) -> None:
    assert "Token is valid" in sdk("doctor", status=0)
    file = sdk.home / ".synapse" / "config.json"
    env = {**os.environ, "HOME": str(sdk.home)}
    shown = command("whoami", env=env).communicate(timeout=patience(60))[0].decode()
    assert sdk.server.host in shown
    selected = command("agent", "select", "local", env=env)
    assert (selected.wait(patience(60)), selected.communicate()[1]) == (0, b"")
    assert json.loads(file.read_text())["mine"] == [1]
    assert "local" in sdk("agent", "show")


def test_agent_is_selected_from_the_list(sdk: Sdk) -> None:
    with pexpect.spawn(
        str(sdk.command), ["agent", "select"], env=sdk.env, encoding="utf-8", timeout=patience(60)
    ) as child:
        child.expect("Enter agent ID")
        child.send("1\r")
        child.expect("Connection successful")
        child.expect(pexpect.EOF)
    assert child.wait() == 0
    assert json.loads((sdk.home / ".synapse" / "config.json").read_text())["mine"] == [1]


def test_version_can_be_published_once_and_replaced_by_a_debug_release(sdk: Sdk, tmp_path: object) -> None:
    write_digits(sdk.plugin)
    listed = sdk("plugin", "publish", "--dry-run")
    assert "plugin/main.py" in listed
    assert "secret.txt" not in listed
    assert "409" in sdk("plugin", "publish", "-y", status=1)
    assert "Published successfully" in sdk("plugin", "publish", "-y", "--debug")


def test_job_runs_and_its_log_is_shown_as_it_was_printed(sdk: Sdk) -> None:
    job_id = sdk.job_of(sdk("plugin", "run", "train", "--mode", "remote", "--params", '{"epochs": 2}'))
    followed = sdk("plugin", "job", "logs", job_id, "-f")
    assert followed.splitlines()[-2:] == ["epoch 0 of 2", "epoch 1 of 2"]
    assert "SUCCEEDED" in sdk("plugin", "job", "get", job_id)
    lines = connect(sdk.server.host, sdk.server.token).console_logs(job_id)
    assert lines == ["epoch 0 of 2", "epoch 1 of 2"]


def test_failure_is_shown_with_its_traceback(sdk: Sdk) -> None:
    job_id = sdk.job_of(sdk("plugin", "run", "fail", "--mode", "remote"))
    followed = sdk("plugin", "job", "logs", job_id, "-f")
    assert "before" in followed
    assert "ValueError: no weights" in followed
    assert "FAILED" in sdk("plugin", "job", "get", job_id)


def test_inference_is_answered_at_once_in_both_spellings(sdk: Sdk) -> None:
    printed = sdk("plugin", "run", "infer", "--mode", "remote", "--input", '{"a": 1}', "--infer-path", "/p")
    assert "'answer': {'a': 1}, 'path': '/p'" in printed
    params = json.dumps({"model": "m1", "method": "post", "json": {"input": {"b": 2}}})
    assert "'answer': {'b': 2}" in sdk("plugin", "run", "infer", "--mode", "remote", "--params", params)


def test_deploy_finds_deployment(sdk: Sdk) -> None:
    job_id = sdk.job_of(sdk("plugin", "run", "deploy", "--mode", "remote"))
    client = connect(sdk.server.host, sdk.server.token)
    assert within(30, lambda: client.job(job_id).has_ended)
    assert client.job(job_id).result == {"deployed": True}


def test_what_is_not_there_is_named(sdk: Sdk) -> None:
    assert "404" in sdk("plugin", "run", "nothing", "--mode", "remote", status=1)

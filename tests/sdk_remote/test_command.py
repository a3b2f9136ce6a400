"""The SDK's command against our server."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pexpect
import pytest

from tests.patience import patience
from tests.sdk_remote.conftest import CONFIG, Sdk, write_digits
from tests.server.conftest import command


def ours(user: Sdk, *arguments: str) -> str:
    """Run our own command as this user, and return what it prints."""
    done = command(*arguments, env={**os.environ, "HOME": str(user.home)})
    printed, problems = done.communicate(timeout=patience(60))
    assert (done.returncode, problems) == (0, b"")
    return printed.decode()


def test_login_is_valid_and_our_command_reads_it(sdk: Sdk) -> None:
    assert "Token is valid" in sdk("doctor")
    assert sdk.client.host in ours(sdk, "whoami")
    ours(sdk, "agent", "select", "local")
    assert json.loads((sdk.home / ".synapse" / "config.json").read_text())["mine"] == [1]
    assert "local" in sdk("agent", "show")


def test_login_by_our_command_is_valid(sdk: Sdk, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(sdk.client.token)
    user = Sdk(sdk.client, tmp_path, sdk.plugin)
    ours(user, "login", "--host", sdk.client.host, "--token-file", str(tmp_path / "token"))
    ours(user, "agent", "select", "1")
    assert "Token is valid" in user("doctor")
    assert "local" in user("agent", "show")


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


def test_version_can_be_published_once_and_replaced_by_a_debug_release(sdk: Sdk) -> None:
    write_digits(sdk.plugin)
    before = sdk.client.json("/plugin_releases/")
    listed = sdk("plugin", "publish", "--dry-run")
    assert sdk.client.json("/plugin_releases/") == before
    assert "plugin/main.py" in listed
    assert "secret.txt" not in listed
    assert "409: {'detail': \"plugin 'digits' has a release '1.0.0'" in sdk("plugin", "publish", "-y", status=1)
    assert "Published successfully" in sdk("plugin", "publish", "-y", "--debug")
    release = sdk.client.json("/plugin_releases/digits@1.0.0/")
    assert (release["debug"], release["config"]["actions"]["train"]["entrypoint"]) == (True, "plugin.main.TrainAction")


def test_job_runs_and_its_log_is_shown_as_it_was_printed(sdk: Sdk) -> None:
    job_id = sdk.start("train", {"epochs": 2})
    followed = sdk("plugin", "job", "logs", job_id, "-f")
    assert followed.partition("Press Ctrl+C to stop.\n")[2].split("\n") == ["", "epoch 0 of 2", "epoch 1 of 2", ""]
    assert "SUCCEEDED" in sdk("plugin", "job", "get", job_id)
    lines = sdk("plugin", "job", "logs", job_id).splitlines()
    assert [line for line in lines if line][-2:] == ["epoch 0 of 2", "epoch 1 of 2"]


def test_failure_is_shown_with_its_traceback(sdk: Sdk) -> None:
    job_id = sdk.client.start("fail", plugin="digits", debug=True)
    followed = sdk("plugin", "job", "logs", job_id, "-f")
    assert "before" in followed
    assert "ValueError: no weights" in followed
    assert "FAILED" in sdk("plugin", "job", "get", job_id)


def test_inference_is_answered_at_once_in_both_spellings(sdk: Sdk) -> None:
    printed = sdk("plugin", "run", "infer", "--mode", "remote", "--input", '{"a": 1}', "--infer-path", "/p")
    assert "Result: {'answer': {'a': 1}, 'path': '/p', 'model': None}" in printed
    params = json.dumps({"model": "m1", "method": "post", "json": {"input": {"b": 2}}})
    printed = sdk("plugin", "run", "infer", "--mode", "remote", "--params", params)
    assert "Result: {'answer': {'b': 2}, 'path': None, 'model': 'm1'}" in printed


def test_names_of_the_platform_find_actions_with_short_names(sdk: Sdk, tmp_path: Path) -> None:
    config = CONFIG.replace("code: digits", "code: short").replace("inference:", "infer:")
    user = Sdk(sdk.client, sdk.home, write_digits(tmp_path, config.replace("deployment:", "deploy:")))
    user("plugin", "publish", "-y")
    assert "{'answer': {'c': 3}, 'path': '/'" in user("plugin", "run", "infer", "--mode", "remote", "-i", '{"c": 3}')
    assert sdk.client.finish(user.start("deploy"))["action"] == "deploy"


def test_deploy_finds_deployment(sdk: Sdk) -> None:
    job = sdk.client.finish(sdk.start("deploy"))
    assert (job["action"], job["result"]) == ("deployment", {"deployed": True})


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("run train -p nothing", "404: {'detail': \"this server has no plugin 'nothing'"),
        ("run trian", "404: {'detail': \"plugin 'digits' 1.0.0 has no action 'trian'; did you mean 'train'?"),
        ("run train -t syn_wrong", "401: {'detail': 'the access token is not valid: log in with `synapse login`"),
        ("run infer --input 5", "422 Validation Error:\n  body -> params -> input: Input should be a valid dictionary"),
        ("run infer --input {} --infer-path /nowhere", "500: {'detail': 'inference failed: no weights'}"),
        (f"job get {uuid.UUID(int=0)}", "404: {'detail': \"there is no job '00000000-"),
        (f"job logs -f {uuid.UUID(int=0)}", "404: {'detail': \"there is no job '00000000-"),
    ],
)
def test_refusal_is_shown_with_its_status_and_reason(sdk: Sdk, line: str, shown: str) -> None:
    options = ("--mode", "remote") if line.startswith("run") else ()
    assert shown in sdk("plugin", *line.split(), *options, status=1)


def test_token_that_may_not_run_is_refused_with_what_it_lacks(sdk: Sdk, tmp_path: Path) -> None:
    token = sdk.start_waiting(tmp_path / "variables.json")["SYNAPSE_ACCESS_TOKEN"]
    shown = sdk("plugin", "run", "train", "--mode", "remote", "-t", token, status=1)
    assert "403: {'detail': \"the access token lacks the scope 'run'; it has read\"}" in shown

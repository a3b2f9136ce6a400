"""Secrets do not appear in the reports of tests that run actions; what the tests get is unchanged."""

from __future__ import annotations

import base64
import json

import pytest

from tests.parity.sessions import run_pytest, write

GIVEN, OF_MARKER, OF_PARAMS, MASKED = "given-Öl\\9", "of-the-marker-8", "of-the-params-7", "4711"
ACTIONS = """\
import base64
import json
import logging
import os

from synapse_runtime.decorators import action


def secrets(params):
    return os.environ["SERVICE_TOKEN"], os.environ["DB_PASSWORD"], params["login"]["api_key"]


@action
def tell(params, context):
    for secret in (*secrets(params), params["pin"], os.environ["DOOR_KEY"]):
        print("printed", secret, json.dumps(secret), base64.b64encode(secret.encode()).decode())
        logging.getLogger("acts").warning("logged %s", secret)
    return list(secrets(params))


@action
def fail(params, context):
    token, password, key = secrets(params)
    try:
        raise ValueError({"token": token})
    except ValueError as error:
        raise RuntimeError(f"no login with {password} and {key}") from error
"""
TESTS = """\
import os

import pytest

PARAMS = {"login": {"api_key": "of-the-params-7"}, "pin": "4711", "public": "shown-to-all"}
ENV = {"DB_PASSWORD": "of-the-marker-8", "SERVICE_TOKEN": os.environ["GIVEN"], "DOOR_KEY": 90817263}
pytestmark = pytest.mark.synapse(env=ENV)


def test_success(synapse_executor, capfd, caplog):
    result = synapse_executor.execute("tell", PARAMS)
    output = capfd.readouterr().out
    for secret in (*result, "4711"):
        assert f"printed {secret}" in output
        assert f"logged {secret}" in caplog.text
    print(output)


def test_wrong(synapse_executor):
    assert synapse_executor.execute("tell", PARAMS) == ["something", "else", "shown-to-all"]


def test_failure(synapse_executor):
    with pytest.raises(Exception) as caught:
        synapse_executor.execute("fail", PARAMS)
    assert "of-the-marker-8" in str(caught.value)
    raise caught.value
"""
PROJECT = {
    "pytest.ini": "[pytest]\nsynapse_mask = pin\n",
    "config.yaml": "code: talkative\nactions:\n  tell: {entrypoint: 'acts:tell'}\n  fail: {entrypoint: 'acts:fail'}\n",
    "acts.py": ACTIONS,
    "test_it.py": TESTS,
}


@pytest.mark.parametrize("mode", ["local", "task", "job"])
def test_secrets_are_not_in_reports(tmp_path, reached, mode):
    project = write(tmp_path, PROJECT)
    session = run_pytest(
        project,
        *(f"--synapse-mode={mode}", "-rA", "--junitxml=report.xml", "-o", "junit_logging=all", "--color=no"),
        env=reached | {"GIVEN": GIVEN},
    )
    written = (project / "report.xml").read_text(encoding="utf-8")
    assert "1 passed" in session.output, session.output
    assert "2 failed" in session.output
    # The source of the test file, which reports show, has the others.
    forms = (GIVEN, json.dumps(GIVEN)[1:-1], repr(GIVEN)[1:-1])
    hidden = [*forms, base64.b64encode(GIVEN.encode()).decode()]
    encoded = [base64.b64encode(secret.encode()).decode() for secret in (OF_MARKER, OF_PARAMS, MASKED)]
    messages = [f"printed {secret}" for secret in (OF_MARKER, OF_PARAMS, MASKED)]
    for text in (session.output, written):
        assert [secret for secret in (*hidden, *encoded, *messages) if secret in text] == []
        assert f"no login with {OF_MARKER}" not in text
    assert "RuntimeError: no login with <DB_PASSWORD> and <api_key>" in session.output
    assert "printed <pin> " in session.output
    assert "printed <DOOR_KEY> " in session.output
    assert "logged <SERVICE_TOKEN>" in session.output
    assert "shown-to-all" in session.output

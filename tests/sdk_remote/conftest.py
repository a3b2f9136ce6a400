"""`synapse serve`, and the reference SDK in an environment of its own: `nox -s sdk_remote` runs these tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience, within
from tests.server.conftest import Client, serving

# The interpreter of an environment in which the SDK is installed, and this package is not.
SDK_PYTHON = "SYNAPSE_SDK_PYTHON"

if SDK_PYTHON not in os.environ:
    collect_ignore_glob = ["*"]

CONFIG = """\
name: Digits
code: digits
version: 1.0.0
category: neural_net
data_type: image
description: Digits for tests.
readme: README.md
actions:
  train: {entrypoint: "plugin.main.TrainAction", method: job}
  fail: {entrypoint: "plugin.main.FailAction", method: job}
  inference: {entrypoint: "plugin.main.InferAction", method: serve}
  wait: {entrypoint: "plugin.main.WaitAction", method: job}
  deployment: {entrypoint: "plugin.main.DeployAction", method: job}
"""
MAIN = """\
import json
import os
import time
from pathlib import Path

from pydantic import BaseModel
from synapse_sdk.plugins.action import BaseAction


class TrainParams(BaseModel):
    epochs: int = 2


class NoParams(BaseModel):
    pass


class WaitParams(BaseModel):
    file: Path


class InferParams(BaseModel):
    input: dict | None = None
    path: str | None = None
    model: str | None = None
    method: str | None = None


class TrainAction(BaseAction[TrainParams]):
    def execute(self):
        for epoch in range(self.params.epochs):
            print(f"epoch {epoch} of {self.params.epochs}")
            self.ctx.set_progress(epoch + 1, self.params.epochs, "train")
            self.ctx.set_metrics({"epoch": epoch, "loss": float("nan") if epoch else 1.0}, "train")
        self.ctx.log("done", {"x": 1})
        return {"accuracy": 0.9}


class FailAction(BaseAction[NoParams]):
    def execute(self):
        print("before")
        raise ValueError("no weights")


class InferAction(BaseAction[InferParams]):
    def execute(self):
        if self.params.path == "/nowhere":
            raise ValueError("no weights")
        return {"answer": self.params.input, "path": self.params.path, "model": self.params.model}


class WaitAction(BaseAction[WaitParams]):
    def execute(self):
        variables = {name: value for name, value in os.environ.items() if name.startswith("SYNAPSE_")}
        self.params.file.with_suffix(".part").write_text(json.dumps(variables))
        self.params.file.with_suffix(".part").rename(self.params.file)
        time.sleep(600)


class DeployAction(BaseAction[NoParams]):
    def execute(self):
        return {"deployed": True}
"""


def write_digits(directory: Path, config: str = CONFIG) -> Path:
    """Write a plugin for the SDK; return its directory."""
    files = {"config.yaml": config, "README.md": "# Digits\n", "plugin/__init__.py": "", "plugin/main.py": MAIN}
    for name, text in {**files, ".gitignore": "secret.txt\n", "secret.txt": "mine\n"}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


@dataclass
class Sdk:
    """The SDK's command and interpreter, as one user with a home of their own.

    Attributes:
        client: A client of the server, with its admin's token.
        home: The user's home.
        plugin: A plugin of theirs.
    """

    client: Client
    home: Path
    plugin: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of its processes."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SYNAPSE", "PYTHON"))}
        return {**inherited, "HOME": str(self.home), "COLUMNS": "200", "NO_COLOR": "1"}

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return Path(os.environ[SDK_PYTHON])

    @property
    def command(self) -> Path:
        """Its command."""
        return self.python.with_name("synapse")

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Run its command and return what it prints."""
        return self._run([str(self.command), *arguments], status)

    def run(self, code: str, *arguments: str, status: int = 0, **variables: str) -> Any:
        """Run Python code, and return the JSON that its last line is, if it is one."""
        printed = self._run([str(self.python), "-c", code, *arguments], status, **variables)
        lines = printed.strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1][:1] in '[{"' else printed

    def work(self, variables: dict[str, str], entrypoint: str, params: Any) -> None:
        """Run an action as the SDK's worker, which reports to the server.

        Args:
            variables: The variables of a run's process: the server, the job, and the token that is valid for it.
            entrypoint: The action.
            params: Its params.
        """
        action = {"SYNAPSE_ACTION_ENTRYPOINT": entrypoint, "SYNAPSE_ACTION_PARAMS": json.dumps(params)}
        self._run([str(self.python), "-m", "synapse_sdk.plugins.entrypoint"], None, **variables, **action)

    def start(self, action: str, params: Any = None, *options: str) -> str:
        """Start a job by its command, and return the job's id."""
        printed = self("plugin", "run", action, "--mode", "remote", "--params", json.dumps(params or {}), *options)
        found = re.search(r"'job_id': '([0-9a-f-]{36})'", printed)
        assert found, printed
        return found[1]

    def start_waiting(self, file: Path) -> dict[str, str]:
        """Start a job that runs until the server ends, and return the variables of its process."""
        self.client.start("wait", {"file": str(file)}, plugin="digits", debug=True)
        assert within(30, file.exists)
        variables: dict[str, str] = json.loads(file.read_text())
        return variables

    def _run(self, command: list[str], status: int | None, **variables: str) -> str:
        done = subprocess.run(
            command,
            env={**self.env, **variables},
            cwd=self.plugin,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience(120),
        )
        assert status is None or done.returncode == status, done.stdout
        return done.stdout


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of `synapse serve`."""
    state = {**os.environ, "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    with serving(state, "--ephemeral", "--concurrency", "8") as served:
        yield served.client


@pytest.fixture(scope="session")
def sdk(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Sdk:
    """A user who has logged in with the SDK's command, chosen the agent in its config file, and published a plugin."""
    directory = tmp_path_factory.mktemp("sdk")
    user = Sdk(client, directory / "home", write_digits(directory / "digits"))
    user.home.mkdir()
    user("login", "--host", client.host, "--token", client.token)
    file = user.home / ".synapse" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "agent": {"id": 1, "name": "local"}, "mine": [1]}))
    user("plugin", "publish", "-y")
    return user

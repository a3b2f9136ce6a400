"""Random hostile plugins and command lines: each ends with a documented exit status, and no traceback of this package.

The inputs are random but the same in each run; the number in a test's name is its seed.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from synapse_runtime.cli.app import run as run_command

STATUSES = (0, 1, 2, 3, 124)
INPUTS = 300
CANARY = "code_has_run"
# Texts that parsers, terminals and file systems may not expect.
TEXTS = [
    *(
        "",
        " ",
        "\t",
        "\n",
        "x",
        "m:go",
        "m.go",
        "m:",
        ":go",
        ":",
        ".",
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "~",
        "-",
        "--",
    ),
    *(
        "é",
        "日本語",
        "🔑",
        "\u202e",
        "\x1b[2J",
        "\x00",
        "\ufeff",
        "a" * 5000,
        "a\nb",
        "a: b",
        "[",
        "{",
        "}",
        "*a",
        "&a",
    ),
    *("!!python/object:os.system x", "%", "@", "`", "null", "true", "NaN", ".inf", "-.inf", "1e999", "0x10", "0o17"),
    *(
        "9" * 400,
        "2024-01-01",
        "12:30:45",
        "=",
        "<<",
        "${HOME}",
        "$(touch x)",
        "m:go.x.y",
        "class",
        "__import__",
        "os:system",
    ),
]
KEYS = [
    *(
        "code",
        "name",
        "version",
        "variant",
        "category",
        "description",
        "readme",
        "env",
        "runtime_env",
        "package_manager",
    ),
    *("package_manager_options", "wheels_dir", "requires", "dependencies", "tags", "data_type", "tasks", "actions"),
    *(
        "supported_data_types",
        "supported_annotation_tools",
        "smart_tool",
        "entrypoint",
        "method",
        "params_schema",
        "x-y",
    ),
    *("pip", "uv", "env_vars", "python", "sdk", "cuda", "excludes", "go", "train", "unknown"),
]
MODULE = f"""\
from pathlib import Path

from pydantic import BaseModel

from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

Path(__file__).with_name({CANARY!r}).touch()


class Params(BaseModel):
    number: int = 1
    texts: list[str] = []
    nested: dict[str, float] = {{}}


class Go(BaseAction[Params]):
    def execute(self):
        return self.params.number


@action
def go(params, context):
    return params
"""


class Hostile:
    """Creates random input.

    Args:
        seed: Determines it.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        if self.random.random() < 0.8:
            return self.random.choice(TEXTS)
        return "".join(chr(self.random.choice((*range(0x20, 0x7F), 0x85, 0xA0, 0x2028, 0x1F511))) for _ in range(12))

    def value(self, depth: int = 0) -> object:
        kind = self.random.randrange(9 if depth < 4 else 6)
        if kind < 3:
            return self.text()
        if kind == 3:
            return self.random.choice([None, True, False, 0, -1, 10**30, 3.5, float("nan"), float("inf")])
        if kind < 6:
            return self.random.choice([[], {}, "m:go", "m:Go", 7])
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return self.mapping(depth + 1)

    def mapping(self, depth: int) -> dict[str, object]:
        names = (self.random.choice(KEYS) if self.random.random() < 0.8 else self.text() for _ in range(4))
        return {name: self.value(depth) for name in names}

    def config(self) -> bytes:
        """Return the content of a config file."""
        valid = "code: x\nname: x\nactions:\n  go: {entrypoint: 'm:go'}\n  Go: {entrypoint: 'm:Go'}\n"
        kind = min(self.random.randrange(16), 7)
        if kind == 0:
            return valid.encode() + bytes(self.random.randrange(256) for _ in range(40))
        if kind == 1:
            cut = self.random.randrange(len(valid))
            return (valid[:cut] + self.text() + valid[cut:]).encode("utf-8", "surrogatepass")
        if kind == 2:
            return self.random.choice(
                [b"", b"\x00", b"\xff\xfe", b"[" * 3000, b"- " * 3000, b"a: &a [*a]", b"? " * 999]
            )
        if kind == 3:
            bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijk"))
            return (bomb + valid).encode()
        if kind < 6:
            return json.dumps({**self.mapping(0), "actions": self.value()}).encode()
        if kind == 6:
            return json.dumps({"code": "x", "actions": {"go": self.value(1), "Go": {"entrypoint": "m:Go"}}}).encode()
        return valid.encode()

    def lines(self) -> str:
        """Return lines for a requirements or an environment file."""
        starts = (
            "-r ",
            "-c ",
            "--hash=",
            "-e ",
            "pydantic",
            "A=",
            "export B=",
            "[",
            "'",
            "x = ",
            "git+https://",
            "# ",
            "",
        )
        return "\n".join(self.random.choice(starts) + self.text() for _ in range(self.random.randrange(6)))

    def write_plugin(self, root: Path) -> None:
        """Write a plugin's directory."""
        kind = self.random.randrange(20)
        config = root / self.random.choice(["config.yaml"] * 4 + ["synapse.yml"])
        if kind == 0:
            config.mkdir()
        elif kind == 1:
            config.symlink_to(config)
        elif kind == 2:
            config.symlink_to("/dev/null")
        elif kind == 3:
            os.mkfifo(config)
        else:
            config.write_bytes(self.config())
        (root / "m.py").write_text(MODULE)
        (root / "requirements.txt").write_bytes(self.lines().encode("utf-8", "surrogatepass"))
        (root / "values.env").write_bytes(self.lines().encode("utf-8", "surrogatepass"))
        (root / "values.toml").write_bytes(self.lines().encode("utf-8", "surrogatepass"))

    def arguments(self, root: Path) -> list[str]:
        """Return the arguments of a command."""
        choose = self.random.choice
        command = choose(
            ["list", "list", "actions", "schema", "run", "run", "run", "check"] if choose(range(3)) else ["run"]
        )
        path = str(choose([root] * 20 + [root / "config.yaml", root / "m.py", root / "nowhere", Path("/dev/null")]))
        if command == "list":
            return ["plugin", "list", path, *choose([[], ["--json"]])]
        if command == "check":
            return ["plugin", "check", path, *choose([[], ["--json"], ["--strict"]])]
        if command == "actions":
            return ["plugin", "actions", "--path", path, *choose([[], ["--json"]])]
        name = choose(["go", "Go", "m:go", "m:Go", self.text()])
        if command == "schema":
            return ["plugin", "schema", name, "--path", path, *choose([[], ["--result"]])]
        return ["plugin", "run", name, "--mode", "local", "--path", path, *self.run_options(root)]

    def run_options(self, root: Path) -> list[str]:
        choose = self.random.choice
        options: list[Callable[[], list[str]]] = [
            lambda: ["--params", choose([json.dumps(self.value()), self.text(), "[" * 20_000, "@" + self.text()])],
            lambda: ["--param", choose(["number=", "texts=", "nested.x=", "=", ""]) + self.text()],
            lambda: ["--env", choose(["A=", "", "=", "A-B="]) + self.text()],
            lambda: ["--env-file", str(root / choose(["values.env", "values.toml", "m.py", "nowhere", "."]))],
            lambda: ["--timeout", choose(["5", "inf", "nan", "-1", "1e999", self.text()])],
            lambda: ["--input", choose([json.dumps(self.value()), self.text()])],
            lambda: ["--lang", self.text()],
            lambda: [choose(["--json", "--strict", "--no-debug", "--detach", "--memory=" + self.text()])],
        ]
        return [word for option in self.random.sample(options, self.random.randrange(4)) for word in option()]


@pytest.mark.parametrize("seeds", [range(start, start + 30) for start in range(0, INPUTS, 30)], ids=str)
def test_command_ends_with_a_documented_status(seeds, tmp_path, capfd, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    for seed in seeds:
        hostile = Hostile(seed)
        root = tmp_path / f"plugin{seed}"
        root.mkdir()
        hostile.write_plugin(root)
        arguments = hostile.arguments(root)
        if any("\0" in word for word in arguments):  # no process can be given these
            continue
        status = run_command(arguments)
        output = capfd.readouterr()
        told = f"seed {seed}: {arguments}\n{output.err}"
        assert status in STATUSES, told
        ours = re.findall(r'File ".*/synapse_runtime/.*', output.err)
        assert not ours, told
        assert "\x1b" not in output.err, told
        if "list" in arguments:
            assert not (root / CANARY).exists(), told

"""Tests for `check_plugin`: all problems in one run, each with file and line."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins import requirements
from synapse_runtime.plugins.introspection_worker import ModuleRequest, Request, _introspect_module
from synapse_runtime.plugins.lint import check_plugin

GOOD = {
    "config.yaml": """\
        code: lab
        name: Lab
        requires: {python: '>=3.11', sdk: '>=2026.1', cuda: '>=11.8'}
        readme: README.md
        wheels_dir: wheels
        env: {LEVEL: high}
        runtime_env: {pip: [pytest, "--no-deps"]}
        actions:
          train: {entrypoint: "plugin.train:Train", method: job}
          infer: plugin.train.infer
          serve: {entrypoint: "plugin.train:Params", method: serve}
        """,
    "plugin/__init__.py": "",
    "plugin/train.py": """\
        import os

        from pydantic import BaseModel

        from synapse_runtime.action import BaseAction
        from synapse_runtime.decorators import action

        LEVEL = os.environ["LEVEL"]


        class Params(BaseModel):
            epochs: int = 1


        class Train(BaseAction[Params]):
            def execute(self):
                return 1


        @action(params=Params)
        def infer(params, context):
            return 1
        """,
    "requirements.txt": "pydantic>=2  # models\n\n-r more.txt\n--extra-index-url https://example.org\n",
    "more.txt": "pytest>=8 ; python_version >= '3'\nno-such ; python_version < '3'\n-r requirements.txt\n",
    "README.md": "",
    "wheels/lab-1.0-py3-none-any.whl": "",
}


def problems_of(root: Path) -> list[tuple[str, int | None, str, str]]:
    problems = check_plugin(root).problems
    return [(str(one.path.relative_to(root)) if one.path else "", one.line, one.level, one.text) for one in problems]


def test_valid_plugin_has_no_problems(write_plugin):
    checked = check_plugin(write_plugin(config=GOOD["config.yaml"], files=GOOD))
    assert checked.problems == ()
    assert checked.checked == "config.yaml, 3 actions, 2 params models, 1 wheel, 3 requirements"


BAD = {
    "config.yaml": """\
        category: neural_net
        colur: blue
        env: {A=B: s3cret}
        requires: {python: '<3.11', sdk: later, cuda: new}
        readme: docs.md
        wheels_dir: ../wheels
        runtime_env: {uv: {packages: ["no-such-project", "a b"]}}
        package_manager: conda
        actions:
          one: {entrypoint: "plugin.trian:Train"}
          two: {entrypoint: "plugin.train:Trian"}
          three: {entrypoint: "plugin.train:helper"}
          four: {entrypoint: "plugin.needs:Four"}
          five: {entrypoint: "plugin.again:Five"}
          six:
          seven: {entrypoint: "plugin.crash:Seven", methd: job}
          eight: {entrypoint: nonsense}
          nine: {entrypoint: "plugin.train:CONSTANT"}
          ten: {entrypoint: "plugin.train:Params", method: job}
          eleven: {entrypoint: "elsewhere.actions:Eleven"}
        """,
    "plugin/__init__.py": "",
    "plugin/train.py": """\
        from pydantic import BaseModel

        from synapse_runtime.action import BaseAction

        CONSTANT = 1


        class Params(BaseModel):
            json: str = ""


        class Train(BaseAction[Params]):
            def execute(self):
                return 1


        def helper():
            return 1
        """,
    "plugin/needs.py": "import no_such_module\n",
    "plugin/again.py": "from plugin import needs\n",
    "plugin/crash.py": "import os\n\nos.abort()\n",
    "requirements.txt": """\
        pydantic<1
        no-such-project>=1 \\
            --hash=sha256:00
        a b
        ./missing.whl
        https://user:s3cret@example.org/x.whl
        -r missing.txt
        """,
}


def test_all_problems_are_reported_at_once(write_plugin):
    root = write_plugin(config=BAD["config.yaml"], files=BAD)
    problems = problems_of(root)
    assert [(file, line, level) for file, line, level, _ in problems if file == "config.yaml"] == [
        ("config.yaml", None, "warning"),
        ("config.yaml", 1, "warning"),
        ("config.yaml", 2, "warning"),
        ("config.yaml", 3, "error"),
        ("config.yaml", 4, "error"),
        ("config.yaml", 4, "error"),
        ("config.yaml", 4, "warning"),
        ("config.yaml", 5, "warning"),
        ("config.yaml", 6, "error"),
        ("config.yaml", 7, "error"),
        ("config.yaml", 7, "warning"),
        ("config.yaml", 8, "error"),
        *(("config.yaml", line, "error") for line in (10, 11, 12, 15)),
        ("config.yaml", 16, "warning"),
        *(("config.yaml", line, "error") for line in (17, 18, 19, 20)),
    ]
    texts = {text for _, _, _, text in problems}
    python = platform.python_version()
    assert texts >= {
        "'code' is missing; add `code: …`, the plugin's unique id",
        "a neural_net plugin needs a data_type; add `data_type: image` (or text, video, pcd, audio)",
        "unknown field 'colur'; it has no effect",
        "invalid environment variable 'A=B': empty name, '=' in its name, or NUL in its name or value",
        "requires.sdk: 'later' is not a version specifier; expected one such as '>=3.11'",
        f"the plugin requires Python <3.11, but this is {python}",
        "readme: file 'docs.md' does not exist; create it",
        "wheels_dir: '../wheels' is outside the plugin's directory",
        "no-such-project is not installed; install it",
        "package_manager: Input should be 'pip' or 'uv'",
        "action 'one': module 'plugin.trian' does not exist; did you mean 'plugin.train'?",
        "action 'two': module 'plugin.train' has no 'Trian'; did you mean 'Train'?",
        "action 'three': plugin.train:helper is a function, not an action; derive the class from BaseAction or "
        "decorate the function with @action",
        "action 'six' has no entrypoint; add `entrypoint: module:Name`",
        "unknown field 'methd' in actions.seven; did you mean 'method'?",
        "actions.eight.entrypoint: expected 'module:Name' or 'module.Name', got 'nonsense'",
        "action 'nine': plugin.train:CONSTANT is an int, not an action; derive the class from BaseAction or decorate "
        "the function with @action",
        "action 'eleven': module 'elsewhere.actions' does not exist; add elsewhere/actions.py",
    }
    others = [one for one in problems if one[0] != "config.yaml"]
    (wrong_version,) = (text for _, _, _, text in others if text.startswith("pydantic "))
    (invalid_requirement,) = (text for _, _, _, text in others if text.startswith("'a b' is not a valid requirement: "))
    assert others == [
        (
            "plugin/crash.py",
            3,
            "error",
            "cannot import plugin.crash (used by action 'seven'): Python crashed with SIGABRT",
        ),
        (
            "plugin/needs.py",
            1,
            "error",
            "cannot import plugin.needs, plugin.again (used by actions 'four', 'five'): ModuleNotFoundError: "
            "No module named 'no_such_module'; install it and add it to requirements.txt",
        ),
        ("requirements.txt", 1, "warning", wrong_version),  # names versions
        ("requirements.txt", 2, "warning", "no-such-project is not installed; install it"),
        ("requirements.txt", 4, "error", invalid_requirement),
        ("requirements.txt", 5, "error", "file './missing.whl' does not exist; add it or remove this line"),
        ("requirements.txt", 7, "error", "file 'missing.txt' does not exist; add it or remove this line"),
    ]
    assert wrong_version.endswith("is installed, but <1 is required; install a matching version")
    assert "s3cret" not in str(problems)


def test_invalid_config_file_is_reported_along_with_requirements(write_plugin):
    root = write_plugin(config="code: x\ncode: y\nname: !x y\n", files={"requirements.txt": "a b\n"})
    assert [(file, line) for file, line, _, _ in problems_of(root)] == [
        ("config.yaml", 2),
        ("config.yaml", 3),
        ("requirements.txt", 1),
    ]


def test_params_model_problem_is_reported_for_each_action_that_uses_it(write_plugin):
    files = {
        "a.py": """\
            from pydantic import BaseModel

            from synapse_runtime.decorators import action


            class Params(BaseModel):
                schema: str = ""


            @action(params=Params)
            def one(params, context): ...


            @action(params=Params)
            def two(params, context): ...
            """
    }
    root = write_plugin(config="code: x\nname: x\nactions: {one: a.one, two: a.two}\n", files=files)
    text = "action {!r}: parameter 'schema' shadows BaseModel.schema; rename it"
    assert problems_of(root) == [("a.py", 7, "warning", text.format(name)) for name in ("one", "two")]


def test_params_model_of_another_package_is_reported_only_for_errors(write_plugin, monkeypatch, tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "from pydantic import BaseModel\n\n"
        "class Hiding(BaseModel):\n    copy: bool = True\n\n"
        "class Undefined(BaseModel):\n    other: 'Nowhere'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = {
        "a.py": """\
            import elsewhere

            from synapse_runtime.decorators import action


            @action(params=elsewhere.Hiding)
            def one(params, context): ...


            @action(params=elsewhere.Undefined)
            def two(params, context): ...
            """
    }
    root = write_plugin(config="code: x\nname: x\nactions: {one: a.one, two: a.two}\n", files=files)
    ((file, line, level, text),) = problems_of(root)
    assert (file, line, level) == ("a.py", 10, "error")
    assert text.startswith("action 'two': Undefined cannot be used: ")


def test_directory_without_config_file_raises_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.yaml or synapse\.yaml in this directory"):
        check_plugin(tmp_path)


def test_plugin_without_actions_gets_a_warning(write_plugin):
    assert problems_of(write_plugin(config="code: x\nname: x\n")) == [
        (
            "config.yaml",
            None,
            "warning",
            "the plugin has no actions; add them, or run `synapse plugin update-config`",
        )
    ]


def test_wheel_file_names_are_checked(tmp_path):
    for name in (
        "good-1.0-py3-none-any.whl",
        "many-1.0-cp39-cp39-win32.whl",
        "many-1.0-py3-none-any.whl",
        "other-1.0-cp39-cp39-win32.whl",
        "bad.whl",
        "no_wheel.txt",
    ):
        (tmp_path / name).touch()
    count, problems = requirements.check_wheels(tmp_path)
    assert count == 5
    assert [(one.path, one.level) for one in problems] == [(tmp_path / "bad.whl", "error"), (tmp_path, "warning")]
    assert problems[1].text == "no wheel of other supports this Python and platform; it cannot be installed here"


@pytest.mark.parametrize(
    ("text", "version", "fits"),
    [(">=3.11", "3.12", True), ("3.11", "3.11.4", True), ("3.11", "3.12", False), ("==1.0", "1.0", True)],
)
def test_specifier_accepts_specifiers_and_single_versions(text, version, fits):
    versions = requirements.specifier(text)
    assert versions is not None
    assert versions.contains(version) is fits


def test_specifier_returns_none_for_other_text():
    assert requirements.specifier("new") is None


def test_urls_of_included_files_are_up_to_the_installer(write_plugin):
    lines = "-c https://example.org/constraints-3.11.txt\n-r https://example.org/more.txt\npydantic\n"
    root = write_plugin(config="code: x\nname: x\nactions: {}\n", files={"requirements.txt": lines})
    assert requirements.check_file(root / "requirements.txt") == (1, [])


def lines_executed(call: Callable[[], object]) -> int:
    """Return how many lines of Python a call executes: unlike its time, this is the same on each machine."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


PLUGINS_OF_ANY_SIZE = {
    "functions": ("{name}: {{entrypoint: 'm:{name}'}}", "@action\ndef {name}(params, context):\n    pass\n"),
    "classes": (
        "{name}: {{entrypoint: 'm:{name}'}}",
        "class P{name}(BaseModel):\n    json: str = ''\n\nclass {name}(BaseAction[P{name}]):\n    pass\n",
    ),
    "names that do not exist": ("{name}: {{entrypoint: 'm:{name}'}}", "def other_{name}():\n    pass\n"),
    "modules that do not exist": ("{name}: {{entrypoint: '{name}:f'}}", ""),
    "invalid fields": ("{name}: {{entrypoint: [3], methd: job}}", ""),
    "no entrypoints": ("{name}: {{method: job}}", ""),
    "a list of actions": ("- {{name: {name}, entrypoint: 'm:{name}'}}", "def {name}():\n    pass\n"),
}


@pytest.mark.parametrize("kind", PLUGINS_OF_ANY_SIZE)
def test_work_grows_linearly_with_the_number_of_actions(write_plugin, monkeypatch, kind):
    spec, code = PLUGINS_OF_ANY_SIZE[kind]

    def work(count: int) -> tuple[int, int]:
        names = [f"action{number}" for number in range(count)]
        actions = "".join(f"  {spec.format(name=name)}\n" for name in names)
        imports = ("pydantic import BaseModel", "synapse_runtime.action import BaseAction")
        start = "".join(f"from {one}\n" for one in (*imports, "synapse_runtime.decorators import action")) + "\n"
        root = write_plugin(
            f"plugin{count}",
            config="code: x\nname: x\nactions:\n" + actions,
            files={"m.py": start + "".join(code.format(name=name) for name in names)},
        )
        here = lines_executed(lambda: check_plugin(root))
        monkeypatch.syspath_prepend(str(root))
        monkeypatch.delitem(sys.modules, "m", raising=False)
        with warnings.catch_warnings(action="ignore"):  # pydantic's, about the name of the param
            __import__("m")
        target = ModuleRequest(module="m", names=names)
        worker = lines_executed(
            lambda: _introspect_module(target, Request(root=str(root), seconds=60, modules=[target]))
        )
        return here, worker

    (here, worker), (here_4, worker_4) = work(100), work(400)
    assert here_4 < 5 * here
    assert worker_4 < 5 * worker


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the plugin; without quotes, a line of it looks like the name of a package."""
    path = tmp_path / "secret.txt"
    path.write_text("root:canary-1:0\ncanary-two\n")
    return path


@pytest.mark.parametrize(
    "line", ["-r {}", "-r{}", "--requirement={}", "-c {}", "-r ../secret.txt", "-r file://{}", "-r more/link.txt"]
)
def test_requirements_outside_the_plugin_and_its_repository_are_not_read(write_plugin, secret, line):
    root = write_plugin(
        config="code: x\nname: x\nactions: {}\n", files={"requirements.txt": line.format(secret) + "\n", "more/a": ""}
    )
    (root / "more" / "link.txt").symlink_to(secret)
    count, (problem,) = requirements.check_file(root / "requirements.txt")
    assert count == 0
    assert problem.text.endswith(f"is outside {root} and is not read; move it there or remove this line")
    assert problem.line == 1
    assert "canary" not in problem.text


def test_requirements_file_that_links_to_a_file_elsewhere_is_not_read(write_plugin, secret):
    root = write_plugin(config="code: x\n")
    (root / "requirements.txt").symlink_to(secret)
    _, (problem,) = requirements.check_file(root / "requirements.txt")
    assert problem.text.startswith("the file is a link to one outside ")
    assert "canary" not in problem.text


def test_files_of_the_repository_may_be_included_but_their_lines_are_not_shown(write_plugin, tmp_path, secret):
    (tmp_path / ".git").mkdir()
    root = write_plugin(config="code: x\n", files={"requirements.txt": "-r ../secret.txt\npydantic\n"})
    count, problems = requirements.check_file(root / "requirements.txt")
    assert count == 3
    assert [(one.path.name, one.line) for one in problems] == [("secret.txt", 1), ("secret.txt", 2)]
    assert problems[0].text == "this is not a valid requirement; expected one such as 'numpy>=2'"
    assert problems[1].text == "this requirement is not installed; install it"


def test_requirements_files_that_include_each_other_are_read_once(write_plugin):
    root = write_plugin(
        config="code: x\n", files={"requirements.txt": "-r a/../requirements.txt\npydantic\n", "a/b": ""}
    )
    assert requirements.check_file(root / "requirements.txt") == (1, [])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_problems(write_plugin, name):
    lines = f"-r {name}\n./{name}\n"
    root = write_plugin(config="code: x\n", files={"requirements.txt": lines})
    assert [one.line for one in requirements.check_file(root / "requirements.txt")[1]] == [1, 2]


def test_large_requirements_file_is_not_read_into_memory(write_plugin):
    root = write_plugin(config="code: x\n")
    with (root / "requirements.txt").open("wb") as file:
        file.truncate(1 << 40)
    _, (problem,) = requirements.check_file(root / "requirements.txt")
    assert problem.text == "the file is larger than 1,000,000 bytes; split or shorten it"


def test_requirements_file_that_cannot_be_read_is_a_problem(unreadable_file):
    _, (problem,) = requirements.check_file(unreadable_file("requirements.txt"))
    assert problem.text == "cannot be read: Permission denied; change its permissions or remove it"


def test_modules_with_names_of_pythons_own_are_reported(write_plugin):
    config = "code: lab\nname: Lab\nactions:\n  day: {entrypoint: 'calendar:day'}\n  run: {entrypoint: 'work:run'}\n"
    action = "from synapse_runtime.decorators import action\n@action\ndef {}(params, context): ...\n"
    root = write_plugin(
        config=config,
        files={
            "calendar.py": action.format("day"),
            "work.py": action.format("run"),
            "logging.py": "",
            "json/helpers.py": "",
            "email/template.html": "",  # no modules
            "test/test_work.py": "",  # Python has a package `test`, which nobody imports
        },
    )
    instead = "of Python's standard library is imported in its place; rename it"
    assert problems_of(root) == [
        (
            "config.yaml",
            4,
            "error",
            "action 'day': module 'calendar' is imported from Python's standard library; rename the plugin's",
        ),
        ("calendar.py", None, "warning", f"module 'calendar' {instead}"),
        ("json", None, "warning", f"module 'json' {instead}"),
        ("logging.py", None, "warning", f"module 'logging' {instead}"),
    ]

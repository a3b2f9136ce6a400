"""`synapse plugin create`: new plugins work, existing files stay, and nothing is written by halves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.cli import scaffold
from synapse_runtime.enums import PluginCategory
from synapse_runtime.errors import ConfigError
from synapse_runtime.plugins.config_sync import plan_update
from synapse_runtime.plugins.plugin import Plugin
from tests.cli.processes import Finished, Synapse, status_of, synapse_in
from tests.patience import patience
from tests.pytest_synapse.conftest import session_environment

CUSTOM = PluginCategory.CUSTOM
FILES = {"config.yaml": "code: a\nactions: {}\n", "plugin/__init__.py": "", "plugin/run.py": "text"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Synapse]:
    """The command, in an empty directory."""
    with synapse_in(tmp_path) as command:
        yield command


def create(command: Synapse, *arguments: str) -> Finished:
    return command("plugin", "create", *arguments)


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


class TestNewPlugin:
    def test_generated_tests_pass_for_each_category_and_style(self, tmp_path: Path) -> None:
        for category, actions in scaffold.DEFAULT_ACTIONS.items():
            plugin = scaffold.NewPlugin(f"of-{category}", f"Of {category}", category, actions)
            scaffold.write(plugin.files(), tmp_path / category)
        style = scaffold.NewPlugin("by-sdk", "By SDK", CUSTOM, ("label_all", "train_sdk"), sdk=True)
        scaffold.write(style.files(), tmp_path / "sdk")

        done = pytest_over(tmp_path, "--synapse-mode=local")

        assert " passed" in done.stdout, done.stdout
        assert done.returncode == 0, done.stdout
        assert {path.parent.parent.name for path in tmp_path.glob("*/tests/test_*.py")} == {*PluginCategory, "sdk"}

    def test_generated_tests_pass_on_ray(self, tmp_path: Path) -> None:
        plugin = scaffold.NewPlugin("all-kinds", "All", CUSTOM, ("train", "infer", "export", "run"))
        scaffold.write(plugin.files(), tmp_path / "plugin")

        one_of_each = "learns_the_line or predicts_for_each or writes_one_row or processes_each"
        done = pytest_over(tmp_path / "plugin", "--synapse-mode=task,job", "-k", one_of_each)

        assert done.returncode == 0, done.stdout
        assert "task 4 runs" in done.stdout
        assert "job 4 runs" in done.stdout

    @pytest.mark.parametrize("sdk", [False, True])
    def test_generated_code_passes_ruff(self, tmp_path: Path, sdk: bool) -> None:
        actions = ("train", "infer", "export", "run_all")
        scaffold.write(scaffold.NewPlugin("a", "A", CUSTOM, actions, sdk).files(), tmp_path)
        ruff = [sys.executable, "-m", "ruff"]
        style = ("--isolated", "--line-length", "100", "--no-cache", ".")
        rules = ("--select", "E,F,I,B,UP,PT,SIM,RUF")
        for command in (["check", *rules, *style], ["format", "--check", *style]):
            done = subprocess.run([*ruff, *command], cwd=tmp_path, capture_output=True, text=True, timeout=patience(30))
            assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("sdk", [False, True])
    def test_config_is_up_to_date_with_the_code(self, tmp_path: Path, sdk: bool) -> None:
        actions = ("train", "tune", "infer", "export", "upload", "run")
        scaffold.write(scaffold.NewPlugin("a", "A", CUSTOM, actions, sdk).files(), tmp_path)
        update = plan_update(tmp_path)
        assert (update.problems, update.diff) == ((), "")
        assert update.before.count("train_ui_schemas:") == 5
        assert update.before.count("group_name") == 1

    def test_config_names_every_action(self, tmp_path: Path) -> None:
        plugin = scaffold.NewPlugin(
            "my-plugin", "Größe: 플러그인 #1 'x'", PluginCategory.NEURAL_NET, ("train", "auto_label")
        )
        scaffold.write(plugin.files(), tmp_path / "made")

        loaded = Plugin.load(tmp_path / "made")
        assert loaded.manifest.name == "Größe: 플러그인 #1 'x'"
        assert loaded.action_names == ("train", "auto_label")
        assert loaded.load_action("auto_label").__name__ == "AutoLabelAction"
        assert loaded.manifest.actions["train"].method == "job"

    def test_sdk_style_imports_synapse_sdk_only_in_actions(self) -> None:
        files = scaffold.NewPlugin("a", "A", CUSTOM, ("run",), sdk=True).files()
        assert "from synapse_sdk.plugins.action import BaseAction" in files["plugin/run.py"]
        assert "from synapse_runtime.errors import" in files["tests/test_run.py"]


class TestCommand:
    def test_creates_a_directory_named_after_the_code(self, here: Synapse, tmp_path: Path) -> None:
        done = create(here, "--code", "my-plugin", "--category", "export", "--name", "Zähler")
        assert done.status == 0, done.stderr
        assert done.stdout.splitlines()[0] == "Created plugin my-plugin in my-plugin:"
        assert "  plugin/export.py" in done.stdout.splitlines()
        assert "  cd my-plugin\n  synapse plugin check\n  synapse plugin test\n" in done.stderr
        assert Plugin.load(tmp_path / "my-plugin").manifest.name == "Zähler"
        assert files_below(tmp_path) == {"my-plugin"} | {
            f"my-plugin/{name}" for name in files_below(tmp_path / "my-plugin")
        }

    def test_prints_json(self, here: Synapse, tmp_path: Path) -> None:
        done = create(
            here, "deep/er", "--name", "Mein Plugin", "--yes", "--action", "a", "-a", "b", "-a", "a", "--json"
        )
        assert (done.status, done.stderr) == (0, "")
        assert done.result["code"] == "mein-plugin"
        assert done.result["path"] == str(tmp_path / "deep" / "er")
        assert done.result["actions"] == ["a", "b"]
        assert all((tmp_path / "deep" / "er" / name).is_file() for name in done.result["files"])

    def test_prompts_on_a_terminal_and_repeats_after_an_invalid_answer(self, here: Synapse, tmp_path: Path) -> None:
        with here.on_terminal(command=("plugin", "create")) as child:
            for question, answer in [
                (r"Code: ", "../up"),
                (r"invalid code '../up': use at most 64 lowercase letters.*Code: ", "digits"),
                (r"Name \[Digits\]: ", "숫자 읽기"),
                (r"  neural_net +train, infer.*Category \[custom\]: ", "neural-nte"),
                (r"Did you mean 'neural_net'\?.*Category \[custom\]: ", "neural_net"),
                (r"Actions \[train infer\]: ", "train, evaluate"),
                (r"Create it in digits\? \[Y/n\]: ", "y"),
            ]:
                child.expect(question)
                child.sendline(answer)
            child.expect("Created plugin digits in digits:")
            assert status_of(child) == 0
        made = Plugin.load(tmp_path / "digits")
        assert (made.manifest.name, made.action_names) == ("숫자 읽기", ("train", "evaluate"))

    def test_ctrl_c_leaves_nothing(self, here: Synapse, tmp_path: Path) -> None:
        with here.on_terminal("--code", "a", "--name", "A", command=("plugin", "create")) as child:
            child.expect("Category")
            child.sendcontrol("c")
            child.expect("interrupted")
            assert status_of(child) == 130
        assert files_below(tmp_path) == set()

    def test_without_a_terminal_names_the_required_options(self, here: Synapse, tmp_path: Path) -> None:
        done = create(here, "--code", "a")
        assert (done.status, done.stdout) == (2, "")
        assert "not a terminal, cannot prompt: pass --code and --category, or --yes" in done.stderr
        done = create(here, "--yes", "--name", "플러그인")
        assert done.status == 2
        assert "pass --code, such as my-plugin" in done.stderr
        assert files_below(tmp_path) == set()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("--code", "../up"), "Invalid value for --code: invalid code '../up': use at most 64 lowercase letters"),
            (("--code", "a", "--action", "Train"), "Invalid value for --action: invalid action name 'Train'"),
            (("--code", "a", "--category", "exprot"), "unknown category 'exprot'. Did you mean 'export'?"),
            (("--code", "a", "--name", " "), "invalid name '': expected one line of printable text"),
        ],
    )
    def test_invalid_options_raise_a_usage_error(
        self, here: Synapse, tmp_path: Path, arguments: tuple[str, ...], text: str
    ) -> None:
        done = create(here, *arguments, "--yes")
        assert (done.status, done.stdout) == (2, "")
        assert text in " ".join(done.stderr.split())
        assert files_below(tmp_path) == set()

    def test_lists_existing_files_and_writes_nothing(self, here: Synapse, tmp_path: Path) -> None:
        (tmp_path / "a" / "plugin").mkdir(parents=True)
        (tmp_path / "a" / "README.md").write_text("mine")
        (tmp_path / "a" / "plugin" / "run.py").write_text("mine too")
        (tmp_path / "a" / "synapse.yaml").write_text("code: other\n")
        before = files_below(tmp_path)
        done = create(here, "a", "--code", "a", "--yes")
        assert (done.status, done.stdout) == (2, "")
        assert [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")] == [
            "a/README.md",
            "a/plugin/run.py",
            "a/synapse.yaml",
        ]
        assert files_below(tmp_path) == before
        assert (tmp_path / "a" / "README.md").read_text() == "mine"

    def test_leaves_other_files_in_the_directory(self, here: Synapse, tmp_path: Path) -> None:
        (tmp_path / "a" / "plugin").mkdir(parents=True)
        (tmp_path / "a" / "plugin" / "mine.py").write_text("mine")
        assert create(here, "a", "--code", "a", "--yes").status == 0
        assert (tmp_path / "a" / "plugin" / "mine.py").read_text() == "mine"
        assert (tmp_path / "a" / "plugin" / "run.py").exists()


class TestRules:
    @pytest.mark.parametrize("code", ["a", "my-plugin", "yolo_v8", "x1", "a" * 64])
    def test_valid_codes(self, code: str) -> None:
        assert scaffold.checked_code(f" {code} ") == code

    @pytest.mark.parametrize(
        "code", ["", "A", "1a", "a-", "-a", "a/b", "..", "a b", "ä", "class", "not", "a\n", "a.b", "a" * 65]
    )
    def test_invalid_codes(self, code: str) -> None:
        if code == "a\n":
            assert scaffold.checked_code(code) == "a"
            return
        with pytest.raises(ValueError, match=r"invalid code .*: use at most 64 lowercase letters"):
            scaffold.checked_code(code)

    @pytest.mark.parametrize("name", ["", "Train", "1a", "a-b", "a.b", "import", "../a", "_a", "á"])
    def test_invalid_action_names(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"invalid action name .*: use at most 64 lowercase letters"):
            scaffold.checked_action(name)

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("My Plugin", "my-plugin"),
            ("  Größe 2! ", "groe-2"),
            ("플러그인", None),
            ("class", None),
            ("3D view", "d-view"),
        ],
    )
    def test_code_is_derived_from_a_name(self, name: str, code: str | None) -> None:
        assert scaffold.code_from(name) == code


class TestAllOrNothing:
    @pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
    def test_interruption_removes_written_files(self, tmp_path: Path, exists: bool) -> None:
        class Interrupted(dict[str, str]):
            def items(self):  # type: ignore[no-untyped-def,override]
                yield from super().items()
                raise KeyboardInterrupt

        target = tmp_path / "new" / "plugin"
        if exists:
            target.mkdir(parents=True)
            (target / "mine").touch()
        before = files_below(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            scaffold.write(Interrupted(FILES), target)
        assert files_below(tmp_path) == before

    def test_file_in_place_of_a_directory_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "plugin").touch()
        with pytest.raises(ConfigError, match=rf"these already exist:\n  {tmp_path}/plugin\n"):
            scaffold.write(FILES, tmp_path)
        with pytest.raises(ConfigError, match=rf"these already exist:\n  {tmp_path}/plugin\n"):
            scaffold.write(FILES, tmp_path / "plugin")
        assert files_below(tmp_path) == {"plugin"}

    @pytest.mark.parametrize("link", ["plugin", "config.yaml"])
    def test_link_out_of_the_directory_is_an_error(self, tmp_path: Path, link: str) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / link).symlink_to(tmp_path / "outside" / ("" if link == "plugin" else "nowhere"))
        with pytest.raises(ConfigError, match=rf"here/{link}"):
            scaffold.write(FILES, tmp_path / "here")
        assert list((tmp_path / "outside").iterdir()) == []

    def test_unwritable_directory_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="/file: cannot be written: File exists"):
            scaffold.write(FILES, tmp_path / "file" / "plugin")


def pytest_over(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        env=session_environment(),
        capture_output=True,
        text=True,
        timeout=patience(120),
    )

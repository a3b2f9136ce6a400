"""More tests for loading plugins: all sources of `Plugin.load`, both entrypoint forms, and separate modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_runtime.errors import ActionNotFoundError, ConfigError
from synapse_runtime.plugins.plugin import Plugin, import_entrypoint, is_entrypoint, standard_entrypoint

CONFIG = """\
code: digits
actions:
  train:
    entrypoint: plugin.train:Train
  infer:
    entrypoint: plugin.train.infer
  later:
    method: job
  broken:
    entrypoint: plugin.broken:Train
  needy:
    entrypoint: plugin.needy:Train
  lost:
    entrypoint: plugin.nowhere:Train
"""

TRAIN = """\
from synapse_runtime.action import BaseAction
from synapse_runtime.decorators import action

class Train(BaseAction):
    def execute(self):
        return "trained"

@action
def infer(params, context):
    return "inferred"
"""

WHO = """\
from plugin.helper import name
from synapse_runtime.decorators import action

@action
def who(params, context):
    from plugin.late import late
    return name, late
"""


@pytest.fixture
def root(write_plugin) -> Path:
    return write_plugin(
        config=CONFIG,
        files={
            "plugin/__init__.py": "",
            "plugin/train.py": TRAIN,
            "plugin/broken.py": "raise RuntimeError('at import')",
            "plugin/needy.py": "import no_such_package_anywhere",
        },
    )


@pytest.fixture
def plugin(root) -> Plugin:
    return Plugin.load(root)


@pytest.fixture
def on_path(tmp_path, monkeypatch) -> Iterator[Path]:
    """A directory on `sys.path`; modules that the test imports are removed afterwards."""
    directory = tmp_path / "on_path"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    before = set(sys.modules)
    yield directory
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["directory", "text", "config file"])
def test_root_and_config_path_are_the_same_for_all_sources(root, place):
    source = {"directory": root, "text": str(root), "config file": root / "config.yaml"}[place]
    plugin = Plugin.load(source)
    assert plugin.root == root
    assert plugin.config_path == root / "config.yaml"
    assert plugin.action_names == ("train", "infer", "later", "broken", "needy", "lost")
    assert repr(plugin) == f"<Plugin digits at {root}>"


def test_relative_source_is_resolved_when_loaded(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    plugin = Plugin.load(root.name)
    monkeypatch.chdir("/")
    assert plugin.root == root
    assert plugin.load_action("train").__name__ == "Train"


def test_package_with_config_file_is_found_without_importing_it(on_path):
    package = on_path / "yolo_with_config"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('need not be imported')")
    (package / "config.yaml").write_text("code: yolo\nactions: {infer: 'work:infer'}\n")
    (package / "work.py").write_text(TRAIN)
    plugin = Plugin.load("yolo_with_config")
    assert plugin.root == package
    assert plugin.load_action("infer")({}, None) == "inferred"


def test_module_provides_its_own_public_concrete_actions(on_path):
    (on_path / "my_actions.py").write_text(
        "import abc\n"
        "from random import random\n"  # a builtin method: its __module__ is None
        "from collections import OrderedDict\n" + TRAIN + "class _Hidden(Train): pass\n"
        "class Unfinished(BaseAction):\n"
        "    @abc.abstractmethod\n"
        "    def more(self): ...\n"
        "class TrainMore(Train):\n"
        "    action_name = 'more'\n"
    )
    plugin = Plugin.load("my_actions")
    assert plugin.action_names == ("train", "infer", "more")
    assert plugin.config_path is None
    assert plugin.root == on_path
    assert plugin.entrypoint("more") == "my_actions:TrainMore"
    assert plugin.load_action("more") is sys.modules["my_actions"].TrainMore


def test_package_provides_actions_of_its_modules_only(on_path):
    package = on_path / "actions_pkg"
    package.mkdir()
    (on_path / "actions_pkg_other.py").write_text(TRAIN)
    (package / "__init__.py").write_text("from actions_pkg.work import Train\nfrom actions_pkg_other import infer\n")
    (package / "work.py").write_text(TRAIN)
    assert Plugin.load("actions_pkg").action_names == ("train",)


def test_package_in_the_working_directory_is_found_by_name(on_path, monkeypatch):
    package = on_path / "local_package"
    package.mkdir()
    (package / "__init__.py").write_text(TRAIN)
    (on_path / "data").mkdir()
    monkeypatch.chdir(on_path)
    assert Plugin.load("local_package").action_names == ("train", "infer")
    for source in (package, "data"):
        with pytest.raises(ConfigError, match=r"no config\.yaml or synapse\.yaml in this directory"):
            Plugin.load(source)


def test_module_without_actions_raises_config_error():
    with pytest.raises(
        ConfigError, match=r"module 'json' has no config\.yaml next to it and defines no action"
    ) as caught:
        Plugin.load("json")
    assert caught.value.path.parent.name == "json"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("no_such_plugin", "plugin 'no_such_plugin' is neither a directory, a config file nor an importable module"),
        ("no_such_parent.plugin", "plugin 'no_such_parent.plugin' cannot be imported: No module named"),
        ("no/such/directory", "the plugin does not exist: neither a directory nor a config file"),
        ("nowhere.yaml", "the plugin does not exist: neither a directory nor a config file"),
    ],
)
def test_missing_plugin_error_depends_on_the_form_of_the_source(tmp_path, monkeypatch, source, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=text):
        Plugin.load(source)


@pytest.mark.parametrize(
    ("name", "entrypoint", "result"),
    [
        ("train", "plugin.train:Train", "trained"),
        ("infer", "plugin.train:infer", "inferred"),
        ("plugin.train.infer", "plugin.train:infer", "inferred"),
        ("plugin.train:Train", "plugin.train:Train", "trained"),
    ],
)
def test_names_and_both_entrypoint_forms_resolve_to_the_action(plugin, local, name, entrypoint, result):
    assert plugin.entrypoint(name) == entrypoint
    assert local.execute(plugin.load_action(name)) == result


def test_unknown_action_error_names_config_file_and_actions(plugin):
    with pytest.raises(ActionNotFoundError) as caught:
        plugin.load_action("trian")
    assert str(caught.value) == (
        f"there is no action 'trian' in {plugin.config_path}. Did you mean 'train'? "
        "Available: train, infer, later, broken, needy, lost."
    )


def test_unknown_action_without_similar_name_gets_no_suggestion(plugin):
    with pytest.raises(ActionNotFoundError) as caught:
        plugin.entrypoint("zzz")
    assert "Did you mean" not in str(caught.value)


def test_error_for_a_plugin_without_actions_lists_none(write_plugin):
    with pytest.raises(ActionNotFoundError, match="Available: none"):
        Plugin.load(write_plugin(config="code: x\n")).entrypoint("train")


def test_action_without_entrypoint_error_has_line(plugin):
    with pytest.raises(ConfigError) as caught:
        plugin.load_action("later")
    assert str(caught.value) == f"{plugin.config_path}:7: action 'later': no entrypoint; add `entrypoint: module:Name`"


def test_error_has_line_in_a_list_of_actions(write_plugin):
    config = "code: x\nactions:\n  - name: a\n  - name: train\n    entrypoint: nowhere:X\n"
    with pytest.raises(ConfigError) as caught:
        Plugin.load(write_plugin(config=config)).load_action("train")
    assert caught.value.line == 5


def test_exception_during_import_is_propagated(plugin):
    with pytest.raises(RuntimeError, match="at import"):
        plugin.load_action("broken")


def test_missing_dependency_is_not_reported_as_wrong_entrypoint(plugin):
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        plugin.load_action("needy")


@pytest.mark.parametrize("order", [("one", "two", "one"), ("two", "one", "two")])
def test_imports_at_run_time_resolve_to_the_actions_plugin(write_plugin, order):
    plugins = {}
    for name in ("one", "two"):
        root = write_plugin(
            name,
            config=f"code: {name}\nactions: {{who: 'plugin.work:who'}}\n",
            files={
                "plugin/__init__.py": "",
                "plugin/work.py": WHO,
                "plugin/helper.py": f"name = {name!r}",
                "plugin/late.py": f"late = {name!r}",
            },
        )
        plugins[name] = Plugin.load(root)
    for name in order:
        who = plugins[name].load_action("who")
        with plugins[name].importable():
            assert who({}, None) == (name, name)


def test_action_is_imported_once(plugin, write_plugin):
    other = Plugin.load(write_plugin("other", config="code: other\n", files={"plugin/__init__.py": ""}))
    first = plugin.load_action("train")
    with other.importable():
        import plugin as others
    assert Path(others.__file__).is_relative_to(other.root)
    assert plugin.load_action("train") is first


@pytest.mark.parametrize("name", ["train", "lost", "broken"])
def test_loading_an_action_restores_sys_path_and_modules(plugin, name):
    path, modules = list(sys.path), dict(sys.modules)
    if name == "train":
        plugin.load_action(name)
    else:
        with pytest.raises((ConfigError, RuntimeError)):
            plugin.load_action(name)
    assert sys.path == path
    assert {known: sys.modules.get(known) for known in modules} == modules
    assert sys.modules.keys() - modules.keys() <= {"plugin", "plugin.train"}


def test_entrypoint_may_name_a_class_attribute():
    assert import_entrypoint("collections:OrderedDict.fromkeys").__qualname__ == "OrderedDict.fromkeys"


def test_entrypoint_is_recognized_by_its_form():
    assert is_entrypoint("a:B")
    assert is_entrypoint("a.b.C")
    assert not is_entrypoint("train")
    assert not is_entrypoint("my action.x")
    assert standard_entrypoint("a.b.C") == "a.b:C"
    assert standard_entrypoint("a:B.c") == "a:B.c"


@pytest.mark.parametrize("name", ["config.yaml", "synapse.yaml"])
def test_huge_config_file_is_not_read_into_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text("code: x\nactions: {}\n")
    with (tmp_path / name).open("a") as file:
        file.truncate(1 << 40)
    if name == "config.yaml":
        with pytest.raises(ConfigError, match="larger than 1,000,000 bytes; move data into separate files"):
            Plugin.load_cached(tmp_path)
    else:
        assert Plugin.load_cached(tmp_path).manifest.code == "x"

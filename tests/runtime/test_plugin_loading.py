"""Plugins further: every source that `Plugin.load` takes, both forms of entrypoints, and whose modules are whose."""

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
    """A directory that modules are imported from; what the test imports is forgotten afterwards."""
    directory = tmp_path / "on_path"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    before = set(sys.modules)
    yield directory
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["directory", "text", "config file"])
def test_a_plugin_knows_its_place_however_it_was_found(root, place):
    source = {"directory": root, "text": str(root), "config file": root / "config.yaml"}[place]
    plugin = Plugin.load(source)
    assert plugin.root == root
    assert plugin.config_path == root / "config.yaml"
    assert plugin.action_names == ("train", "infer", "later", "broken", "needy", "lost")
    assert repr(plugin) == f"<Plugin digits at {root}>"


def test_a_relative_source_means_where_we_were_then(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    plugin = Plugin.load(root.name)
    monkeypatch.chdir("/")
    assert plugin.root == root
    assert plugin.load_action("train").__name__ == "Train"


def test_a_package_with_a_config_file_is_not_imported_to_be_found(on_path):
    package = on_path / "yolo_with_config"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('need not be imported')")
    (package / "config.yaml").write_text("code: yolo\nactions: {infer: 'work:infer'}\n")
    (package / "work.py").write_text(TRAIN)
    plugin = Plugin.load("yolo_with_config")
    assert plugin.root == package
    assert plugin.load_action("infer")({}, None) == "inferred"


def test_a_module_offers_its_own_finished_public_actions(on_path):
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


def test_a_package_offers_the_actions_of_its_modules_but_not_of_its_neighbours(on_path):
    package = on_path / "actions_pkg"
    package.mkdir()
    (on_path / "actions_pkg_other.py").write_text(TRAIN)
    (package / "__init__.py").write_text("from actions_pkg.work import Train\nfrom actions_pkg_other import infer\n")
    (package / "work.py").write_text(TRAIN)
    assert Plugin.load("actions_pkg").action_names == ("train",)


def test_a_package_can_be_named_from_the_directory_that_it_is_in(on_path, monkeypatch):
    package = on_path / "beside_us"
    package.mkdir()
    (package / "__init__.py").write_text(TRAIN)
    (on_path / "data").mkdir()
    monkeypatch.chdir(on_path)
    assert Plugin.load("beside_us").action_names == ("train", "infer")
    for source in (package, "data"):
        with pytest.raises(ConfigError, match=r"there is no config\.yaml or synapse\.yaml in this directory"):
            Plugin.load(source)


def test_a_module_without_actions_is_no_plugin():
    with pytest.raises(
        ConfigError, match=r"module 'json' has no config\.yaml beside it and defines no action"
    ) as caught:
        Plugin.load("json")
    assert caught.value.path.parent.name == "json"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("no_such_plugin", "plugin 'no_such_plugin' is neither a directory, a config file, nor a module"),
        ("no_such_parent.plugin", "plugin 'no_such_parent.plugin' cannot be imported: No module named"),
        ("no/such/directory", "there is no such plugin: neither a directory nor a config file"),
        ("nowhere.yaml", "there is no such plugin: neither a directory nor a config file"),
    ],
)
def test_what_is_no_plugin_is_told_in_the_words_of_what_it_looks_like(tmp_path, monkeypatch, source, text):
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
def test_names_and_both_forms_of_entrypoints_lead_to_the_action(plugin, local, name, entrypoint, result):
    assert plugin.entrypoint(name) == entrypoint
    assert local.execute(plugin.load_action(name)) == result


def test_an_unknown_action_is_told_with_the_config_file_and_all_names(plugin):
    with pytest.raises(ActionNotFoundError) as caught:
        plugin.load_action("trian")
    assert str(caught.value) == (
        f"there is no action 'trian' in {plugin.config_path}. Did you mean 'train'? "
        "Available: train, infer, later, broken, needy, lost."
    )


def test_an_unknown_action_that_is_like_no_other_gets_no_suggestion(plugin):
    with pytest.raises(ActionNotFoundError) as caught:
        plugin.entrypoint("zzz")
    assert "Did you mean" not in str(caught.value)


def test_a_plugin_without_actions_says_so(write_plugin):
    with pytest.raises(ActionNotFoundError, match="Available: none"):
        Plugin.load(write_plugin(config="code: x\n")).entrypoint("train")


def test_an_action_without_an_entrypoint_is_told_with_its_line(plugin):
    with pytest.raises(ConfigError) as caught:
        plugin.load_action("later")
    assert str(caught.value) == f"{plugin.config_path}:7: action 'later': it has no entrypoint"


def test_the_line_is_found_where_actions_are_a_list(write_plugin):
    config = "code: x\nactions:\n  - name: a\n  - name: train\n    entrypoint: nowhere:X\n"
    with pytest.raises(ConfigError) as caught:
        Plugin.load(write_plugin(config=config)).load_action("train")
    assert caught.value.line == 5


def test_what_the_plugins_module_raises_while_it_is_imported_is_its_own(plugin):
    with pytest.raises(RuntimeError, match="at import"):
        plugin.load_action("broken")


def test_a_package_that_the_plugins_module_lacks_is_not_taken_for_a_wrong_entrypoint(plugin):
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        plugin.load_action("needy")


@pytest.mark.parametrize("order", [("one", "two", "one"), ("two", "one", "two")])
def test_modules_that_an_action_imports_while_it_runs_are_its_own_plugins_too(write_plugin, order):
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


def test_an_action_is_imported_once(plugin, write_plugin):
    other = Plugin.load(write_plugin("other", config="code: other\n", files={"plugin/__init__.py": ""}))
    first = plugin.load_action("train")
    with other.importable():
        import plugin as others
    assert Path(others.__file__).is_relative_to(other.root)
    assert plugin.load_action("train") is first


@pytest.mark.parametrize("name", ["train", "lost", "broken"])
def test_loading_an_action_leaves_the_import_path_and_all_modules_as_they_were(plugin, name):
    path, modules = list(sys.path), dict(sys.modules)
    if name == "train":
        plugin.load_action(name)
    else:
        with pytest.raises((ConfigError, RuntimeError)):
            plugin.load_action(name)
    assert sys.path == path
    assert {known: sys.modules.get(known) for known in modules} == modules
    assert sys.modules.keys() - modules.keys() <= {"plugin", "plugin.train"}


def test_an_entrypoint_may_lead_into_a_class():
    assert import_entrypoint("collections:OrderedDict.fromkeys").__qualname__ == "OrderedDict.fromkeys"


def test_an_entrypoint_is_told_by_its_form():
    assert is_entrypoint("a:B")
    assert is_entrypoint("a.b.C")
    assert not is_entrypoint("train")
    assert not is_entrypoint("my action.x")
    assert standard_entrypoint("a.b.C") == "a.b:C"
    assert standard_entrypoint("a:B.c") == "a:B.c"

"""The config file: its actions exist."""

from __future__ import annotations

from synapse_runtime.action import is_action
from synapse_runtime.plugins.plugin import Plugin


def test_every_action_in_config_can_be_loaded(synapse_plugin: Plugin) -> None:
    assert synapse_plugin.action_names == ("train", "evaluate", "infer", "export")
    assert all(is_action(synapse_plugin.load_action(name)) for name in synapse_plugin.action_names)

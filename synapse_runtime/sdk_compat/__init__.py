"""Support for plugins written for synapse-sdk: its module names and its actions."""

"""A plugin on disk: its config file, its modules, its requirements."""

"""Plugins on the file system: their config file, modules and requirements."""

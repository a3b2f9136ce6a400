"""A plugin as an author would write it."""

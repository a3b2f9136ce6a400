"""A module whose import ends."""

raise KeyboardInterrupt("mine")

"""A plugin that learns to read handwritten digits."""

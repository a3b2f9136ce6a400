"""A plugin that classifies handwritten digits."""

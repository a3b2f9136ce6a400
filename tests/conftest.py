"""What all tests of this project share: `pytester`, to run pytest inside pytest."""

pytest_plugins = ["pytester"]

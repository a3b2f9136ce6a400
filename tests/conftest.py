"""What all tests of this project share: `pytester`, to run pytest inside pytest; and Ctrl-C that works in children."""

import signal

pytest_plugins = ["pytester"]

# Whoever starts us in the background (`nohup`, `&` in a script) has interrupts ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

"""Process-wide state of actions: environment variables, working directory and the plugin's modules."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn

from synapse_runtime.core.interrupts import shielded
from synapse_runtime.core.threads import POLL_SECONDS
from synapse_runtime.environment import PluginEnvironment, Variables
from synapse_runtime.errors import ExecutionError
from synapse_runtime.plugins.module_scopes import activate_modules

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


_log = logging.getLogger("synapse")
# How long a thread waits for an action of another thread before it says so.
_SILENT_SECONDS = 3.0
_TEMP_DIR_NAMES = frozenset({"TMPDIR", "TEMP", "TMP"})


class ProcessState:
    """Applies the state that an action needs to the process while it runs, and restores the previous state.

    A thread that runs an action waits while other threads run actions with a different state; actions with the same
    state run concurrently. The state of an action that another action runs is applied on top of the outer one's; also
    in threads that the outer action has started, or that it waits for, which could not wait for its end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._applied: list[_Applied] = []  # each on top of the one before it

    def applied(self, name: str, import_root: str | None, cwd: str | None, env: Mapping[str, Any]) -> _Activation:
        """Return a context manager that applies this state to the process.

        Args:
            name: The action's name, for errors.
            import_root: The directory of the plugin's modules, if there is a plugin.
            cwd: The working directory; None to keep that of the process.
            env: Variables to set; see `PluginEnvironment.as_strings`.

        Raises:
            ConfigError: On entering: the plugin's directory does not exist.
            ExecutionError: On entering: the working directory does not exist.
        """
        return _Activation(self, name, (import_root, cwd, env), _CallState(import_root, cwd, env))

    def modules(self, import_root: str | None) -> _Activation:
        """Return a context manager in which a plugin's modules can be imported, such as for unpickling their objects.

        Args:
            import_root: The directory of the modules; None if there are none.

        Raises:
            ConfigError: On entering: the directory does not exist.
        """
        return _Activation(self, "", ("modules", import_root), _CallState(import_root, None, {}))

    def exclusive(self) -> _Activation:
        """Return a context manager that excludes actions of other threads; actions run inside it apply their state."""
        return _Activation(self, "", object(), None)

    def locked(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager during which no action's state is applied or restored, in any thread.

        Environment variables that are set temporarily inside it are neither removed by the end of an action, nor seen
        as the previous state by an action that starts in another thread.
        """
        return self._changed

    def _apply(self, activation: _Activation) -> None:
        outer = _current_activation()
        with self._changed:
            below = None if outer is None or not outer.is_counted else outer.applied
            if not self._try_to_apply(activation, below):
                self._wait_to_apply(activation, below)
        activation.token = _innermost.set(activation)

    def _try_to_apply(self, activation: _Activation, below: _Applied | None) -> bool:
        """Apply a state on top of another one, or join the actions with that state; return whether that is possible."""
        top = self._applied[-1] if self._applied else None
        if top is below:
            if activation.state is not None:
                activation.state.apply()
            top = _Applied(activation.key, activation.state, below)
            self._applied.append(top)
        elif top is None or top.below is not below or not activation.shares(top):
            return False
        activation.applied, activation.is_counted = top, True  # before the next statement: Ctrl-C may come anywhere
        top.activations.append(activation)
        return True

    def _wait_to_apply(self, activation: _Activation, below: _Applied | None) -> None:
        from synapse_runtime.core.deadlocks import waits_for_this_thread

        interrupts = shielded()
        warn_at = time.monotonic() + _SILENT_SECONDS
        while True:
            interrupts.raise_deferred()
            self._changed.wait(POLL_SECONDS)
            others = [] if not self._applied else self._applied[-1].activations
            if any(waits_for_this_thread(other.thread_id) for other in others):
                below = self._applied[-1]
            if self._try_to_apply(activation, below):
                return
            if time.monotonic() > warn_at:
                warn_at = math.inf
                _log.warning(
                    "%s waits in thread %r for the end of %s: they have different environment variables, working "
                    "directories or plugins, which apply to the whole process",
                    activation.name or "a call",
                    threading.current_thread().name,
                    ", ".join(sorted({other.name or "another call" for other in others})),
                )

    def _restore(self, activation: _Activation) -> None:
        if activation.token is not None:
            _innermost.reset(activation.token)
        if not activation.is_counted:
            return
        with self._changed:
            activation.is_counted = False
            if activation in activation.applied.activations:
                activation.applied.activations.remove(activation)
            try:
                # An action may end before those that it has left in other threads.
                while self._applied and not self._applied[-1].activations:
                    state = self._applied.pop().state
                    if state is not None:
                        state.restore()
            finally:
                self._changed.notify_all()


class _Applied:
    """A state that is applied to the process, and the actions that run with it."""

    def __init__(self, key: object, state: _CallState | None, below: _Applied | None) -> None:
        self.key = key
        self.state = state
        self.below = below
        self.activations: list[_Activation] = []


class _Activation:
    """A context manager that applies one action's state. Actions with equal keys run concurrently.

    To be used inside a shield (`interrupts.shielded`), so that it is applied and restored as a whole.
    """

    __slots__ = ("_process", "applied", "is_counted", "key", "name", "state", "thread_id", "token")

    def __init__(self, process: ProcessState, name: str, key: object, state: _CallState | None) -> None:
        self._process = process
        self.name = name
        self.key = key
        self.state = state
        self.applied: _Applied
        self.token: contextvars.Token[_Activation | None] | None = None
        self.is_counted = False

    def shares(self, applied: _Applied) -> bool:
        """Return whether it can run with a state that is applied."""
        if self.key == applied.key:
            return True
        return self.state is not None and applied.state is not None and self.state.is_included_in(applied.state)

    def __enter__(self) -> None:
        self.thread_id = threading.get_ident()
        try:
            self._process._apply(self)
        except BaseException:
            self._process._restore(self)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process._restore(self)


class _CallState:
    """The state of one call, and the process state before it was applied."""

    __slots__ = ("_before", "_cwd", "_directory", "_env", "_modules", "_root", "_temp_dir")

    def __init__(self, root: str | None, cwd: str | None, env: Mapping[str, Any]) -> None:
        self._root = root
        self._cwd = cwd
        self._env = env
        self._modules: contextlib.AbstractContextManager[None] | None = None
        self._directory: str | None = None
        self._before: Variables | None = None
        self._temp_dir: str | None = None

    def is_included_in(self, other: _CallState) -> bool:
        """Return whether nothing would have to be done to apply this state on top of another one."""
        return self._cwd is None and not self._env and self._root == other._root

    def apply(self) -> None:
        try:
            self._apply()
        except BaseException:
            self.restore()
            raise

    def _apply(self) -> None:
        if self._root is not None:
            modules = activate_modules(self._root)
            modules.__enter__()
            self._modules = modules
        if self._cwd is not None:
            self._chdir(self._cwd)
        self._before = Variables()
        self._temp_dir = getattr(sys.modules.get("tempfile"), "tempdir", None)
        if self._env:
            variables = PluginEnvironment(self._env).as_strings()
            os.environ.update(variables)
            _take_effect(variables, None)

    def restore(self) -> None:
        before, self._before = self._before, None
        directory, self._directory = self._directory, None
        modules, self._modules = self._modules, None
        try:
            if before is not None:
                _take_effect(before.restore(), self._temp_dir)
        finally:
            try:
                if directory is not None:
                    with contextlib.suppress(FileNotFoundError):
                        os.chdir(directory)
            finally:
                if modules is not None:
                    modules.__exit__(None, None, None)

    def _chdir(self, path: str) -> None:
        try:
            before: str | None = os.getcwd()
        except FileNotFoundError:
            before = None
        if path != before:
            try:
                os.chdir(path)
            except (FileNotFoundError, NotADirectoryError):
                text = f"the working directory {path} does not exist on {socket.gethostname()}"
                raise ExecutionError(text) from None
        self._directory = before


def _take_effect(changed: Collection[str], temp_dir: str | None) -> None:
    """Make changes of variables take effect that Python or the C library reads only once.

    Args:
        changed: The names of the variables.
        temp_dir: The directory for temporary files, if it has been determined.
    """
    if "TZ" in changed and hasattr(time, "tzset"):
        time.tzset()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and not _TEMP_DIR_NAMES.isdisjoint(changed):
        tempfile.tempdir = temp_dir  # type: ignore[attr-defined]


@contextlib.contextmanager
def variables_changed(changed: Mapping[str, str | None]) -> Iterator[None]:
    """Change variables of this process during the block.

    Args:
        changed: Names and new values; None for a variable to delete.
    """
    before, temp_dir = Variables(), getattr(sys.modules.get("tempfile"), "tempdir", None)
    for name, value in changed.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _take_effect(changed, None)
    try:
        yield
    finally:
        _take_effect(before.restore(), temp_dir)


# The activation in which an action runs, and the attribute of a thread for the one in which it was started.
_innermost: contextvars.ContextVar[_Activation | None] = contextvars.ContextVar("innermost", default=None)
_STARTED_BY = "_synapse_started_by"
_start_thread = threading.Thread.start


def _current_activation() -> _Activation | None:
    """Return the activation in which the current thread runs, or in which it was started."""
    return _innermost.get() or getattr(threading.current_thread(), _STARTED_BY, None)


@functools.wraps(_start_thread)
def _start_noted(self: threading.Thread) -> None:
    """Start a thread, and note in which activation: new threads do not inherit context variables.

    Inside a shield: until Python 3.12 a new thread that does not run yet has the id of the one that starts it, and
    would be interrupted in its place.
    """
    activation = _current_activation()
    if activation is not None:
        setattr(self, _STARTED_BY, activation)
    with shielded():
        _start_thread(self)


_exit_process = os._exit
_of_parent_process: _Activation | None = None  # in a process that an action has forked


def _note_parent_process() -> None:
    global _of_parent_process
    _of_parent_process = _current_activation()


os.register_at_fork(after_in_child=_note_parent_process)


@functools.wraps(_exit_process)
def _exit_noisily(status: int) -> NoReturn:
    """Say that an action ends this process, which no error can report, and end it with a status that is not success."""
    activation = _current_activation()
    if activation is not None and activation is not _of_parent_process:
        text = f"error: {activation.name or 'an action'} called os._exit({status}), which ends the process it runs in\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        status = status or 1
    _exit_process(status)


os._exit = _exit_noisily
threading.Thread.start = _start_noted  # type: ignore[method-assign]
process_state = ProcessState()

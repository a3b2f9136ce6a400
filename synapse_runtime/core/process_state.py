"""Process-wide state of actions: environment variables, working directory and the plugin's modules."""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from synapse_runtime.core.threads import POLL_SECONDS
from synapse_runtime.environment import PluginEnvironment, Variables
from synapse_runtime.errors import ExecutionError
from synapse_runtime.plugins.module_scopes import activate_modules

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class ProcessState:
    """Applies the state that an action needs to the process while it runs, and restores the previous state.

    A thread that runs an action waits while other threads run actions with a different state; actions with the same
    state run concurrently. The state of an action that another action runs is applied on top of the outer one's.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._nested = 0
        self._key: Any = None
        self._outermost: _CallState | None = None
        self._is_inside = contextvars.ContextVar("_is_inside", default=False)

    def applied(self, import_root: str | None, cwd: str | None, env: Mapping[str, Any]) -> _Activation:
        """Return a context manager that applies this state to the process.

        Args:
            import_root: The directory of the plugin's modules, if there is a plugin.
            cwd: The working directory; None to keep that of the process.
            env: Variables to set; see `PluginEnvironment.as_strings`.

        Raises:
            ConfigError: On entering: the plugin's directory does not exist.
            ExecutionError: On entering: the working directory does not exist.
        """
        return _Activation(self, (import_root, cwd, env), _CallState(import_root, cwd, env))

    def exclusive(self) -> _Activation:
        """Return a context manager that excludes actions of other threads; actions run inside it apply their state."""
        return _Activation(self, object(), None)

    def locked(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager during which no action's state is applied or restored, in any thread.

        Environment variables that are set temporarily inside it are neither removed by the end of an action, nor seen
        as the previous state by an action that starts meanwhile.
        """
        return self._changed

    def _apply(self, activation: _Activation) -> None:
        nested = self._is_inside.get()
        with self._changed:
            while not nested and self._inside and (self._key != activation.key or self._nested):
                self._changed.wait(POLL_SECONDS)
            if not self._inside:
                self._outermost = activation.state
                if activation.state is not None:
                    activation.state.apply()
                self._key = activation.key
            self._inside += 1
            self._nested += nested
            activation.is_nested, activation.is_counted = nested, True
        if nested and activation.state is not None:
            activation.nested_state = activation.state.reapply()
            activation.nested_state.apply()
        activation.token = self._is_inside.set(True)

    def _restore(self, activation: _Activation) -> None:
        try:
            if activation.token is not None:
                self._is_inside.reset(activation.token)
            if activation.nested_state is not None:
                activation.nested_state.restore()
        finally:
            if activation.is_counted:
                with self._changed:
                    self._nested -= activation.is_nested
                    self._inside -= 1
                    if not self._inside and self._outermost is not None:
                        self._outermost.restore()
                    self._changed.notify_all()


class _Activation:
    """A context manager that applies one action's state. Actions with equal keys run concurrently."""

    __slots__ = ("_process", "is_counted", "is_nested", "key", "nested_state", "state", "token")

    def __init__(self, process: ProcessState, key: object, state: _CallState | None) -> None:
        self._process = process
        self.key = key
        self.state = state
        self.nested_state: _CallState | None = None
        self.token: contextvars.Token[bool] | None = None
        self.is_counted = self.is_nested = False

    def __enter__(self) -> None:
        try:
            self._process._apply(self)
        except BaseException:  # this thread may be interrupted anywhere
            self._process._restore(self)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process._restore(self)


class _CallState:
    """The state of one call, and the process state before it was applied."""

    __slots__ = ("_before", "_cwd", "_directory", "_env", "_modules", "_root")

    def __init__(self, root: str | None, cwd: str | None, env: Mapping[str, Any]) -> None:
        self._root = root
        self._cwd = cwd
        self._env = env
        self._modules: contextlib.AbstractContextManager[None] | None = None
        self._directory: str | None = None
        self._before: Variables | None = None

    def reapply(self) -> _CallState:
        """Return a copy that has not been applied."""
        return _CallState(self._root, self._cwd, self._env)

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
        if self._env:
            os.environ.update(PluginEnvironment(self._env).as_strings())

    def restore(self) -> None:
        before, self._before = self._before, None
        directory, self._directory = self._directory, None
        modules, self._modules = self._modules, None
        try:
            if before is not None:
                before.restore()
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


process_state = ProcessState()

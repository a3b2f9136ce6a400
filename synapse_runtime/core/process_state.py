"""The surroundings of actions: environment, working directory and names of modules belong to the whole process."""

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

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help


class ProcessState:
    """Gives the process the surroundings of an action while it runs, and puts back what was there before.

    A thread that runs an action waits for those whose actions need other surroundings; those that need the same run
    beside each other. An action that an action runs has its surroundings within those.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._nested = 0
        self._key: Any = None
        self._outermost: _CallState | None = None
        self._is_inside = contextvars.ContextVar("_is_inside", default=False)

    def applied(self, import_root: str | None, cwd: str | None, env: Mapping[str, Any]) -> _Applied:
        """Return a block inside which the process has these surroundings.

        Args:
            import_root: The directory of the plugin's modules, if there is a plugin.
            cwd: The working directory; None for that of the process.
            env: Variables to set; see `PluginEnvironment.as_strings`.

        Raises:
            ConfigError: The block is entered, and there is no such plugin.
            ExecutionError: There is no such working directory.
        """
        return _Applied(self, (import_root, cwd, env), _CallState(import_root, cwd, env))

    def exclusive(self) -> _Applied:
        """Return a block that keeps actions of other threads out; those that are run in it have their surroundings."""
        return _Applied(self, object(), None)

    def locked(self) -> contextlib.AbstractContextManager[object]:
        """Return a block during which no action's surroundings are made or undone, those of other threads included.

        Variables that are set for a moment are neither taken away in it, nor kept by an action that began meanwhile.
        """
        return self._changed

    def _apply(self, stay: _Applied) -> None:
        nested = self._is_inside.get()
        with self._changed:
            while not nested and self._inside and (self._key != stay.key or self._nested):
                self._changed.wait(POLL_SECONDS)
            if not self._inside:
                self._outermost = stay.surroundings
                if stay.surroundings is not None:
                    stay.surroundings.apply()
                self._key = stay.key
            self._inside += 1
            self._nested += nested
            stay.is_nested, stay.is_counted = nested, True
        if nested and stay.surroundings is not None:
            stay.own = stay.surroundings.reapply()
            stay.own.apply()
        stay.token = self._is_inside.set(True)

    def _restore(self, stay: _Applied) -> None:
        try:
            if stay.token is not None:
                self._is_inside.reset(stay.token)
            if stay.own is not None:
                stay.own.restore()
        finally:
            if stay.is_counted:
                with self._changed:
                    self._nested -= stay.is_nested
                    self._inside -= 1
                    if not self._inside and self._outermost is not None:
                        self._outermost.restore()
                    self._changed.notify_all()


class _Applied:
    """One action's time in its surroundings."""

    __slots__ = ("_process", "is_counted", "is_nested", "key", "own", "surroundings", "token")

    def __init__(self, process: ProcessState, key: object, surroundings: _CallState | None) -> None:
        self._process = process
        self.key = key
        self.surroundings = surroundings
        self.own: _CallState | None = None
        self.token: contextvars.Token[bool] | None = None
        self.is_counted = self.is_nested = False

    def __enter__(self) -> None:
        try:
            self._process._apply(self)
        except BaseException:  # this thread may be stopped anywhere
            self._process._restore(self)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process._restore(self)


class _CallState:
    """A change of the process's surroundings, and what was there before it."""

    __slots__ = ("_before", "_cwd", "_directory", "_env", "_modules", "_root")

    def __init__(self, root: str | None, cwd: str | None, env: Mapping[str, Any]) -> None:
        self._root = root
        self._cwd = cwd
        self._env = env
        self._modules: contextlib.AbstractContextManager[None] | None = None
        self._directory: str | None = None
        self._before: Variables | None = None

    def reapply(self) -> _CallState:
        """Return the same change, not made."""
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
            self._go_to(self._cwd)
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

    def _go_to(self, path: str) -> None:
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

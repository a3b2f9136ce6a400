"""What the remote executors of a test session share: the backend, which is started for the run unless one is named.

Only the standard library is imported here, because pytest imports this module in every session.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_runtime.errors import RemoteError
    from synapse_runtime.executors.base import Executor
    from synapse_runtime.executors.remote.backend import Backend

_LOOPBACK = "127.0.0.1"
# How long a process of the run may take to say what it wants, and the one that has started the run to answer: it may
# have to start the server first.
_ASK_SECONDS = 10.0
_ANSWER_SECONDS = 180.0
_MESSAGE_BYTES = 1 << 16
# More than there are processors: actions of several threads of a test may wait for each other.
_CONCURRENCY = 32
# A server of this machine that does not accept connections has died.
_OWN_RETRY_SECONDS = 0.1
_OWN_OUTAGE_SECONDS = 5.0
_CLIENT_MODULES = ("httpx", "stamina")
_SERVER_MODULES = ("fastapi", "uvicorn", "sqlalchemy", "alembic")


class RemoteSession:
    """State shared by the remote executors of one pytest process.

    Args:
        options: The session's options: `host`, `token_file`.
        shared: What `share` returned in the process that started this one; None in a process that starts a run.

    Raises:
        ValueError: The host is not a URL, or a token file is given without a host.
    """

    def __init__(self, options: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> None:
        self._host: str | None = options["host"] or None
        self._token_file: str | None = options["token_file"] or None
        if self._token_file is not None and self._host is None:
            raise ValueError("--synapse-token-file: give --synapse-host too, the backend that the token is for")
        if self._host is not None:
            self._check_host(self._host)
        self._server = _OwnServer() if shared is None else _ServerOfRun(shared["port"], shared["key"])
        self._cleanup = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._api: Backend | None = None
        self._address: tuple[str, str] | None = None

    def share(self) -> dict[str, Any]:
        """Return, as plain data, what another process of this run needs to use the same server."""
        return self._server.share()

    @staticmethod
    def check_resources(resources: Mapping[str, Any]) -> None:
        """Accept all resources: the modes with a cluster check them."""

    def describe(self) -> str:
        """Describe in a few words which backend will be used, without connecting to it."""
        return f"backend: {self._host or 'started for this run'}"

    def max_processes(self) -> int | None:
        """Return None: a backend serves any number of pytest processes."""
        return None

    def start_in_background(self, modes: set[str]) -> None:
        """Start the run's server, unless a host is named, without waiting for it.

        Args:
            modes: The modes that will be used.
        """
        if self._host is None and not missing_modules(server=True):
            threading.Thread(target=self._start, name="synapse-server", daemon=True).start()

    @contextlib.contextmanager
    def executor(
        self, mode: str, resources: Mapping[str, Any], *, fresh: bool, strict: bool, **options: Any
    ) -> Iterator[Executor]:
        """Yield the executor of one test.

        Args:
            mode: `remote`.
            resources: What the action requests of the backend's cluster.
            fresh: Ignored: each run has a process of its own.
            strict: Ignored: only local mode has a choice.
            **options: Further arguments of the executor.

        Raises:
            RemoteError: The backend cannot be used, or a package is missing.
        """
        api, settings = self._connection()
        from synapse_runtime.executors.remote.executor import RemoteExecutor

        with RemoteExecutor(settings=settings, api=api, resources=resources, **options) as executor:
            yield executor

    def close(self) -> None:
        """Close the connections, and stop the server if this process has started it."""
        self._cleanup.close()
        self._server.close()

    def backend(self) -> tuple[str, str, Backend]:
        """Return host and token of the backend, and a client of its API.

        Raises:
            RemoteError: As for `executor`.
        """
        api, settings = self._connection()
        token = settings.access_token or settings.user_token
        assert token is not None
        return settings.host, token.reveal(), api

    @staticmethod
    def _check_host(host: str) -> None:
        from synapse_runtime.errors import RemoteError
        from synapse_runtime.executors.remote.config import checked_host

        try:
            checked_host(host)
        except RemoteError as error:
            raise ValueError(f"--synapse-host: {error}") from None

    def _start(self) -> None:
        from synapse_runtime.errors import RemoteError

        with contextlib.suppress(RemoteError):  # raised by the first test that needs it
            self._server.address()

    def _connection(self) -> tuple[Backend, Any]:
        """Return the connection to the backend, which all tests use, and its settings."""
        missing = missing_modules(server=self._host is None)
        if missing:
            from synapse_runtime.errors import RemoteError

            extras = "remote" if self._host is not None else "remote,server"
            raise RemoteError(
                f"remote mode needs packages that are not installed ({', '.join(missing)}): "
                f"pip install 'pytest-synapse-harness[{extras}]'"
            )
        from synapse_runtime.executors.remote.backend import Backend
        from synapse_runtime.executors.remote.config import Secret, Settings, resolve_settings, token_in_file
        from synapse_runtime.executors.remote.transport import Timeouts, Transport

        timeouts = None
        with self._lock:
            if self._host is not None:
                token = None if self._token_file is None else token_in_file(self._token_file)
                settings = resolve_settings(self._host, token)
                settings.require_credentials()
                address = (settings.host, "")
            else:
                address = self._server.address()
                timeouts = Timeouts(retry=_OWN_RETRY_SECONDS, outage=_OWN_OUTAGE_SECONDS)
                settings = Settings(address[0], Secret(address[1]), sources={"host": "started for this run"})
            if self._api is None or address != self._address:
                self._api, self._address = Backend(Transport(settings, timeouts=timeouts)), address
                self._cleanup.callback(self._api.transport.close)
            return self._api, settings


class _OwnServer:
    """The server of a run, in the process that started the run; it is started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._server: Any = None
        self._problem: RemoteError | None = None
        self._listening: socket.socket | None = None
        self._key = ""

    def address(self) -> tuple[str, str]:
        """Return host and token of the server, after starting it if it does not run.

        Raises:
            RemoteError: It cannot be started; it is tried once.
        """
        from synapse_runtime.core.changed_variables import inherited_environment
        from synapse_runtime.errors import RemoteError
        from synapse_runtime.executors.remote.embedded_server import serve_embedded

        with self._lock:
            if self._problem is not None:
                raise RemoteError(str(self._problem))
            if self._server is None or not self._server.is_running:
                self._stack.close()
                try:
                    self._server = self._stack.enter_context(
                        serve_embedded(
                            runs_directories=True, concurrency=_CONCURRENCY, variables=inherited_environment()
                        )
                    )
                except RemoteError as error:
                    self._problem = error
                    raise
            return self._server.host, self._server.token

    def share(self) -> dict[str, Any]:
        """Return what `_ServerOfRun` needs to ask this process for the server."""
        if self._listening is None:
            self._key = secrets.token_hex(32)
            self._listening = socket.create_server((_LOOPBACK, 0))
            threading.Thread(target=self._answer_all, args=(self._listening,), daemon=True).start()
        return {"port": self._listening.getsockname()[1], "key": self._key}

    def close(self) -> None:
        """Stop the server."""
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
        with self._lock:
            self._server = None
            self._stack.close()

    def _answer_all(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        from synapse_runtime.errors import RemoteError

        with connection, contextlib.suppress(OSError):
            connection.settimeout(_ASK_SECONDS)
            key = connection.recv(len(self._key), socket.MSG_WAITALL)
            if not hmac.compare_digest(key, self._key.encode()):
                return
            try:
                answer = dict(zip(("host", "token"), self.address(), strict=True))
            except RemoteError as error:
                answer = {"error": str(error)}
            connection.sendall(json.dumps(answer).encode())


class _ServerOfRun:
    """The server of a run, in another process of it, such as a worker of pytest-xdist.

    Args:
        port: Where the process that started the run can be asked.
        key: The key that it requires.
    """

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key

    def address(self) -> tuple[str, str]:
        """Return host and token of the server; this starts it if it does not run."""
        from synapse_runtime.errors import RemoteError

        try:
            with socket.create_connection((_LOOPBACK, self._port), _ASK_SECONDS) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(self._key.encode())
                data = b""
                while part := connection.recv(_MESSAGE_BYTES):
                    data += part
            answer: dict[str, str] = json.loads(data)
        except (OSError, ValueError) as error:
            raise RemoteError(f"the process that started this test run does not answer: {error}") from error
        if "error" in answer:
            raise RemoteError(answer["error"])
        return answer["host"], answer["token"]

    def share(self) -> dict[str, Any]:
        """Return the same for a process that this one starts."""
        return {"port": self._port, "key": self._key}

    def close(self) -> None:
        """Do nothing: the process that started the run stops the server."""


def missing_modules(*, server: bool) -> list[str]:
    """Return the names of the modules that remote mode needs and that are not installed.

    Args:
        server: Whether a server is needed, too.
    """
    needed = (*_CLIENT_MODULES, *(_SERVER_MODULES if server else ()))
    return [name for name in needed if find_spec(name) is None]

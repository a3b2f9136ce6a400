"""Start and stop a server."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from synapse_runtime.errors import PluginError
from synapse_runtime.server.app import create_app
from synapse_runtime.server.auth import AllowedHosts, is_loopback, local_token, write_private
from synapse_runtime.server.backend import Backend
from synapse_runtime.server.changes import Changes
from synapse_runtime.server.releases import Releases
from synapse_runtime.server.runs import DIED, RunOptions, Runs
from synapse_runtime.server.sessions import Sessions
from synapse_runtime.server.store import DataInUse, DataLock, Store, hashed

__all__ = ["ServeOptions", "ServerError", "serve", "state_file"]

_SHUTDOWN_SECONDS = 3
_PARENT_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DIED_META: Final = {"error": {"error_type": "infrastructure", "message": DIED}}


class ServerError(PluginError):
    """The server cannot start; the message says why."""


@dataclass(frozen=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        directories: Plugin directories that are read live.
        port: The port; 0 for a free one.
        bind: The address to listen on.
        data: The data directory; None for a temporary one, which is deleted at the end.
        allow_remote: Whether `bind` may be an address that other machines reach.
        publish_login: Whether to write the file that `synapse login --local` reads.
        runs_directories: Whether a call may name any plugin directory of this machine.
        runs: How jobs are run.
    """

    directories: Sequence[Path] = ()
    port: int = 8000
    bind: str = "127.0.0.1"
    data: Path | None = None
    allow_remote: bool = False
    publish_login: bool = True
    runs_directories: bool = False
    runs: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class Address:
    """How to reach a server that has started.

    Attributes:
        host: Its URL.
        token: The admin's token.
        data: The data directory.
        token_file: The file that contains it, if there is one.
        login_url: Its page, with a one-time code in the fragment, which browsers do not send to servers.
    """

    host: str
    token: str = field(repr=False)
    data: Path
    token_file: Path | None
    login_url: str = field(repr=False)


def state_file(port: int) -> Path:
    """Return the file in which a running server of this user tells its address and token, for this port."""
    return _state_directory() / "servers" / f"{port}.json"


def default_data() -> Path:
    """Return the data directory that is used if none is given."""
    return _state_directory() / "server"


@dataclass(frozen=True)
class Parent:
    """The process with which a server ends.

    Attributes:
        descriptor: A file descriptor that ends when it closes the other end, or when it and its own forks have ended.
        pid: The process, if it is the server's parent; it may have forks that live longer.
    """

    descriptor: int
    pid: int | None = None

    def wait(self) -> None:
        """Wait until it has ended."""
        with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
            selector.register(self.descriptor, selectors.EVENT_READ)
            while self.pid is None or os.getppid() == self.pid:
                if selector.select(_PARENT_SECONDS) and not os.read(self.descriptor, 4096):
                    return


def serve(options: ServeOptions, on_ready: Callable[[Address], object], *, end_with: Parent | None = None) -> None:
    """Run a server until SIGINT or SIGTERM.

    Args:
        options: How.
        on_ready: Called once it accepts requests.
        end_with: A process; the server also stops once that has ended.

    Raises:
        ServerError: It cannot start.
    """
    if not options.allow_remote and not is_loopback(options.bind):
        raise ServerError(
            f"--bind {options.bind} lets other machines connect, and requests are not encrypted: whoever reads them "
            "can run code here. Put a TLS proxy before it, or add --insecure if the network is trusted"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_exit())
        data = stack.enter_context(_data_directory(options.data))
        listening = stack.enter_context(_listen(options.bind, options.port))
        store = Store.in_directory(data)
        stack.callback(store.close)
        store.fail_unfinished(DIED, _DIED_META)
        token_file = None if options.data is None else data / "token"
        token = local_token(store, token_file)
        releases = Releases(store, data, options.directories)
        changes = Changes()
        runs = Runs(store, releases, changes, options.runs)
        sessions, url = Sessions(), _url(listening)
        address = Address(url, token, data, token_file, f"{url}/#code={sessions.create_code(hashed(token))}")
        backend = Backend(
            store,
            releases,
            runs,
            changes,
            AllowedHosts(options.bind),
            address.host,
            is_ephemeral=options.data is None,
            runs_directories=options.runs_directories,
            sessions=sessions,
        )
        server = _Server(backend, lambda: on_ready(address))
        runs.start(address.host)
        stack.callback(store.fail_unfinished, DIED, _DIED_META)
        stack.callback(runs.close)
        if options.publish_login:
            stack.enter_context(_login_file(listening.getsockname()[1], address))
        if end_with is not None:
            threading.Thread(target=server.stop_after, args=(end_with,), daemon=True).start()
        server.run(sockets=[listening])
        for number in _SIGNALS:  # what follows must not be interrupted
            signal.signal(number, signal.SIG_IGN)


class _Server(uvicorn.Server):
    """Ends its event streams when it is asked to stop, as they would keep it running."""

    def __init__(self, backend: Backend, on_ready: Callable[[], object]) -> None:
        self._backend = backend
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                create_app(backend),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._on_ready()
        # Not before: it would take a processor from the start.
        threading.Thread(target=self._backend.runs.prepare, name="synapse-prepare", daemon=True).start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on signals, without raising them again at the end: this process has to clean up."""
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal."""
        self._backend.changes.close()
        super().handle_exit(sig, frame)

    def stop_after(self, parent: Parent) -> None:
        """Stop once this process has ended."""
        parent.wait()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals_exit() -> Iterator[None]:
    """Let signals end the block as an exception does, so that nothing is left behind; restore their handlers then."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # One that is ignored, such as by `nohup`, stays so.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _data_directory(data: Path | None) -> Iterator[Path]:
    if data is None:
        directory = Path(tempfile.mkdtemp(prefix="synapse-server-"))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = DataLock(data)
    except DataInUse as error:
        raise ServerError(str(error)) from None
    except OSError as error:
        raise ServerError(
            f"the data directory {data} cannot be used: {error.strerror}; choose another with --data"
        ) from error
    try:
        yield data
    finally:
        lock.release()


@contextlib.contextmanager
def _listen(bind: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it each answer takes 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((bind, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServerError(f"cannot listen on {bind}:{port}: {reason}; choose another port with --port") from error
        listening.listen(2048)
        yield listening


@contextlib.contextmanager
def _login_file(port: int, address: Address) -> Iterator[None]:
    path = state_file(port)
    content = {"host": address.host, "token": address.token, "pid": os.getpid()}
    try:
        write_private(path, json.dumps(content) + "\n")
    except OSError as error:
        print(f"warning: `synapse login --local` will not find this server: {path}: {error.strerror}", file=sys.stderr)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
                path.unlink()


def _url(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    if address in ("0.0.0.0", "::"):  # what runs on this machine connects to
        address = "127.0.0.1" if address == "0.0.0.0" else "::1"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _state_directory() -> Path:
    root = os.environ.get("XDG_STATE_HOME")
    base = Path(root) if root and os.path.isabs(root) else Path.home() / ".local" / "state"
    return base / "synapse"

"""Where the backend is and who calls it: options, environment variables, `~/.synapse/config.json`, defaults.

The file is shared with synapse-sdk, so keys that are unknown here are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from synapse_runtime.errors import ConfigError, CredentialsWarning, RemoteError

DEFAULT_HOST: Final = "https://api.synapse.sh"
# Of each value: its environment variable, and its key in the file.
_VARIABLES: Final = {
    "host": "SYNAPSE_HOST",
    "access_token": "SYNAPSE_ACCESS_TOKEN",
    "user_token": "SYNAPSE_PLUGIN_RUN_USER_TOKEN",
    "tenant": "SYNAPSE_PLUGIN_RUN_TENANT",
    "agent": "SYNAPSE_AGENT_ID",
}
_MAX_FILE_BYTES = 1_000_000
_MAX_TOKEN = 10_000
OPTION: Final = "option"
DEFAULT: Final = "default"

OnProblem = Callable[[str], object]


class Secret:
    """A token. Only `reveal` returns its text.

    Example:
        >>> token = Secret("syn_abc")
        >>> token, f"{token}", token.reveal()
        (<secret>, '<secret>', 'syn_abc')
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True)
class Settings:
    """How to reach a backend.

    Attributes:
        host: Its URL, without a slash at the end.
        access_token: The access token, if it is what to send.
        user_token: The user token, if it is what to send instead.
        tenant: The tenant that the user token is for.
        agent: Id or name of the agent that runs the jobs.
        sources: Where each of these is from, by name: `option`, an environment variable, the file, or `default`.
    """

    host: str
    access_token: Secret | None = None
    user_token: Secret | None = None
    tenant: str | None = None
    agent: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def token_source(self) -> str:
        """Where the token to send is from."""
        return self.sources.get("user_token" if self.user_token is not None else "access_token", "")

    def require_credentials(self) -> None:
        """Raise `RemoteError` unless there is a token that may be sent to the host."""
        if self.access_token is None and self.user_token is None:
            raise RemoteError(
                f"no credentials for {self.host}: run `synapse login`, or set {_VARIABLES['access_token']}"
            )
        if self.sources.get("host") == DEFAULT:
            raise RemoteError(
                f"no host is configured, and the token ({self.token_source}) is not sent to the default host "
                f"{self.host} unless you name it: pass --host, set {_VARIABLES['host']}, or run `synapse login`"
            )


def resolve_settings(
    host: str | None = None,
    token: str | None = None,
    *,
    tenant: str | None = None,
    agent: str | int | None = None,
    on_problem: OnProblem | None = None,
) -> Settings:
    """Return the settings: of each value the option, else the environment variable, the file's, or the default.

    A user token takes the place of an access token, unless the access token is given here.

    Args:
        host: URL of the backend.
        token: An access token.
        tenant: A tenant.
        agent: Id or name of an agent.
        on_problem: Called with the reason if the file is ignored; by default it is a `CredentialsWarning`.

    Raises:
        ConfigError: The file is not JSON.
        RemoteError: The host is not a URL, or a token contains characters that no token has.
    """
    file, path = _usable_file(on_problem or _warn), str(config_file())
    options = {"host": host, "access_token": token, "tenant": tenant, "agent": None if agent is None else str(agent)}
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name, variable in _VARIABLES.items():
        in_file = file.get(name)
        if name == "agent" and isinstance(in_file, Mapping):
            in_file = in_file.get("id")
        for value, source in ((options.get(name), OPTION), (os.environ.get(variable), variable), (in_file, path)):
            if isinstance(value, str | int) and str(value).strip():
                values[name], sources[name] = str(value).strip(), source
                break
    if sources.get("access_token") == OPTION:
        values.pop("user_token", None)
    elif "user_token" in values:
        values.pop("access_token", None)
    if "host" not in values:
        values["host"], sources["host"] = DEFAULT_HOST, DEFAULT
    return Settings(
        host=checked_host(values["host"]),
        access_token=_secret(values.get("access_token"), "access token", sources.get("access_token")),
        user_token=_secret(values.get("user_token"), "user token", sources.get("user_token")),
        tenant=_header_text(values.get("tenant"), "tenant", sources.get("tenant")),
        agent=values.get("agent"),
        sources={name: source for name, source in sources.items() if name in values},
    )


def token_in_file(path: str) -> str:
    """Return the token that a file contains.

    Raises:
        RemoteError: The file cannot be read, or is empty.
    """
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(_MAX_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RemoteError(f"the token file {path!r} cannot be read: {reason}") from error
    if not token:
        raise RemoteError(f"the token file {path!r} is empty")
    return token


def checked_host(text: str) -> str:
    """Return a host's URL without a slash at its end; a path is kept.

    Raises:
        RemoteError: It is not an http or https URL, or contains credentials.

    Example:
        >>> checked_host("https://host.example/api/")
        'https://host.example/api'
        >>> checked_host("host.example")
        Traceback (most recent call last):
        ...
        synapse_runtime.errors.RemoteError: the host 'host.example' is not a URL; did you mean https://host.example?
    """
    from urllib.parse import urlsplit

    text = text.strip()
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises for an invalid one
    except ValueError:
        raise RemoteError(f"the host {text!r} is not a URL") from None
    if not is_url:
        hint = f"; did you mean https://{text}?" if text and "//" not in text and "@" not in text else ""
        raise RemoteError(f"the host {text.rpartition('@')[2]!r} is not a URL{hint}")
    if "@" in parts.netloc:
        raise RemoteError(f"the host {parts.hostname} must not contain a user name or password: use a token")
    if parts.query or parts.fragment:
        raise RemoteError(f"the host {text!r} must not have a query or fragment")
    return text.rstrip("/")


def _secret(text: str | None, what: str, source: str | None) -> Secret | None:
    checked = _header_text(text, what, source)
    return None if checked is None else Secret(checked)


def _header_text(text: str | None, what: str, source: str | None) -> str | None:
    """Return a text that can be the value of a header; the error does not show it."""
    if text is not None and not (text.isascii() and text.isprintable() and " " not in text):
        raise RemoteError(f"the {what} ({source}) contains spaces or characters that are not ASCII")
    return text


def config_file() -> Path:
    """Return the path of the file, which need not exist."""
    return Path.home() / ".synapse" / "config.json"


def read_file() -> dict[str, Any]:
    """Return the content of the file; empty if it does not exist.

    Raises:
        ConfigError: It belongs to another user, others may write to it, or it is not a JSON object.
    """
    path = config_file()
    content = _read_own(path)
    if content is None:
        return {}
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}; correct the file, or delete it and log in again", path=path) from None
    if not isinstance(data, dict):
        raise ConfigError("expected a JSON object; delete the file and log in again", path=path)
    return data


def update_file(changes: Mapping[str, Any]) -> Path:
    """Change keys of the file and keep the others. It is replaced at once, and only this user can access it.

    Args:
        changes: New values by key; None deletes the key.

    Returns:
        The path of the file.

    Raises:
        ConfigError: It cannot be read or written.
    """
    data = read_file()
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path = Path(os.path.realpath(config_file()))  # keep a symbolic link
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o600 if path.exists() else 0o600
        descriptor, temporary = tempfile.mkstemp(prefix=".config-", suffix=".json", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                json.dump(data, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", path=path) from error
    return path


def _usable_file(on_problem: OnProblem) -> dict[str, Any]:
    """Return the content of the file; empty if it is not trusted."""
    try:
        return read_file()
    except UntrustedFile as error:
        on_problem(str(error))
        return {}


class UntrustedFile(ConfigError):
    """The file could be another user's, whose host would get this user's token."""


def _read_own(path: Path) -> str | None:
    """Return the text of a file that belongs to this user or root and that nobody else can write; None if missing."""
    try:
        # A pipe in its place must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path) from error
    with os.fdopen(descriptor, "rb") as file:
        for status, what in ((os.fstat(descriptor), ""), (path.parent.stat(), "its directory ")):
            if status.st_uid not in (os.getuid(), 0):
                raise UntrustedFile(f"ignored: {what}belongs to another user", path=path)
            if status.st_mode & stat.S_IWOTH:
                raise UntrustedFile(f"ignored: {what}can be written by others; run `chmod o-w` on it", path=path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UntrustedFile("ignored: not a regular file", path=path)
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"larger than {_MAX_FILE_BYTES} bytes", path=path)
    return content.decode("utf-8", "replace")


def _warn(text: str) -> None:
    warnings.warn(text, CredentialsWarning, stacklevel=4)


@dataclass(frozen=True)
class LocalServer:
    """A server of this user on this machine, as it has registered itself.

    Attributes:
        host: Its URL.
        token: A token for it.
        pid: Its process.
    """

    host: str
    token: Secret
    pid: int


def servers_directory() -> Path:
    """Return the directory in which running servers of this user register."""
    root = os.environ.get("XDG_STATE_HOME")
    base = Path(root) if root and os.path.isabs(root) else Path.home() / ".local" / "state"
    return base / "synapse" / "servers"


def local_servers() -> list[LocalServer]:
    """Return the running servers of this user on this machine, the newest first.

    Files of other users, and files that others can access, are ignored.
    """
    found: list[tuple[float, LocalServer]] = []
    directory = servers_directory()
    try:
        if directory.stat().st_uid != os.getuid():
            return []
        paths = sorted(directory.glob("*.json"))
    except OSError:
        return []
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, RemoteError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if status.st_uid != os.getuid() or status.st_mode & 0o077 or not stat.S_ISREG(status.st_mode):
                    continue
                data = json.loads(file.read(_MAX_FILE_BYTES))
            token = _secret(str(data["token"]), "token", str(path))
            server = LocalServer(checked_host(data["host"]), token or Secret(""), int(data["pid"]))
            if _is_running(server.pid):
                found.append((status.st_mtime, server))
    return [server for _, server in sorted(found, key=lambda pair: -pair[0])]


def _is_running(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

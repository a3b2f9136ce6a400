"""HTTP to one backend: timeouts, retries, limits, and errors that say what to do. Only this module imports httpx."""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import threading
import weakref
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from synapse_runtime.errors import RemoteError
from synapse_runtime.executors.remote.config import Secret, Settings
from synapse_runtime.run_record import InvalidRecord, parse_json

try:
    import httpx
    import stamina
except ModuleNotFoundError as error:
    raise RemoteError(
        f"remote mode needs the package {error.name}: pip install 'pytest-synapse-harness[remote]'"
    ) from error

# The default handler of `logging` would print each retry.
logging.getLogger("stamina").addHandler(logging.NullHandler())

# Requests of this module are not logged: in a test, the records would be among those of its action.
_own_requests = threading.local()


def _is_of_others(record: logging.LogRecord) -> bool:
    return not getattr(_own_requests, "depth", 0)


for _name in ("stamina", "httpx", *(f"httpcore{part}" for part in ("", ".connection", ".http11", ".proxy"))):
    logging.getLogger(_name).addFilter(_is_of_others)


@contextmanager
def _unlogged() -> Iterator[None]:
    _own_requests.depth = getattr(_own_requests, "depth", 0) + 1
    try:
        yield
    finally:
        _own_requests.depth -= 1


# Which failed requests are sent again: all; those that the backend has certainly not accepted.
Repeat = Literal["always", "if not accepted"]
MAX_BYTES: Final = 64_000_000
_MAX_LINE_BYTES: Final = 10_000_000
_ATTEMPTS = 4
_MAX_RETRY_AFTER = 60.0
_SHOWN_CHARACTERS = 200
_MAX_DETAILS = 10
_UNAVAILABLE = frozenset({502, 503, 504})


class StreamBroken(Exception):
    """The connection of a stream of lines was lost.

    Attributes:
        is_silent: Whether it was given up because nothing came for too long.
    """

    def __init__(self, message: str, *, is_silent: bool = False) -> None:
        super().__init__(message)
        self.is_silent = is_silent


@dataclass(frozen=True)
class Timeouts:
    """Time limits of requests, in seconds.

    Attributes:
        connect: To connect.
        read: Without a byte of an answer, or of a stream.
        read_v2: The same for paths below `v2/`.
        retry: Before the first repetition; the next wait longer.
        outage: For how long a job is followed while its backend does not answer.
        late: For how long the log of a job that has ended may still come.
    """

    connect: float = 5.0
    read: float = 15.0
    read_v2: float = 30.0
    retry: float = 0.5
    outage: float = 120.0
    late: float = 5.0


@dataclass(frozen=True)
class Answer:
    """An answer of the backend.

    Attributes:
        request: Method and URL, for messages.
        status: Its HTTP status.
        text: Its body.
        headers: Its headers; their names are in lower case.
    """

    request: str
    status: int
    text: str
    headers: Mapping[str, str]

    def json(self, *, strict: bool = False) -> Any:
        """Return the body as data; None if there is none.

        Args:
            strict: Whether to refuse NaN and infinities, which are not in JSON. The v1 API has them.

        Raises:
            RemoteError: It is not JSON; shows its start.
        """
        if self.status == 204 or not self.text:
            return None
        try:
            return parse_json(self.text) if strict else json.loads(self.text)
        except (InvalidRecord, ValueError, RecursionError):
            pass  # raised below, without this error as its context
        raise RemoteError(
            f"{self.request} answered {self.status} with something else than JSON: {shortened(self.text)}",
            status=self.status,
        )


def shortened(text: str) -> str:
    """Return the start of a text as a literal.

    Example:
        >>> shortened("<html>" + 300 * "x")[-10:]
        "xxxxxx'..."
    """
    return repr(text[:_SHOWN_CHARACTERS]) + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def _close(client: httpx.Client) -> None:
    with _unlogged():
        client.close()


class Transport:
    """Requests to one backend, with the credentials of its user.

    Args:
        settings: The backend and the credentials.
        insecure: Whether to send credentials without encryption to other machines.
        timeouts: Time limits.
        max_bytes: The largest body that is read.

    Raises:
        RemoteError: The host is another machine, and would be reached without encryption.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        insecure: bool = False,
        timeouts: Timeouts | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.host = settings.host
        self.timeouts = timeouts or Timeouts()
        self._settings = settings
        self._max_bytes = max_bytes
        parts = urlsplit(settings.host)
        is_local = is_loopback(parts.hostname or "")
        if parts.scheme == "http" and not is_local and not insecure:
            raise RemoteError(
                f"{settings.host} would get the token without encryption: use https, or allow it with --insecure "
                "(insecure=True)"
            )
        self._use_proxies = not is_local  # a proxy would get what is meant for this machine
        self._client: httpx.Client | None = None
        self._ssl_context: ssl.SSLContext | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"<Transport to {self.host}>"

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._client is not None and self._pid == os.getpid():
            _close(self._client)
        self._client = None

    def get(self, path: str, *, params: Mapping[str, str] | None = None, accept: Collection[int] = ()) -> Answer:
        """Send a GET request, and repeat it if it fails. Arguments as for `request`."""
        return self.request("GET", path, params=params, accept=accept)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        file: tuple[str, bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: Repeat = "always",
        accept: Collection[int] = (),
    ) -> Answer:
        """Send a request and return the answer.

        Args:
            method: The HTTP method.
            path: The path below the host's, without a slash at its start.
            params: The query.
            body: What to send as JSON, with bare NaN.
            form: The fields of a form to send instead.
            file: Name and content of its file.
            headers: Further headers.
            repeat: Which failed requests are sent again.
            accept: Statuses above 399 that are returned instead of raised.

        Raises:
            RemoteError: It failed; the message says what to do.
        """
        content: dict[str, Any] = {}
        if form is not None:
            content = {"data": dict(form), "files": None if file is None else {"file": file}}
        elif body is not None:
            text = json.dumps(body, separators=(",", ":"))
            content = {"content": text.encode(), "headers": {"Content-Type": "application/json"}}
        content["headers"] = {**content.get("headers", {}), **(headers or {})}
        content["params"] = params
        sender = _Sender(self, method, path, content, repeat, accept)
        error = sender.send()
        if error is not None:
            raise error
        assert sender.answer is not None
        return sender.answer

    def pages(self, path: str, *, params: Mapping[str, str] | None = None) -> list[Any]:
        """Return the items of all pages of a list, at most 10 000.

        Of the address of the next page only the query is used, so that no other host gets the token.
        """
        items: list[Any] = []
        query: Mapping[str, str] | None = params
        while len(items) < 10_000:
            answer = self.get(path, params=query)
            data = answer.json()
            if isinstance(data, list):
                return [*items, *data]
            if not isinstance(data, dict) or not isinstance(data.get("results"), list):
                raise RemoteError(
                    f"{answer.request} answered with something else than a list: {shortened(answer.text)}"
                )
            items += data["results"]
            following = data.get("next")
            if not isinstance(following, str) or not following:
                break
            now, query = query, dict(parse_qsl(urlsplit(following).query))
            if query == now:
                break
        return items

    @contextmanager
    def lines(
        self, path: str, *, headers: Mapping[str, str] | None = None, accept: Collection[int] = ()
    ) -> Iterator[Answer | Iterator[str]]:
        """Open a stream of events, and yield its lines; or the answer, if it is not such a stream.

        A line at the end that is not complete is left out. The lines raise `StreamBroken` if the connection is lost.

        Args:
            path: As for `request`.
            headers: As for `request`.
            accept: As for `request`.

        Raises:
            RemoteError: The backend refused.
            StreamBroken: There is no connection.
        """
        request = f"GET {self.host}/{path}"
        problem = ""
        stream = self._http().stream(
            "GET",
            f"{self.host}/{path}",
            headers={**self._headers(path), "Accept": "text/event-stream", **(headers or {})},
            timeout=self._timeout(self.timeouts.read),
        )
        try:
            with _unlogged():
                response = stream.__enter__()
        except httpx.HTTPError as error:
            problem = _described(error, self.timeouts)
        if problem:
            raise StreamBroken(f"{request}: {problem}")
        try:
            kind = response.headers.get("Content-Type", "")
            if response.status_code == 200 and kind.startswith("text/event-stream"):
                yield _lines(response, request, self.timeouts)
                return
            answer: Answer | RemoteError | None = None
            try:
                with _unlogged():
                    answer = self._read(response, request)
            except httpx.HTTPError as error:
                problem = _described(error, self.timeouts)
        finally:
            with _unlogged():
                stream.__exit__(None, None, None)
        if answer is None:
            raise StreamBroken(f"{request}: {problem}")
        if isinstance(answer, RemoteError):
            raise answer
        if answer.status in _UNAVAILABLE:
            raise StreamBroken(f"{request} answered {answer.status}")
        refused = None if answer.status in accept else error_of(answer, self.host)
        if refused is not None:
            raise refused
        yield answer

    def _read(self, response: httpx.Response, request: str) -> Answer | RemoteError:
        """Return the answer with its body; an error if it is too large."""
        limit = self._max_bytes
        length = response.headers.get("Content-Length", "")
        size, pieces = int(length) if length.isdecimal() else 0, []
        if size <= limit:
            size = 0
            for piece in response.iter_bytes():
                size += len(piece)
                if size > limit:
                    break
                pieces.append(piece)
        if size > limit:
            return RemoteError(
                f"{request} answered with more than {limit // 1_000_000} MB, which is not read",
                status=response.status_code,
            )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(request, response.status_code, b"".join(pieces).decode("utf-8", "replace"), headers)

    def _http(self) -> httpx.Client:
        if self._client is None or self._pid != os.getpid():  # a fork must not use its parent's connections
            self._client, self._pid = self._new_client(), os.getpid()
            weakref.finalize(self, _close, self._client)  # an executor need not be closed
        return self._client

    def _new_client(self) -> httpx.Client:
        if self._ssl_context is None:
            # Reading the certificates of all authorities takes longer than a request.
            is_encrypted = self.host.startswith("https:")
            self._ssl_context = httpx.create_ssl_context() if is_encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx.Client(follow_redirects=False, trust_env=self._use_proxies, verify=self._ssl_context)

    def _timeout(self, read: float) -> httpx.Timeout:
        return httpx.Timeout(read, connect=self.timeouts.connect)

    def _headers(self, path: str) -> dict[str, str]:
        """Return the headers with the credentials; v2 has them without a word before them, except for a user token."""
        settings = self._settings
        is_v2 = path.startswith("v2/")
        found: dict[str, Secret | str | None]
        if settings.user_token is not None:
            found = {"Authorization": settings.user_token, "Synapse-Tenant": settings.tenant}
        else:
            found = {"Synapse-Access-Token": settings.access_token, "Synapse-Tenant": settings.tenant}
        from synapse_runtime import __version__

        headers = {"Accept": "application/json", "User-Agent": f"pytest-synapse-harness/{__version__}"}
        for name, value in found.items():
            if value is not None:
                text = value.reveal() if isinstance(value, Secret) else value
                headers[name] = text if is_v2 and name != "Authorization" else f"Token {text}"
        return headers


class _Sender:
    """Sends one request, several times if necessary.

    Attributes:
        answer: The answer, once there is one.
    """

    def __init__(
        self,
        transport: Transport,
        method: str,
        path: str,
        content: dict[str, Any],
        repeat: Repeat,
        accept: Collection[int],
    ) -> None:
        self.answer: Answer | None = None
        self._transport = transport
        self._method = method
        self._path = path
        self._content = content
        self._repeat = repeat
        self._accept = accept
        self._request = f"{method} {transport.host}/{path}"

    def send(self) -> RemoteError | None:
        """Send the request until it is answered; return the error if it failed."""
        failed = None
        try:
            with _unlogged():
                for attempt in stamina.retry_context(
                    on=_wait_before_retry,
                    attempts=_ATTEMPTS,
                    timeout=None,
                    wait_initial=self._transport.timeouts.retry,
                    wait_max=16 * self._transport.timeouts.retry,
                    wait_jitter=self._transport.timeouts.retry / 2,
                ):
                    with attempt:
                        error, may_repeat, after = self._send_once()
                        if error is not None and may_repeat:
                            raise _Failed(error, after)
                        failed = error
        except _Failed as last:
            failed = last.error
        return failed

    def _send_once(self) -> tuple[RemoteError | None, bool, float | None]:
        """Return the error of one request, whether it may be sent again, and the seconds that the backend asks for.

        The errors of httpx, whose frames have the headers, are no context of ours.
        """
        transport = self._transport
        timeouts = transport.timeouts
        is_v2 = self._path.startswith("v2/")
        content = {**self._content, "headers": {**transport._headers(self._path), **self._content["headers"]}}
        # A connection that was open before may be closed just now, and nobody knows whether the request was received.
        client = transport._http() if self._repeat == "always" else transport._new_client()
        try:
            with client.stream(
                self._method,
                f"{transport.host}/{self._path}",
                timeout=transport._timeout(timeouts.read_v2 if is_v2 else timeouts.read),
                **content,
            ) as response:
                answer = transport._read(response, self._request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            return RemoteError(f"{transport.host} cannot be reached: {_described(error, timeouts)}"), True, None
        except httpx.HTTPError as error:
            problem = _described(error, timeouts)
        else:
            return self._judge(answer)
        finally:
            if client is not transport._client:
                _close(client)
        if self._repeat == "always":
            return RemoteError(f"{self._request}: {problem}"), True, None
        return RemoteError(f"{self._request}: {problem}", may_be_accepted=True), False, None

    def _judge(self, answer: Answer | RemoteError) -> tuple[RemoteError | None, bool, float | None]:
        if isinstance(answer, RemoteError):
            answer.may_be_accepted = self._repeat != "always"
            return answer, False, None
        if answer.status in self._accept:
            self.answer = answer
            return None, False, None
        error = error_of(answer, self._transport.host)
        if error is None:
            self.answer = answer
            return None, False, None
        after = _retry_after(answer)
        if self._repeat == "always":
            return error, answer.status == 429 or answer.status in _UNAVAILABLE, after
        # What stands before a backend answers 502 and 504 even if it was the backend that accepted the request.
        error.may_be_accepted = answer.status >= 500 and answer.status != 503
        return error, answer.status in (429, 503) and after is not None, after


class _Failed(Exception):
    def __init__(self, error: RemoteError, after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def _wait_before_retry(error: Exception) -> bool | float:
    if not isinstance(error, _Failed):
        return False
    # Not all at the same moment.
    return True if error.after is None else error.after + random.uniform(0, error.after / 10)


def _retry_after(answer: Answer) -> float | None:
    """Return the seconds of `Retry-After`, at most a minute; None if there are none."""
    text = answer.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER) if seconds == seconds else None


def _described(error: httpx.HTTPError, timeouts: Timeouts) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {timeouts.connect:g} s"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    text = str(error).partition("\n")[0]
    if isinstance(error, httpx.ConnectError):
        return text or "connection refused"
    return f"the connection was lost ({text or type(error).__name__})"


def _lines(response: httpx.Response, request: str, timeouts: Timeouts) -> Iterator[str]:
    rest = b""
    problem = ""
    is_silent = False
    pieces = response.iter_bytes()
    try:
        while True:
            try:
                with _unlogged():
                    piece = next(pieces, None)
            except httpx.HTTPError as error:
                problem, is_silent = _described(error, timeouts), isinstance(error, httpx.ReadTimeout)
            except (OSError, RuntimeError) as error:  # closed by another thread
                problem = f"the connection was closed ({error})"
            if problem:
                raise StreamBroken(f"{request}: {problem}", is_silent=is_silent)
            if piece is None:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.removesuffix(b"\r").decode("utf-8", "replace")
            if len(rest) > _MAX_LINE_BYTES:
                raise RemoteError(f"{request} sent a line of more than {_MAX_LINE_BYTES // 1_000_000} MB")
    finally:
        with _unlogged():
            cast("Generator[bytes]", pieces).close()


def error_of(answer: Answer, host: str) -> RemoteError | None:
    """Return the error of an answer, which says what to do; None if it is none."""
    status = answer.status
    if status < 300:
        return None
    if status < 400:
        target = answer.headers.get("location", "an address that it does not name")
        return RemoteError(
            f"{answer.request} redirects to {target}, which does not get the token: if that is the backend, pass its "
            "address with --host",
            status=status,
        )
    reason = _reason(answer)
    about = f": {reason}" if reason else ""
    after = _retry_after(answer)
    advice = {
        400: f"{answer.request} was refused (400){about}",
        401: f"{host} does not accept the credentials (401){about}; run `synapse login`",
        403: f"these credentials may not do that: {answer.request} (403){about}; use a token with the right, or ask "
        "the tenant's administrator",
        404: f"{answer.request} was not found (404){about}; check the name, the host, and that the token is of the "
        "right tenant",
        409: f"{answer.request} is in conflict with what exists (409){about}",
        422: f"{answer.request} was refused as invalid (422){about}",
        429: f"{host} refuses further requests for now (429){about}; try again "
        + ("later" if after is None else f"in {after:g} s"),
        503: f"{host} is not available (503){about}; try again later",
    }.get(status)
    if advice is None and status >= 500:
        advice = f"{answer.request} failed at the backend ({status}){about}; try again later, or look at its log"
    return RemoteError(advice or f"{answer.request} was refused ({status}){about}", status=status)


def _reason(answer: Answer) -> str:
    """Return what the body of an error says, on one line."""
    try:
        data = json.loads(answer.text)
    except (ValueError, RecursionError):
        return shortened(answer.text) if answer.text else ""
    if isinstance(data, dict) and isinstance(data.get("error"), dict):  # of v2
        parts = [str(data["error"].get("message", ""))]
        for item in _list(data["error"].get("details")):
            if isinstance(item, dict):
                parts.append(f"{item.get('field')}: {item.get('message')}")
        return _joined(parts)
    detail = data.get("detail", data) if isinstance(data, dict) else data
    return _joined(_flat(detail, ()))


def _flat(value: Any, path: tuple[str, ...]) -> list[str]:
    """Return the messages of an error of v1, each after the field that it is about."""
    if isinstance(value, dict):
        if isinstance(value.get("loc"), list) and "msg" in value:
            return [f"{'.'.join(map(str, value['loc']))}: {value['msg']}"]
        return [text for key, item in value.items() if len(path) < 10 for text in _flat(item, (*path, str(key)))]
    if isinstance(value, list):
        return [text for item in value[:_MAX_DETAILS] if len(path) < 10 for text in _flat(item, path)]
    return [f"{'.'.join(path)}: {value}" if path else str(value)]


def _list(value: Any) -> list[Any]:
    return value[:_MAX_DETAILS] if isinstance(value, list) else []


def _joined(parts: list[str]) -> str:
    text = "; ".join(" ".join(part.split()) for part in parts[:_MAX_DETAILS] if part)
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def is_loopback(name: str) -> bool:
    """Return whether a host name is that of this machine's loopback interface.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("127.0.0.1.example")
        (True, True, False)
    """
    if name.lower() in ("localhost", "localhost."):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False

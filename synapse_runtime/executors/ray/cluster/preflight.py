"""Preflight checks of an address: what listens there, and with which versions, within seconds and before Ray connects.

If nothing listens, the token is wrong, or the server is not a cluster, Ray itself waits for half a minute or for ever.
A process whose connection has failed may stay half connected.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import platform
import re
import socket
import threading
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.log_suppression import suppress_log_records

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines
_CONNECT_SECONDS = 5.0
_RESPONSE_SECONDS = 8.0
# More than any cluster has; Ray's default is 100.
_MAX_NODES = 10_000
_TLS_VARIABLES = "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"


class Versions(NamedTuple):
    """The versions that a cluster runs; empty if it does not report them."""

    ray: str
    python: str

    def __str__(self) -> str:
        return " and ".join(f"{name} {text}" for name, text in (("Ray", self.ray), ("Python", self.python)) if text)

    @classmethod
    def here(cls) -> Versions:
        """Return the versions of this process."""
        import ray

        return cls(ray.__version__, platform.python_version())

    def same_python(self, parts: int = 2) -> bool:
        """Return whether the first `parts` parts of Python's version match.

        Code that is pickled by value requires the first two, because bytecode is specific to a minor version.
        """
        return not self.python or self.python.split(".")[:parts] == platform.python_version().split(".")[:parts]


def require_listener(address: str, host: str | None, port: int) -> None:
    """Raise `ClusterError` if nothing accepts connections at an address."""
    try:
        socket.create_connection((host or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"no cluster answers at {address}: {error.strerror or error}") from None


def require_http_listener(url: str) -> None:
    """Raise `ClusterError` if nothing accepts connections at a URL, unless a proxy is configured for it."""
    parts = urlsplit(url)
    if proxy_of(url) is None:
        require_listener(url, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))


class Proxy(NamedTuple):
    """A proxy that HTTP requests are sent through.

    Attributes:
        variable: The environment variable that names it.
        host: Its host.
        port: Its port.
    """

    variable: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port} ({self.variable})"


def request_proxies(url: str) -> dict[str, str]:
    """Return the argument `proxies` for requests to a URL: none for the loopback address, which a proxy cannot reach.

    A cluster that synapse starts listens on that address alone, and so does a forwarded port.
    """
    host = urlsplit(url).hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        is_loopback = False
    return {"no_proxy": host} if is_loopback else {}


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy through which requests to a URL are sent, if the environment names one."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=request_proxies(url).get("no_proxy")))
    if proxy is None:
        return None
    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    variables = [variable for name in names for variable in (name, name.upper()) if os.environ.get(variable)]
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    default_port = 443 if parts.scheme == "https" else 80
    return Proxy(variables[0] if variables else "system settings", parts.hostname or "", parts.port or default_port)


def _through_proxy(url: str) -> str:
    """Return what to add to an error about a URL whose requests are sent through a proxy."""
    proxy = proxy_of(url)
    if proxy is None:
        return ""
    return (
        f". The request was sent through the proxy {proxy}: if that does not serve {urlsplit(url).hostname}, add this "
        "name to no_proxy"
    )


def require_cluster(address: str) -> None:
    """Raise `ClusterError` unless a cluster at the address accepts this process and runs matching versions.

    Through Ray Client the versions are not known before the connection; Ray checks them when it connects.

    Args:
        address: `host:port`, or `ray://host:port`.
    """
    client = address.startswith("ray://")
    target = address.removeprefix("ray://")
    versions = _ping_client(address, target) if client else _query_gcs(address, target)
    if versions is None:
        other = target if client else f"ray://{target}"
        others = _query_gcs(other, target) if client else _ping_client(other, target)
        hint = "" if others is None else f"; use {other}"
        raise ClusterError(f"the server at {address} is not {'Ray Client' if client else 'a cluster (GCS)'}{hint}")
    _require_same_versions(address, versions)


def _require_same_versions(address: str, theirs: Versions) -> None:
    # By default, Ray requires a driver to have exactly the same version of Python.
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    parts = 2 if level == "minor" else 3
    if theirs.ray not in ("", Versions.here().ray) or not theirs.same_python(parts):
        raise version_problem(address, theirs)


def version_problem(address: str, theirs: Versions) -> ClusterError:
    """Return the error of a cluster whose versions do not allow this process to be its driver."""
    return ClusterError(
        f"the cluster at {address} runs {theirs}, but this process runs {Versions.here()}. Ray requires the same "
        "version of Ray and exactly the same version of Python (through ray://, the same minor version). Job mode with "
        "the dashboard's address, http://host:8265, works with any supported version of Ray"
    )


def require_dashboard(url: str, headers: Mapping[str, str] | None = None) -> Versions:
    """Return the versions that a dashboard's cluster runs.

    Args:
        url: The dashboard's URL.
        headers: HTTP headers that it requires; by default those from Ray's token settings.

    Raises:
        ClusterError: The server does not respond, not in time, or is not a Ray dashboard; a token is missing or wrong;
            a certificate is not trusted.
    """
    version = _get(url, "/api/version", headers)
    if not isinstance(version, dict) or "ray_version" not in version:
        raise ClusterError(
            f"the server at {url} is not a Ray dashboard: it does not report a version of Ray{_through_proxy(url)}"
        )
    metadata = _get(url, "/api/v0/cluster_metadata", headers)
    data = metadata.get("data") if isinstance(metadata, dict) else None
    return Versions(str(version["ray_version"]), str((data or {}).get("pythonVersion", "")))


def nodes_of(url: str, headers: Mapping[str, str] | None = None) -> list[dict[str, float]]:
    """Return the resources of each node of the cluster, by Ray's names. Arguments and errors as above."""
    return [dict(node["resources_total"] or {}) for node in _living_nodes(url, headers)]


def node_addresses(url: str, headers: Mapping[str, str] | None = None) -> list[str]:
    """Return the IP addresses of the cluster's nodes. Arguments and errors as above."""
    return [str(node["node_ip"]) for node in _living_nodes(url, headers)]


def session_directory(url: str, headers: Mapping[str, str] | None = None) -> Path | None:
    """Return the directory of a cluster's files on this machine; None if none of its processes is found here.

    No API of Ray returns it. The dashboard knows its name, and the command lines of Ray's processes contain its path.
    Arguments and errors as above.
    """
    import psutil

    version = _get(url, "/api/version", headers)
    name = str(version.get("session_name", "")) if isinstance(version, dict) else ""
    if re.fullmatch(r"session_[\w.-]+", name) is None:
        return None
    path = re.compile(rf"(/\S+/{re.escape(name)})(?:/|$)")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended
            if process.uids().real != os.getuid():  # anybody may start a process with such a command line
                continue
            for word in process.cmdline():
                found = path.search(word)
                if found:
                    return Path(found[1])
    return None


def _living_nodes(url: str, headers: Mapping[str, str] | None) -> list[dict[str, Any]]:
    nodes = _get(url, f"/api/v0/nodes?detail=1&limit={_MAX_NODES}", headers)
    try:
        return [node for node in nodes["data"]["result"]["result"] if node["state"] == "ALIVE"]
    except (KeyError, TypeError):
        raise ClusterError(f"the cluster at {url} does not list its nodes") from None


def nodes_at(address: str) -> list[dict[str, float]]:
    """Return the resources of each node of the cluster at its own address, by Ray's names.

    Args:
        address: `host:port`, already checked by `require_cluster`.

    Raises:
        ClusterError: The cluster no longer responds.
    """
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    request = gcs_service_pb2.GetAllNodeInfoRequest()
    reply = _call(
        address,
        address,
        lambda channel: gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo,
        request,
    )
    nodes = [] if reply is None else reply.node_info_list
    return [dict(node.resources_total) for node in nodes if node.state == gcs_pb2.GcsNodeInfo.ALIVE]


def free_resources(url: str, headers: Mapping[str, str] | None = None) -> dict[str, float] | None:
    """Return the available resources of all nodes together, by names in camelCase; None if the cluster has no report.

    Arguments and errors otherwise as above.
    """
    status = _get(url, "/api/cluster_status", headers)
    try:
        usage = status["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
        return {name: total - used for name, (used, total) in usage.items()}
    except (KeyError, TypeError, ValueError):
        return None


def to_camel_case(name: str) -> str:
    """Convert a resource's name from snake_case to camelCase, which the dashboard's status uses.

    Example:
        >>> to_camel_case("object_store_memory")
        'objectStoreMemory'
    """
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def certificates() -> str | bool:
    """Return what certificates are verified with: a file or directory from environment variables, or True for defaults.

    Each of Ray's two HTTP libraries reads only one of the variables.
    """
    name = _certificates_variable()
    if name is None:
        return True
    path = os.environ[name]
    if not Path(path).exists():
        raise ClusterError(f"{name}: {path} does not exist")
    return path


def _certificates_variable() -> str | None:
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return next((name for name in names if os.environ.get(name)), None)


def authorization(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return these headers; if None, those with the token from Ray's settings, if any.

    Raises:
        AuthenticationError: The settings require a token, and there is none.
    """
    if headers is not None:
        return dict(headers)
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return dict(get_auth_headers_if_auth_enabled({}))


def token_problem(address: str, *, sent: bool) -> ClusterError:
    """Return the error of a cluster that denies access.

    Args:
        address: Its address.
        sent: Whether a token was sent.
    """
    if sent:
        return ClusterError(f"the cluster at {address} rejects the token from {_token_source()}")
    return ClusterError(
        f"the cluster at {address} requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH unless the token is in ~/.ray/auth_token"
    )


def _token_source() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"RAY_AUTH_TOKEN_PATH ({path})" if path else "~/.ray/auth_token"


def _query_gcs(address: str, target: str) -> Versions | None:
    """Request the versions from a cluster's own port; return None if another gRPC server responds."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = gcs_service_pb2.InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    reply = _call(
        address, target, lambda channel: gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet, request
    )
    if reply is None:
        return None
    metadata = json.loads(reply.value) if reply.value else {}
    return Versions(metadata.get("ray_version", ""), metadata.get("python_version", ""))


def _ping_client(address: str, target: str) -> Versions | None:
    """Ping Ray Client's server, which reports no versions; return None if another gRPC server responds."""
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    request = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    reply = _call(address, target, lambda channel: ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo, request)
    return None if reply is None else Versions("", "")


def _call(address: str, target: str, method: Any, request: Any) -> Any:
    """Make a gRPC call with the token and the certificates from Ray's settings."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    try:
        channel = init_grpc_channel(target)
    except (OSError, RuntimeError) as error:  # about the certificates
        raise ClusterError(f"RAY_USE_TLS is set, which requires {_TLS_VARIABLES}: {error}") from None
    finished = threading.Event()
    with channel:
        try:
            # Without a timeout of gRPC, which is a time of day, and has passed if a test has stopped the clock.
            call = method(channel).future(request)
            call.add_done_callback(lambda _: finished.set())
            if not finished.wait(_RESPONSE_SECONDS):
                raise ClusterError(
                    f"no cluster answers at {address}: the server accepts connections but does not respond within "
                    f"{_RESPONSE_SECONDS:g} s"
                )
            return call.result()
        except AuthenticationError:
            raise token_problem(address, sent=False) from None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise _grpc_problem(address, error) from None


def _grpc_problem(address: str, error: Any) -> ClusterError:
    import grpc

    details = str(error.details())
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return token_problem(address, sent=bool(authorization()))
    if "Failed parsing HTTP/2" in details:
        return ClusterError(
            f"the server at {address} is not a Ray cluster: it does not speak gRPC. A dashboard's address, for job "
            "mode, starts with http://"
        )
    reason = re.sub(r".*last error: (\w+: )?(ipv[46]:\S+: )?", "", details) or error.code().name
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        hint = "RAY_USE_TLS is set: check that RAY_TLS_CA_CERT trusts the cluster's certificate"
        return ClusterError(f"no cluster answers at {address} over TLS: {reason}. {hint}")
    if "Socket closed" in details or "reset" in details:
        reason += f"; if the cluster uses TLS, set RAY_USE_TLS=1 and {_TLS_VARIABLES}"
    return ClusterError(f"no cluster answers at {address}: {reason}")


def _get(url: str, path: str, headers: Mapping[str, str] | None) -> Any:
    """Send a GET request to a dashboard; return the JSON content, or None if it is not JSON or the path is unknown."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        sent = authorization(headers)
        with suppress_log_records():
            response = requests.get(
                url + path,
                headers=sent,
                timeout=(_CONNECT_SECONDS, _RESPONSE_SECONDS),
                verify=certificates(),
                proxies=request_proxies(url),
            )
    except AuthenticationError:
        raise token_problem(url, sent=False) from None
    except requests.exceptions.SSLError as error:
        name = _certificates_variable()
        fix = "set SSL_CERT_FILE to its file" if name is None else f"add it to {os.environ[name]} (from {name})"
        raise ClusterError(
            f"the certificate of {url} is not trusted: {_innermost(error)}. If it is self-signed or signed by a "
            f"private CA, {fix}{_through_proxy(url)}"
        ) from None
    except requests.exceptions.Timeout:
        raise ClusterError(
            f"no cluster answers at {url}: the server accepts connections but does not respond within "
            f"{_RESPONSE_SECONDS:g} s{_through_proxy(url)}"
        ) from None
    except requests.exceptions.RequestException as error:
        reason = _innermost(error)
        if isinstance(reason, HTTPException):
            raise ClusterError(
                f"the server at {url} is not a Ray dashboard: it does not speak HTTP{_through_proxy(url)}"
            ) from None
        text = f"{getattr(reason, 'strerror', None) or reason}{_through_proxy(url)}"
        raise ClusterError(f"no cluster answers at {url}: {text}") from None
    if response.status_code in (401, 403):
        problem = token_problem(url, sent="authorization" in {name.lower() for name in sent})
        raise ClusterError(f"{problem}{_through_proxy(url)}")
    try:
        return response.json() if response.ok else None
    except requests.exceptions.JSONDecodeError:
        return None


def _innermost(error: BaseException) -> BaseException:
    """Return the innermost error that libraries have wrapped."""
    below: BaseException | None = error
    while below is not None:
        error = below
        reason = getattr(error, "reason", None)
        inner = next((part for part in error.args if isinstance(part, BaseException)), None)
        below = reason if isinstance(reason, BaseException) else inner or error.__cause__ or error.__context__
    return error

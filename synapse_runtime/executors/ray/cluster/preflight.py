"""Who answers at an address, and with which versions: asked in seconds, before Ray is let near it.

Ray itself waits for half a minute or for ever where nobody answers, where a token is wrong, or where what answers is no
cluster. A process that it could not connect may stay half connected.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from synapse_runtime.errors import ClusterError
from synapse_runtime.executors.ray.log_suppression import suppress_log_records

__tracebackhide__ = True  # of all functions here: in a test's report only the test's own lines help
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 8.0
# More nodes than any cluster has; Ray's default is 100.
_MOST_NODES = 10_000
_TLS_VARIABLES = "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"


class Versions(NamedTuple):
    """What a cluster runs; empty where it does not tell."""

    ray: str
    python: str

    def __str__(self) -> str:
        return " and ".join(f"{name} {text}" for name, text in (("Ray", self.ray), ("Python", self.python)) if text)

    @classmethod
    def here(cls) -> Versions:
        """Return those of this process."""
        import ray

        return cls(ray.__version__, platform.python_version())

    def same_python(self, parts: int = 2) -> bool:
        """Tell whether Python is the same, in so many parts of its version.

        Code that travels by value needs the first two: bytecode is of one minor version.
        """
        return not self.python or self.python.split(".")[:parts] == platform.python_version().split(".")[:parts]


def require_listener(address: str, host: str | None, port: int) -> None:
    """Raise `ClusterError` where nobody accepts connections."""
    try:
        socket.create_connection((host or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"no cluster answers at {address}: {error.strerror or error}") from None


def require_http_listener(url: str) -> None:
    """Raise `ClusterError` where nobody accepts connections at a URL, unless a proxy is between."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if getproxies().get(parts.scheme) and not proxy_bypass(host):
        return
    require_listener(url, host, parts.port or (443 if parts.scheme == "https" else 80))


def require_cluster(address: str) -> None:
    """Raise `ClusterError` unless a cluster is at the address that lets us in and runs what we run.

    Of Ray Client's address the versions are not known before one is connected: Ray looks at them then.

    Args:
        address: `host:port`, or `ray://host:port`.
    """
    client = address.startswith("ray://")
    target = address.removeprefix("ray://")
    answer = _ping_client(address, target) if client else _ask_gcs(address, target)
    if answer is None:
        other = target if client else f"ray://{target}"
        others = _ask_gcs(other, target) if client else _ping_client(other, target)
        hint = "" if others is None else f": the address is {other}"
        raise ClusterError(f"what answers at {address} is not {'Ray Client' if client else 'a cluster itself'}{hint}")
    _require_fit(address, answer)


def _require_fit(address: str, theirs: Versions) -> None:
    # A driver must have the very same Python, if Ray is not told otherwise.
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    parts = 2 if level == "minor" else 3
    if theirs.ray not in ("", Versions.here().ray) or not theirs.same_python(parts):
        raise version_problem(address, theirs)


def version_problem(address: str, theirs: Versions) -> ClusterError:
    """Return the error of a cluster that runs what this process cannot be a driver of."""
    return ClusterError(
        f"the cluster at {address} runs {theirs}, this process {Versions.here()}. Ray connects to its own version, and "
        "from the very same Python only, or through ray:// from the same minor version of it. Job mode through the "
        "dashboard's address, http://host:8265, takes any supported Ray"
    )


def require_dashboard(url: str, headers: Mapping[str, str] | None = None) -> Versions:
    """Return the versions of the cluster whose dashboard this is.

    Args:
        url: The dashboard's URL.
        headers: HTTP headers that it demands; by default those of Ray's settings for tokens.

    Raises:
        ClusterError: Nobody answers, not in time, or not a dashboard of Ray; a token is missing or wrong; a certificate
            is not trusted.
    """
    told = _get(url, "/api/version", headers)
    if not isinstance(told, dict) or "ray_version" not in told:
        raise ClusterError(f"what answers at {url} is no dashboard of Ray: it does not tell its version")
    metadata = _get(url, "/api/v0/cluster_metadata", headers)
    data = metadata.get("data") if isinstance(metadata, dict) else None
    return Versions(str(told["ray_version"]), str((data or {}).get("pythonVersion", "")))


def nodes_of(url: str, headers: Mapping[str, str] | None = None) -> list[dict[str, float]]:
    """Return what each node of the cluster has, by Ray's names of resources. Arguments and errors as above."""
    return [dict(node["resources_total"] or {}) for node in _living_nodes(url, headers)]


def node_addresses(url: str, headers: Mapping[str, str] | None = None) -> list[str]:
    """Return the IP addresses of the cluster's nodes. Arguments and errors as above."""
    return [str(node["node_ip"]) for node in _living_nodes(url, headers)]


def _living_nodes(url: str, headers: Mapping[str, str] | None) -> list[dict[str, Any]]:
    told = _get(url, f"/api/v0/nodes?detail=1&limit={_MOST_NODES}", headers)
    try:
        return [node for node in told["data"]["result"]["result"] if node["state"] == "ALIVE"]
    except (KeyError, TypeError):
        raise ClusterError(f"the cluster at {url} does not tell of its nodes") from None


def nodes_at(address: str) -> list[dict[str, float]]:
    """Return what each node has of a cluster at its own address, by Ray's names of resources.

    Args:
        address: `host:port`, which `require_cluster` has found good.

    Raises:
        ClusterError: It does not answer any more.
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
    """Return what the cluster has free, all nodes together, by `spelled` names; None where it does not tell.

    Arguments and errors otherwise as above.
    """
    told = _get(url, "/api/cluster_status", headers)
    try:
        usage = told["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
        return {name: total - used for name, (used, total) in usage.items()}
    except (KeyError, TypeError, ValueError):
        return None


def spelled(name: str) -> str:
    """Return a resource's name as the dashboard's status has it, which turns snake_case into camelCase.

    Example:
        >>> spelled("object_store_memory")
        'objectStoreMemory'
    """
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def certificates() -> str | bool:
    """Return what a certificate is verified with: a file or directory that variables name, or True for the usual ones.

    Ray's two HTTP libraries each know only one of the variables.
    """
    name = _certificates_variable()
    if name is None:
        return True
    path = os.environ[name]
    if not Path(path).exists():
        raise ClusterError(f"{name} names {path}, which is not there")
    return path


def _certificates_variable() -> str | None:
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return next((name for name in names if os.environ.get(name)), None)


def authorization(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return these headers; where there are none, those with the token that Ray's settings name, if any.

    Raises:
        AuthenticationError: The settings demand a token, and there is none.
    """
    if headers is not None:
        return dict(headers)
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return dict(get_auth_headers_if_auth_enabled({}))


def token_problem(address: str, *, sent: bool) -> ClusterError:
    """Return the error of a cluster that does not let us in.

    Args:
        address: Its address.
        sent: Whether a token was sent.
    """
    if sent:
        return ClusterError(f"the cluster at {address} refuses the token that is in {_token_source()}")
    return ClusterError(
        f"the cluster at {address} demands a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
        "unless the token is in ~/.ray/auth_token"
    )


def _token_source() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"RAY_AUTH_TOKEN_PATH ({path})" if path else "~/.ray/auth_token"


def _ask_gcs(address: str, target: str) -> Versions | None:
    """Ask a cluster's own port for the cluster's versions; return None where something else speaks gRPC there."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = gcs_service_pb2.InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    reply = _call(
        address, target, lambda channel: gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet, request
    )
    if reply is None:
        return None
    told = json.loads(reply.value) if reply.value else {}
    return Versions(told.get("ray_version", ""), told.get("python_version", ""))


def _ping_client(address: str, target: str) -> Versions | None:
    """Knock at Ray Client's port, which tells no versions; return None where something else speaks gRPC there."""
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    request = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    reply = _call(address, target, lambda channel: ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo, request)
    return None if reply is None else Versions("", "")


def _call(address: str, target: str, method: Any, request: Any) -> Any:
    """Make one call of gRPC, with the token and the certificates that Ray's settings name."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    try:
        channel = init_grpc_channel(target)
    except (OSError, RuntimeError) as error:  # of the certificates
        raise ClusterError(f"RAY_USE_TLS is set, which needs {_TLS_VARIABLES}: {error}") from None
    with channel:
        try:
            return method(channel)(request, timeout=_ANSWER_SECONDS)
        except AuthenticationError:
            raise token_problem(address, sent=False) from None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise _grpc_problem(address, error) from None


def _grpc_problem(address: str, error: Any) -> ClusterError:
    import grpc

    said = str(error.details())
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return token_problem(address, sent=bool(authorization()))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ClusterError(
            f"no cluster answers at {address}: something accepts connections there and says nothing for "
            f"{_ANSWER_SECONDS:g} s"
        )
    if "Failed parsing HTTP/2" in said:
        return ClusterError(
            f"what answers at {address} is no cluster: it does not speak gRPC. A dashboard's address, for job mode, "
            "begins with http://"
        )
    reason = re.sub(r".*last error: (\w+: )?(ipv[46]:\S+: )?", "", said) or error.code().name
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        hint = f"RAY_USE_TLS is set: is the cluster's certificate one that RAY_TLS_CA_CERT trusts ({reason})"
        return ClusterError(f"no cluster answers at {address} over TLS. {hint}")
    if "Socket closed" in said or "reset" in said:
        reason += f"; where the cluster uses TLS, set RAY_USE_TLS=1 and {_TLS_VARIABLES}"
    return ClusterError(f"no cluster answers at {address}: {reason}")


def _get(url: str, path: str, headers: Mapping[str, str] | None) -> Any:
    """Ask a dashboard; return what it says, or None where that is not JSON or it knows no such path."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        sent = authorization(headers)
        with suppress_log_records():
            answer = requests.get(
                url + path, headers=sent, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS), verify=certificates()
            )
    except AuthenticationError:
        raise token_problem(url, sent=False) from None
    except requests.exceptions.SSLError as error:
        name = _certificates_variable()
        fix = "name its file in SSL_CERT_FILE" if name is None else f"add it to {os.environ[name]}, which {name} names"
        raise ClusterError(
            f"the certificate of {url} is not trusted: {_innermost(error)}. Where it is signed by an authority of your "
            f"own, or by itself, {fix}"
        ) from None
    except requests.exceptions.Timeout:
        raise ClusterError(
            f"no cluster answers at {url}: something accepts connections there and says nothing for "
            f"{_ANSWER_SECONDS:g} s"
        ) from None
    except requests.exceptions.RequestException as error:
        reason = _innermost(error)
        if isinstance(reason, HTTPException):
            raise ClusterError(f"what answers at {url} is no dashboard: it does not speak HTTP") from None
        raise ClusterError(f"no cluster answers at {url}: {getattr(reason, 'strerror', None) or reason}") from None
    if answer.status_code in (401, 403):
        raise token_problem(url, sent="authorization" in {name.lower() for name in sent})
    try:
        return answer.json() if answer.ok else None
    except requests.exceptions.JSONDecodeError:
        return None


def _innermost(error: BaseException) -> BaseException:
    """Return the reason below the layers that libraries put around it."""
    below: BaseException | None = error
    while below is not None:
        error = below
        reason = getattr(error, "reason", None)
        inner = next((part for part in error.args if isinstance(part, BaseException)), None)
        below = reason if isinstance(reason, BaseException) else inner or error.__cause__ or error.__context__
    return error

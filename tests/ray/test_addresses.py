"""Addresses of external clusters: every form, and the errors of wrong ones, which are raised within seconds."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from synapse_runtime.errors import ClusterError, VersionMismatchWarning
from synapse_runtime.executors.ray import RayJobsApiExecutor
from synapse_runtime.executors.ray.cluster.preflight import Versions, require_cluster, require_dashboard
from synapse_runtime.loggers import NullLogger
from tests.patience import patience
from tests.ray.clusters import Running, attempt, ray_cluster

TOKEN = "5ec2e7" * 10
# The forms of a cluster's address, and the mode to try each with.
FORMS = [("task", "127.0.0.1:{port}"), ("task", "ray://127.0.0.1:{port}"), ("job", "http://127.0.0.1:{port}")]
EACH_FORM = pytest.mark.parametrize(("mode", "form"), FORMS, ids=["own", "client", "dashboard"])
NO_GRPC = "not a Ray cluster: it does not speak gRPC. A dashboard's address, for job mode, starts with http://"
SECONDS = patience(15)
# The versions of an old cluster.
OLD = {"ray_version": "2.40.0", "python_version": "3.9.20"}
OTHER_PYTHON = os.environ.get("RAY_OTHER_PYTHON")


def forms_of(running: Running) -> list[tuple[str, str]]:
    return [
        ("task", running.address),
        ("task", running.client),
        ("job", running.address),
        ("job", running.dashboard),
    ]


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A cluster that requires a token."""
    with ray_cluster(variables={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def over_tls(certificate: Path) -> Iterator[Running]:
    """A cluster whose processes use TLS among each other; the dashboard does not."""
    with ray_cluster(variables={"RAY_AUTH_MODE": "disabled"} | tls_settings(certificate)) as running:
        yield running


class TestAddressWithoutCluster:
    @EACH_FORM
    def test_silent_server_error_says_that_it_does_not_respond(self, mode, form):
        with listener() as silent:
            address = form.format(port=silent.getsockname()[1])
            done = attempt(mode, address)
        expected = f"no cluster answers at {address}: the server accepts connections but does not respond within 8 s"
        assert expected in done.error
        assert done.seconds < SECONDS

    @EACH_FORM
    def test_host_that_drops_packets_times_out(self, mode, form):
        with listener(backlog=0) as full, contextlib.ExitStack() as stack:
            port = full.getsockname()[1]
            for _ in range(4):  # the kernel drops connections once the backlog is full
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            done = attempt(mode, form.format(port=port))
        assert done.error == f"ClusterError: no cluster answers at {form.format(port=port)}: timed out"
        assert done.seconds < SECONDS

    @EACH_FORM
    def test_web_server_is_reported_as_not_ray(self, mode, form):
        with web_server({}) as port:
            address = form.format(port=port)
            done = attempt(mode, address)
        problem = NO_GRPC if mode == "task" else "not a Ray dashboard: it does not report a version of Ray"
        assert done.error == f"ClusterError: the server at {address} is {problem}"
        assert done.seconds < SECONDS

    @EACH_FORM
    def test_other_server_is_reported_as_not_ray(self, mode, form):
        def like_redis(connection: socket.socket) -> None:
            while connection.recv(4096):
                connection.sendall(b"-ERR unknown command\r\n")

        with listener(like_redis) as server:
            address = form.format(port=server.getsockname()[1])
            done = attempt(mode, address)
        problem = NO_GRPC if mode == "task" else "not a Ray dashboard: it does not speak HTTP"
        assert done.error == f"ClusterError: the server at {address} is {problem}"
        assert done.seconds < SECONDS


class TestClusterWithToken:
    @pytest.mark.parametrize(
        ("where", "form"),
        [("variable", 0), ("variable", 1), ("variable", 2), ("variable", 3), ("file", 1), ("home", 0), ("home", 3)],
    )
    def test_token_is_read_from_the_same_sources_as_by_ray(self, locked, form, where, tmp_path):
        mode, address = forms_of(locked)[form]
        (tmp_path / ".ray").mkdir()
        if where == "home":
            (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
        (tmp_path / "token").write_text(TOKEN)
        given = {
            "variable": {"RAY_AUTH_TOKEN": TOKEN},
            "file": {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
            "home": {},
        }[where]
        done = attempt(mode, address, variables={"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)} | given)
        assert (done.result, done.error) == (1, "")

    @pytest.mark.parametrize("form", range(4), ids=["own", "client", "job-own", "dashboard"])
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH unless"),
            ({"RAY_AUTH_MODE": "token"}, "requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "rejects the token from RAY_AUTH_TOKEN"),
        ],
        ids=["none", "none-with-mode-set", "wrong"],
    )
    def test_missing_or_wrong_token_is_reported(self, locked, form, given, message, tmp_path):
        mode, address = forms_of(locked)[form]
        done = attempt(mode, address, variables=given | {"HOME": str(tmp_path)})
        assert done.error.startswith(f"ClusterError: the cluster at {address} {message}")
        assert "wrong" not in done.error
        assert done.seconds < SECONDS

    def test_error_for_the_wrong_one_of_a_clusters_addresses_names_the_right_one(self, locked):
        variables = locked.variables
        swapped = locked.client.removeprefix("ray://")
        done = attempt("task", swapped, variables=variables)
        assert done.error.endswith(f"the server at {swapped} is not a cluster (GCS); use {locked.client}")
        swapped = f"ray://{locked.address}"
        done = attempt("task", swapped, variables=variables)
        assert done.error.endswith(f"the server at {swapped} is not Ray Client; use {locked.address}")
        done = attempt("job", f"http://{locked.address}", variables=variables)
        expected = f"the server at http://{locked.address} is not a Ray dashboard: it does not speak HTTP"
        assert done.error.endswith(expected)


class TestTLS:
    def test_tls_settings_of_ray_are_used(self, over_tls):
        assert attempt("task", over_tls.address, variables=over_tls.variables).result == 1
        assert attempt("job", over_tls.address, variables=over_tls.variables).result == 1

    def test_error_without_tls_settings_names_the_variables(self, over_tls):
        done = attempt("task", over_tls.address)
        assert done.error.startswith(f"ClusterError: no cluster answers at {over_tls.address}: ")
        assert done.error.endswith(
            "if the cluster uses TLS, set RAY_USE_TLS=1 and RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"
        )
        assert done.seconds < SECONDS

    @pytest.mark.parametrize("form", [0, 1], ids=["own", "client"])
    def test_untrusted_certificate_is_reported(self, over_tls, form, tmp_path):
        mode, address = forms_of(over_tls)[form]
        other_ca = {"RAY_TLS_CA_CERT": str(self_signed(tmp_path))}
        done = attempt(mode, address, variables=over_tls.variables | other_ca)
        assert f"no cluster answers at {address} over TLS: " in done.error
        assert "RAY_USE_TLS is set: check that RAY_TLS_CA_CERT trusts the cluster's certificate" in done.error
        assert done.seconds < SECONDS

    def test_incomplete_settings_are_reported(self, over_tls):
        done = attempt("task", over_tls.address, variables={"RAY_USE_TLS": "1"})
        variables = "RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"
        assert f"RAY_USE_TLS is set, which requires {variables}" in done.error

    def test_dashboard_behind_https_requires_a_trusted_certificate(self, over_tls, certificate, tmp_path):
        long_enough = ("narrate", {"steps": 8, "pause": 0.6})  # so that the log is followed, by another library
        with tls_in_front_of(over_tls.dashboard_port, certificate) as port:
            address = f"https://localhost:{port}"
            done = attempt("job", address)
            assert done.error.startswith(f"ClusterError: the certificate of {address} is not trusted: ")
            expected = "If it is self-signed or signed by a private CA, "
            assert done.error.endswith(f"{expected}set SSL_CERT_FILE to its file")
            assert done.seconds < SECONDS
            other = self_signed(tmp_path)
            done = attempt("job", address, variables={"REQUESTS_CA_BUNDLE": str(other)})
            assert done.error.endswith(f"{expected}add it to {other} (from REQUESTS_CA_BUNDLE)")
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
                done = attempt("job", address, long_enough, variables={name: str(certificate)}, num_cpus=1)
                assert (done.error, done.result) == ("", None)
            done = attempt("job", address, variables={"SSL_CERT_FILE": str(tmp_path / "gone")})
            assert done.error == f"ClusterError: SSL_CERT_FILE: {tmp_path / 'gone'} does not exist"


class TestVersions:
    """With servers that report versions, and with a real cluster of another version if there is one."""

    def test_other_ray_version_is_reported_before_ray_connects(self):
        with gcs_server(OLD) as port, pytest.raises(ClusterError) as caught:
            require_cluster(f"127.0.0.1:{port}")
        theirs = "Ray 2.40.0 and Python 3.9.20"
        expected = f"the cluster at 127.0.0.1:{port} runs {theirs}, but this process runs {Versions.here()}"
        assert expected in str(caught.value)

    @pytest.mark.parametrize("level", ["patch", "minor"])
    def test_other_patch_version_of_python_is_accepted_if_ray_accepts_it(self, level, monkeypatch):
        monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", level)
        ray, python = Versions.here()
        near = {"ray_version": ray, "python_version": re.sub(r"\d+$", "99", python)}
        rejected = pytest.raises(ClusterError, match=r"\.99, but this process runs")
        with gcs_server(near) as port, rejected if level == "patch" else contextlib.nullcontext():
            require_cluster(f"127.0.0.1:{port}")

    def test_job_on_another_machine_requires_the_same_minor_version_of_python(self):
        metadata = {"data": {"pythonVersion": "3.9.20"}}
        with web_server({"/api/version": {"ray_version": "2.40.0"}, "/api/v0/cluster_metadata": metadata}) as port:
            url = f"http://127.0.0.1:{port}"
            theirs = require_dashboard(url)
            assert theirs == ("2.40.0", "3.9.20")
            executor = RayJobsApiExecutor(logger=NullLogger())
            executor._shares_filesystem = False
            expected = r"runs Ray 2.40.0 and Python 3.9.20, but this process runs Ray "
            with pytest.raises(ClusterError, match=f"{expected}.*Use Python 3.9"):
                executor._require_compatible_versions(url, theirs)
            executor._shares_filesystem = True
            with pytest.warns(VersionMismatchWarning, match=expected):
                executor._require_compatible_versions(url, theirs)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # it warns only once
                executor._require_compatible_versions(url, theirs)

    def test_dashboard_that_does_not_report_a_python_version_is_accepted(self):
        with web_server({"/api/version": {"ray_version": "2.40.0"}}) as port:
            assert require_dashboard(f"http://127.0.0.1:{port}") == ("2.40.0", "")

    @pytest.mark.skipif(OTHER_PYTHON is None, reason="RAY_OTHER_PYTHON names no Python with another Ray")
    def test_real_cluster_of_another_version_is_reported_and_accepts_jobs(self):
        assert OTHER_PYTHON is not None
        code = "import platform, ray; print('Ray', ray.__version__, 'and Python', platform.python_version())"
        theirs = subprocess.run([OTHER_PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        with ray_cluster(python=OTHER_PYTHON) as running:
            for mode, address in forms_of(running)[:3]:
                done = attempt(mode, address)
                runs = f"runs {theirs}, but this process runs {Versions.here()}"
                assert done.error.startswith(f"ClusterError: the cluster at {address} {runs}")
                assert done.seconds < SECONDS
            done = attempt("job", running.dashboard)
            assert (done.result, done.error) == (1, "")
            (text,) = (warning for warning in done.warnings if warning.startswith("VersionMismatchWarning"))
            assert f"the cluster at {running.dashboard} {runs}" in text


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], object] | None = None, *, backlog: int = 16) -> Iterator[socket.socket]:
    """Listen on a port, and serve each connection in a thread; without `serve`, accept none and send nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection: socket.socket) -> None:
            assert serve is not None
            with connection, contextlib.suppress(OSError):
                serve(connection)

        if serve is not None:
            threading.Thread(target=work, daemon=True).start()
        yield server
        if serve is not None:
            server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def web_server(pages: dict[str, Any]) -> Iterator[int]:
    """Serve these pages as JSON, and 404 for all others; yields the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            body = b"not found" if page is None else json.dumps(page).encode()
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def gcs_server(metadata: dict[str, str]) -> Iterator[int]:
    """Serve these versions like a cluster's own port; yields the port."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    class Servicer(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):  # type: ignore[misc]
        def InternalKVGet(self, request: Any, context: Any) -> Any:
            assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
            return gcs_service_pb2.InternalKVGetReply(value=json.dumps(metadata).encode())

    server = grpc.server(futures.ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def self_signed(directory: Path) -> Path:
    """Create a certificate for this machine, with its key in `key.pem` in the same directory."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    # In a separate process: if this process is connected to a cluster, Ray returns the address of that connection.
    code = "import ray; print(ray.util.get_node_ip_address())"
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", here)]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (directory / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (directory / "cert.pem").write_bytes(certificate.public_bytes(pem))
    return directory / "cert.pem"


def tls_settings(certificate: Path) -> dict[str, str]:
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(certificate),
        "RAY_TLS_SERVER_KEY": str(certificate.with_name("key.pem")),
        "RAY_TLS_CA_CERT": str(certificate),
    }


@contextlib.contextmanager
def tls_in_front_of(port: int, certificate: Path) -> Iterator[int]:
    """Run a proxy that terminates TLS in front of a port; yields its own port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        with (
            context.wrap_socket(connection, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", port)) as inside,
        ):
            back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
            back.start()
            pump(outside, inside)
            back.join()

    with listener(serve) as server:
        yield server.getsockname()[1]

"""Ray's client of the Jobs API, without a proxy for the loopback address. Importing this imports Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.job_submission import JobSubmissionClient

from synapse_runtime.executors.ray.cluster.preflight import request_proxies

if TYPE_CHECKING:
    import requests

__tracebackhide__ = True  # in every function here: a test's report should show the test's own lines


class JobClient(JobSubmissionClient):  # type: ignore[misc]
    """Sends no request to the loopback address through a proxy, whatever `http_proxy` is; Ray has no such option."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, proxies=request_proxies(self.get_address()), **options)

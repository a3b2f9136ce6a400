"""The application: the routes of all APIs, limits, and what errors become."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synapse_runtime import __version__
from synapse_runtime.server import page, runtime_api, v1, v2
from synapse_runtime.server.backend import Backend
from synapse_runtime.server.releases import MAX_UPLOAD_BYTES
from synapse_runtime.server.store import StoreUnavailable
from synapse_runtime.server.wire import MAX_BODY_BYTES, ApiError, error_response

_UPLOADS = "/plugin_releases/"
_FORM_BYTES = 10_000_000  # of an upload's other fields
_NOT_HERE = "there is no such path on this server"
_ELSEWHERE = (
    *("chunked_upload", "models", "storages", "data_collections", "data_units", "annotations", "assignments"),
    *("experiments", "ground_truths", "tasks", "projects"),
)


def create_app(backend: Backend) -> ASGIApp:
    """Return the application of a backend."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend.changes.open()
        yield

    app = FastAPI(title="Synapse", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.state.backend = backend
    for router in (v1.router, v2.router, runtime_api.router, runtime_api.health, page.router):
        app.include_router(router)

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_query(request: Request, error: RequestValidationError) -> Response:
        problems = [{name: problem[name] for name in ("loc", "msg", "type")} for problem in error.errors()]
        return error_response(request.url.path, ApiError(422, problems))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = _no_path(request.url.path)
        return error_response(request.url.path, ApiError(error.status_code, detail, headers=error.headers))

    @app.exception_handler(StoreUnavailable)
    async def on_unavailable(request: Request, error: StoreUnavailable) -> Response:
        return error_response(request.url.path, ApiError(503, str(error), headers={"Retry-After": "1"}))

    @app.exception_handler(UnicodeEncodeError)
    async def on_invalid_text(request: Request, error: UnicodeEncodeError) -> Response:
        return error_response(request.url.path, ApiError(400, "the request contains text that is not valid Unicode"))

    return _Guard(app, backend)


def _no_path(path: str) -> str:
    top = path.strip("/").split("/")[0]
    if top in _ELSEWHERE:
        return f"{_NOT_HERE}: {top} is offered by the real Synapse backend only"
    return f"{_NOT_HERE}: {path}" + ("" if path.endswith("/") else " (paths end with a slash)")


class _Guard:
    """Refuses requests for other hosts and bodies that are too large, before anything reads them."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app = app
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._backend.hosts.permit(headers.get("host")):
            error = ApiError(400, f"this server is not {headers.get('host')!r}: use the address that it printed")
            await error_response(scope["path"], error)(scope, receive, send)
            return
        limit = MAX_UPLOAD_BYTES + _FORM_BYTES if scope["path"] == _UPLOADS else MAX_BODY_BYTES
        too_large = ApiError(413, f"the body is larger than {limit // 1_000_000} MB")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            await error_response(scope["path"], too_large)(scope, receive, send)
            return
        received = 0
        has_answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        async def noted(message: Message) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except ApiError as error:  # raised while the body was read, outside of a route
            if has_answered:
                raise
            await error_response(scope["path"], error)(scope, receive, send)

"""The page at `/`, and the sessions with which a browser uses the APIs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from synapse_runtime.server.auth import Caller, authenticate_hash
from synapse_runtime.server.backend import AnyCaller, TheBackend, caller_of, require_page_header
from synapse_runtime.server.sessions import SESSION_SECONDS
from synapse_runtime.server.store import hashed
from synapse_runtime.server.wire import ApiError, StrictJson, json_body

router = APIRouter()

_FILES = Path(__file__).with_name("page_files")
_MEDIA_TYPES: Final = {"page.js": "text/javascript", "page.css": "text/css"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SessionRequest(BaseModel):
    """The body of `POST /runtime/session/`: a one-time code, or an access token.

    Attributes:
        code: The code that the server has printed.
        token: The token.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    code: Annotated[str, Field(max_length=200)] | None = Field(default=None, repr=False)
    token: Annotated[str, Field(max_length=1000)] | None = Field(default=None, repr=False)


@router.get("/", include_in_schema=False)
def get_page() -> Response:
    """Return the page."""
    return _file("page.html", "text/html")


@router.get("/page/{name}", include_in_schema=False)
def get_file(name: str) -> Response:
    """Return a file of the page."""
    if name not in _MEDIA_TYPES:
        raise ApiError(404, f"the page has no file {name!r}")
    return _file(name, _MEDIA_TYPES[name])


@router.post("/runtime/session/", dependencies=[Depends(require_page_header)])
def log_in(
    request: Request, backend: TheBackend, body: Annotated[SessionRequest, Depends(json_body(SessionRequest))]
) -> Response:
    """Exchange a one-time code or an access token for a session, whose cookie the answer sets."""
    if (body.code is None) == (body.token is None):
        problem = {"loc": ["body", "code"], "msg": "give either code or token", "type": "value_error"}
        raise ApiError(422, [problem])
    token_hash = hashed(body.token.strip()) if body.token is not None else backend.sessions.redeem(body.code or "")
    if token_hash is None:
        raise ApiError(
            401,
            "the code is not valid: it works once, within 5 minutes of the server's start; paste an access token, or "
            "restart `synapse serve` for a new code",
        )
    answer = StrictJson(_describe(authenticate_hash(backend.store, token_hash)), status_code=201)
    answer.set_cookie(
        backend.cookie_name,
        backend.sessions.open(token_hash),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/runtime/session/")
def show_session(request: Request) -> Response:
    """Show who makes the request and what it may do: nobody and nothing, if there is no valid token or session."""
    try:
        return StrictJson(_describe(caller_of(request)))
    except ApiError as error:
        if error.status != 401:
            raise
        return StrictJson({"owner": None, "scopes": []})


@router.delete("/runtime/session/")
def log_out(request: Request, backend: TheBackend, caller: AnyCaller) -> Response:
    """End the session of the request's cookie."""
    backend.sessions.close(request.cookies.get(backend.cookie_name, ""))
    answer = Response(status_code=204)
    answer.delete_cookie(backend.cookie_name, httponly=True, samesite="strict")
    return answer


def _describe(caller: Caller) -> dict[str, Any]:
    return {"owner": caller.owner, "scopes": sorted(caller.scopes)}


def _file(name: str, media_type: str) -> Response:
    return Response((_FILES / name).read_bytes(), media_type=media_type, headers=_HEADERS)

"""JSON bodies and answers of the three APIs, and their errors."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError

MAX_BODY_BYTES: Final = 10_000_000
_MAX_DEPTH = 200

M = TypeVar("M", bound=BaseModel)


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        detail: What failed and how to fix it; or field problems, as a list of `{loc, msg, type}`.
        code: The code of the v2 API; derived from the status by default.
        headers: Headers of the answer.
        extra: Other members of the body, besides `detail`.
    """

    def __init__(
        self,
        status: int,
        detail: str | list[dict[str, Any]],
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class LooseJson(JSONResponse):
    """JSON in which numbers that are not finite are bare, as the SDK's v1 client sends and reads them."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, separators=(",", ":")).encode()


class StrictJson(JSONResponse):
    """JSON in which numbers that are not finite are written as in a run record."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(tagged(content), allow_nan=False, separators=(",", ":")).encode()


def plain(value: Any) -> Any:
    """Return the value of a run record as plain JSON data, without its tags.

    Example:
        >>> plain({"shape": {"$tuple": [2, 3]}, "best": {"$type": "plugin:Best", "fields": {"loss": 0.5}}})
        {'shape': [2, 3], 'best': {'loss': 0.5}}
    """
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$type" in value:
        for key in ("fields", "value", "name", "repr"):
            if key in value:
                return plain(value[key])
    if len(value) == 1:
        tag, content = next(iter(value.items()))
        if tag in ("$tuple", "$set", "$frozenset"):
            return plain(content)
        if tag == "$dict":
            return {_key(plain(key)): plain(item) for key, item in content}
        if tag == "$float":
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(content, content)
        if tag == "$int":
            return int(content, 16)
        if tag == "$bytes":
            return content
        if tag == "$omitted":
            return None
    return {key: plain(item) for key, item in value.items()}


def tagged(value: Any) -> Any:
    """Return JSON data with numbers that are not finite as `{"$float": …}`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list | tuple):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    return value


def timestamp(seconds: float | None) -> str | None:
    """Return a time as ISO 8601 with microseconds and a time zone."""
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="microseconds")


def json_body(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """Return a dependency that reads the body as an instance of this model."""

    async def read(request: Request) -> M:
        return validated(model, parse(await request.body()))

    return read


def parse(body: bytes) -> Any:
    """Parse JSON that a client has sent. Numbers may be bare `NaN` and `Infinity`, as the SDK sends them.

    Raises:
        ApiError: 400; it is not JSON, nested too deeply, or contains text that is not Unicode.
    """
    try:
        data = json.loads(body)
        if b"\\ud" in body.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError:
        raise ApiError(400, "the body is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if _depth_exceeds(data, _MAX_DEPTH):
        raise ApiError(400, f"the body is nested more than {_MAX_DEPTH} levels deep")
    return data


def validated(model: type[M], data: Any) -> M:
    """Return the body as an instance of this model.

    Raises:
        ApiError: 422 with pydantic's list of problems.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [
            {"loc": ["body", *problem["loc"]], "msg": problem["msg"], "type": problem["type"]}
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise ApiError(422, problems) from None


_CODES: Final = {
    400: "VALIDATION_ERROR",
    401: "AUTHENTICATION_REQUIRED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "NOT_FOUND",
    409: "CONFLICT",
    413: "VALIDATION_ERROR",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMIT_EXCEEDED",
}


def error_response(path: str, error: ApiError) -> Response:
    """Return the answer for an error, in the form of the API that the path belongs to."""
    if not path.startswith("/v2/"):
        content = {"detail": error.detail, **error.extra}
        return LooseJson(content, status_code=error.status, headers=error.headers)
    details: Sequence[dict[str, Any]] = []
    message = error.detail
    if not isinstance(message, str):
        details = [{"field": ".".join(map(str, problem["loc"][1:])), "message": problem["msg"]} for problem in message]
        message = "the request is invalid"
    status = 400 if error.status == 422 else error.status
    code = error.code or _CODES.get(error.status, "SERVER_ERROR")
    return StrictJson(
        {"error": {"code": code, "message": message, "details": details}, "meta": {"request_id": str(uuid.uuid4())}},
        status_code=status,
        headers=error.headers,
    )


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _depth_exceeds(data: Any, limit: int) -> bool:
    level = [data]
    for _ in range(limit):
        level = [
            item
            for value in level
            if isinstance(value, list | dict)
            for item in (value if isinstance(value, list) else value.values())
        ]
        if not level:
            return False
    return True

"""The one place where errors become HTTP."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from schnell.errors import (
    FieldError,
    FieldProblem,
    InvalidFieldError,
    MissingFieldError,
    RateLimitedError,
    SchnellError,
    UnreadableBodyError,
)
from schnell.web.openapi import allowed_methods
from schnell.web.response_headers import rate_headers

_log = logging.getLogger(__name__)

#: Turns an error into a dialect's own body.
ErrorShape = Callable[[SchnellError, int], Any]


@dataclass(frozen=True, slots=True)
class DialectErrors:
    """A dialect's error shape, for every path below `prefix`.

    `statuses` holds the errors that it answers with another status than the native API; `challenge` is what a
    request without a key is asked for.
    """

    prefix: str
    shape: ErrorShape
    media_type: str = "application/json"
    dialect: str = "onemin"
    statuses: Mapping[type[SchnellError], int] = field(default_factory=dict)
    challenge: str = 'Bearer realm="schnell"'

    def status_of(self, error: SchnellError) -> int:
        """The status for an error: that of the nearest class in `statuses`, or its own."""
        return next((self.statuses[kind] for kind in type(error).__mro__ if kind in self.statuses), error.status)


class RoutingError(SchnellError):
    """The path or the method leads nowhere."""

    code = "NOT_FOUND"
    status = 404


class MethodError(SchnellError):
    """The path is there, but not for this method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class UnexpectedError(SchnellError):
    """Something that should not happen."""

    code = "UNKNOWN_ERROR"


def flat_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """The shape of the native API: `errorCode`, `message`, and `details` as a JSON string of fields."""
    body: dict[str, Any] = {"errorCode": error.code, "message": error.message}
    if isinstance(error, FieldError):
        body["details"] = json.dumps([{"field": p.field, "message": p.message} for p in error.problems])
    return body


_FLAT: Final = DialectErrors("", flat_error)


def install_error_handlers(app: FastAPI, dialects: Sequence[DialectErrors]) -> None:
    """Give every error of `app` the shape of the dialect whose path it came on."""
    shapes = sorted(dialects, key=lambda dialect: -len(dialect.prefix))

    def answer(request: Request, error: SchnellError, **headers: str) -> Response:
        path = request.url.path
        dialect = next((each for each in shapes if path.startswith(each.prefix)), _FLAT)
        request.scope["schnell.error"] = error.code
        status = dialect.status_of(error)
        return JSONResponse(
            dialect.shape(error, status),
            status_code=status,
            headers=error_headers(error, dialect) | headers,
            media_type=dialect.media_type,
        )

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, SchnellError)  # noqa: S101 - registered for this class only
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
        return answer(request, _as_field_error(error))

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        if error.status_code == 405:
            named = (error.headers or {}).get("Allow", "").replace(" ", "").split(",")
            allowed = ", ".join(sorted({*named, *allowed_methods(app, request.url.path)} - {""}))
            return answer(request, MethodError(f"this path answers {allowed} only"), Allow=allowed)
        if error.status_code == 404:
            return answer(request, RoutingError("there is nothing here; /docs lists what there is"))
        if error.status_code < 500:
            return answer(request, UnreadableBodyError(str(error.detail)))
        return answer(request, UnexpectedError(str(error.detail)))

    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("unexpected error on %s %s", request.method, request.url.path, exc_info=error)
        return answer(request, UnexpectedError("something went wrong on the server; its log tells more"))

    app.add_exception_handler(SchnellError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)


def error_headers(error: SchnellError, dialect: DialectErrors = _FLAT) -> dict[str, str]:
    """What a client needs to know before it asks again, under the names that its dialect gives it."""
    headers = {"x-should-retry": "true" if error.retry_helps else "false"}
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        headers["Retry-After"] = str(max(1, ceil(wait)))
    if isinstance(error, RateLimitedError):
        headers |= rate_headers(dialect.dialect).write(error.limit, 0, int(headers["Retry-After"]))
    if error.status == 401:
        headers["WWW-Authenticate"] = dialect.challenge
    return headers


def _as_field_error(error: RequestValidationError) -> FieldError:
    problems = [
        (found["type"] == "missing", FieldProblem(".".join(map(str, found["loc"][1:])) or "body", _advice(found)))
        for found in error.errors()
    ]
    missing = [problem for absent, problem in problems if absent]
    return MissingFieldError(*missing) if missing else InvalidFieldError(*(problem for _, problem in problems))


def _advice(found: Mapping[str, Any]) -> str:
    if found["type"] == "model_attributes_type":  # a body that was sent as a form, as curl does unless told otherwise
        return "must be a JSON object, sent with Content-Type: application/json"
    return str(found["msg"])

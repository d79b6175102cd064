"""Errors as HTTP answers: each in the shape, and with the status, of the dialect whose path the request came on."""

import errno
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
    DiskError,
    FieldError,
    FieldProblem,
    InvalidFieldError,
    MissingFieldError,
    RateLimitedError,
    SchnellError,
    UnreadableBodyError,
)
from schnell.validation import explain
from schnell.web.middleware import ERROR_CODE, REQUEST_ID
from schnell.web.openapi import allowed_methods
from schnell.web.response_headers import rate_headers

_log = logging.getLogger(__name__)
#: What says that a disk is full, read-only, over its quota or broken.
_DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})

#: Makes a dialect's JSON body from an error and its status.
ErrorShape = Callable[[SchnellError, int], Any]


@dataclass(frozen=True, slots=True)
class DialectErrors:
    """How a dialect answers errors on every path that begins with one of `prefixes`.

    `statuses` holds the errors that it answers with another status than the native API. `challenge` is the
    `WWW-Authenticate` of a 401. `nothing_here` is said of paths that no route has. `dialect` is its name in records;
    the native API's is `onemin`, after the service whose API it follows.
    """

    prefixes: tuple[str, ...]
    shape: ErrorShape
    media_type: str = "application/json"
    dialect: str = "onemin"
    statuses: Mapping[type[SchnellError], int] = field(default_factory=dict)
    challenge: str = 'Bearer realm="schnell"'
    nothing_here: str = "there is nothing here; /docs lists what there is"

    def status_of(self, error: SchnellError) -> int:
        """The status that `statuses` has for the error's class or its nearest base class, else the error's own."""
        return next((self.statuses[kind] for kind in type(error).__mro__ if kind in self.statuses), error.status)


class RoutingError(SchnellError):
    """No route has this path."""

    code = "NOT_FOUND"
    status = 404


class MethodError(SchnellError):
    """Routes have this path, but none for this method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class UnexpectedError(SchnellError):
    """An error that no part of the service raises on purpose: a fault in the code."""

    code = "UNKNOWN_ERROR"


def flat_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """The native API's shape: `errorCode`, `message`, and for wrong fields `details`, a JSON string."""
    body: dict[str, Any] = {"errorCode": error.code, "message": error.message}
    if isinstance(error, FieldError):
        body["details"] = json.dumps([{"field": p.field, "message": p.message} for p in error.problems])
    return body


_NATIVE: Final = DialectErrors(("",), flat_error)


def _by_path(dialects: Sequence[DialectErrors]) -> Callable[[Request], DialectErrors]:
    by_prefix = [(prefix, dialect) for dialect in (*dialects, _NATIVE) for prefix in dialect.prefixes]
    # the longest prefix decides: /v1/ is shared, /v1/images/ is OpenAI's alone
    by_prefix.sort(key=lambda each: len(each[0]), reverse=True)
    return lambda request: next(dialect for prefix, dialect in by_prefix if request.url.path.startswith(prefix))


def install_error_handlers(app: FastAPI, dialects: Sequence[DialectErrors]) -> None:
    """Answer every error of `app` as the dialect does whose path it came on, elsewhere as the native API does."""
    dialect_of = _by_path(dialects)

    def answer(request: Request, error: SchnellError, **headers: str) -> Response:
        dialect = dialect_of(request)
        request.scope[ERROR_CODE] = error.code
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
        return answer(request, as_field_error(error))

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        if error.status_code == 405:
            # Starlette names the methods of the first route with this path only, and has one route for each method
            named = (error.headers or {}).get("Allow", "").replace(" ", "").split(",")
            allowed = ", ".join(sorted({*named, *allowed_methods(app, request.url.path)} - {""}))
            return answer(request, MethodError(f"this path answers {allowed} only"), Allow=allowed)
        if error.status_code == 404:
            return answer(request, RoutingError(dialect_of(request).nothing_here))
        if error.status_code < 500:
            return answer(request, UnreadableBodyError(str(error.detail)))
        return answer(request, UnexpectedError(str(error.detail)))

    async def unexpected(request: Request, error: Exception) -> Response:
        # answered outside of the middleware that gives every other answer its id
        request_id = str(request.scope.get(REQUEST_ID, ""))
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            _log.warning("the disk fails: %s", error.strerror)
            return answer(
                request, DiskError("this server's disk is full or away; try again later"), **_named(request_id)
            )
        # the route's pattern: a path may hold what somebody has typed into it
        route = getattr(request.scope.get("route"), "path", "unmatched")
        _log.error("unexpected error on %s %s", request.method, route, exc_info=error, extra={"request_id": request_id})
        message = f"something went wrong on the server; its log tells more, under the request id {request_id}"
        return answer(request, UnexpectedError(message), **_named(request_id))

    app.add_exception_handler(SchnellError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)


def _named(request_id: str) -> dict[str, str]:
    return {"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff"} if request_id else {}


def error_headers(error: SchnellError, dialect: DialectErrors = _NATIVE) -> dict[str, str]:
    """Headers that say whether and when to retry, and how to authenticate, under the dialect's names."""
    headers = {"x-should-retry": "true" if error.retry_helps else "false"}
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        headers["Retry-After"] = str(max(1, ceil(wait)))
    if isinstance(error, RateLimitedError):
        headers |= rate_headers(dialect.dialect).write(error.limit, 0, int(headers["Retry-After"]))
    if error.status == 401:
        headers["WWW-Authenticate"] = dialect.challenge
    return headers


def as_field_error(error: RequestValidationError) -> FieldError:
    """What FastAPI found wrong with a request, as the error that all others are."""
    problems = [
        (found["type"] == "missing", FieldProblem(".".join(map(str, found["loc"][1:])) or "body", explain(found)))
        for found in error.errors()
    ]
    missing = [problem for absent, problem in problems if absent]
    return MissingFieldError(*missing) if missing else InvalidFieldError(*(problem for _, problem in problems))

"""ASGI middleware around the app: request ids, the access log, limits on headers and bodies, headers of routes.

They are plain ASGI because they wrap `receive` and `send`, which Starlette's `BaseHTTPMiddleware` keeps to itself.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schnell.errors import BodyTooLargeError
from schnell.web.response_headers import EXTRA_HEADERS

_log = logging.getLogger("schnell.access")
#: Where an ASGI scope holds the id of its request.
REQUEST_ID: Final = "schnell.request_id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Where error handlers leave the code of an error in an ASGI scope, for the access log.
ERROR_CODE: Final = "schnell.error"
_STATIC: Final = "/static/"
_MAX_HEADER_BYTES: Final = 32_768
_MAX_HEADERS: Final = 256
_MAX_DISCARDED_BYTES: Final = 256 * 1024 * 1024
_DISCARD_SECONDS: Final = 20.0
#: Called with the method, the route's pattern and the status of every answer.
CountRequest = Callable[[str, str, int], None]


class RequestContext:
    """Gives each request an id for log and answer, counts and logs the answer, and adds the headers of routes."""

    def __init__(self, app: ASGIApp, count: CountRequest) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid4().hex
        scope[REQUEST_ID] = request_id
        started = time.perf_counter()
        # an unexpected error is answered by Starlette outside this middleware: its status is never seen here
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.update(scope.get(EXTRA_HEADERS, {}))
            await send(message)

        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, answer)
        finally:
            self._report(scope, status, time.perf_counter() - started)
        # not after an exception: whoever logs it, further out, shall still name the request
        structlog.contextvars.reset_contextvars(**bound)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._count(scope["method"], route, status)
        # a page brings a dozen scripts and styles: its own line says as much
        _log.log(
            logging.DEBUG if route.startswith(_STATIC) else logging.INFO,
            "%s %s %d",
            scope["method"],
            route,
            status,
            extra={"seconds": round(seconds, 4), "error": scope.get(ERROR_CODE)},
        )


class HeadAsGet:
    """Answers HEAD wherever GET is answered: with the same status and headers, and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # one set of headers for both: routes leave theirs in the scope. The server's own scope stays as it is, since
        # it decides by the method whether a body of the announced length must follow
        scope.setdefault(EXTRA_HEADERS, {})
        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, answer)
        finally:
            scope.update({name: asked[name] for name in ("route", ERROR_CODE) if name in asked})


class IncomingLimits:
    """Refuses oversized headers, and bodies larger than their path takes, without holding them in memory.

    `by_prefix` gives paths with a prefix another limit in bytes than `default`.
    """

    def __init__(self, app: ASGIApp, default: int, by_prefix: Mapping[str, int]) -> None:
        self._app = app
        self._default = default
        self._by_prefix = by_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        if len(headers) > _MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:
            await _refuse_headers(send)
            return
        limit = self._limit(scope["path"])
        # a body is refused when the route reads it, not here: inside the app, the error gets its dialect's shape
        declared = Headers(scope=scope).get("content-length", "0")
        too_large = declared.isdigit() and int(declared) > limit
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if (too_large or seen > limit) and message["type"] == "http.request":
                await _discard(receive, message)
                raise BodyTooLargeError(f"the body must have at most {limit} bytes")
            return message

        await self._app(scope, limited, send)

    def _limit(self, path: str) -> int:
        return next((limit for prefix, limit in self._by_prefix.items() if path.startswith(prefix)), self._default)


async def _discard(receive: Receive, message: Message) -> None:
    """Read the rest of a body and drop it.

    A client that is answered while it still sends sees a broken connection, not the answer.
    """
    discarded = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while message.get("more_body") and discarded < _MAX_DISCARDED_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
    except TimeoutError:
        return


async def _refuse_headers(send: Send) -> None:
    body = b'{"errorCode":"HEADERS_TOO_LARGE","message":"a request may have 256 headers of 32768 bytes in all"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": body})

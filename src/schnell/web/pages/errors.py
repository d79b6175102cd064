"""Errors as a page, for people who open an address in a browser. Programs get the API's own answer."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from schnell.errors import SchnellError
from schnell.web.pages.site import (find_caller, page)

_TITLES: Final = {403: "Not allowed", 404: "Nothing here", 405: "Not like this", 429: "Too fast"}
_ABOUT_THE_BODY: Final = {"content-length", "content-type", "content-encoding"}
_Handler = Callable[[Request, Any], Awaitable[Response]]


def install_error_pages(app: FastAPI) -> None:
    """Show the errors of `app` as pages where a browser navigates. Comes after the API's own handlers."""
    for kind in (SchnellError, HTTPException):
        app.add_exception_handler(kind, _as_page(cast("_Handler", app.exception_handlers[kind])))


def _as_page(handle: _Handler) -> _Handler:
    async def show(request: Request, error: Exception) -> Response:
        answer = await handle(request, error)
        if not _navigates(request):
            return answer
        message = error.message if isinstance(error, SchnellError) else "There is no page at this address."
        title = _TITLES.get(answer.status_code, "It did not work")
        shown = page(request, "error.html", await find_caller(request), title=title, message=message)
        shown.status_code = answer.status_code
        kept = (each for each in answer.headers.items() if each[0] not in _ABOUT_THE_BODY)
        for name, value in kept:
            shown.headers.setdefault(name, value)
        return shown

    return show


def _navigates(request: Request) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")

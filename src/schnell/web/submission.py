"""What every dialect does with a request once it is parsed: count it, start it, wait for it or stream it."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from schnell.accounts.identity import Caller
from schnell.errors import ClientGoneError, SchnellError
from schnell.generations import GenerationRequest, Quote, Record, Running
from schnell.spec import Progress
from schnell.web.errors import flat_error
from schnell.web.middleware import add_headers
from schnell.web.rate_headers import rate_headers
from schnell.web.services import services_of

_PING_SECONDS: Final = 15


def idempotency_key_in(request: Request) -> str | None:
    """The request's `Idempotency-Key`, if any."""
    return request.headers.get("idempotency-key")


async def quote(request: Request, caller: Caller, asked: GenerationRequest) -> Quote:
    """What the request would cost and meet. Raises SchnellError when it would be refused."""
    return await services_of(request).generations.quote(caller, asked)


async def start(request: Request, caller: Caller, asked: GenerationRequest) -> Running | str:
    """Accept a generation within the key's rate: it, or the id of the record that answers a repeated request.

    Raises:
        SchnellError: it is refused, and nothing was charged.
    """
    services = services_of(request)
    try:
        status = services.rates.count(caller)
        if status is not None:
            names = rate_headers(asked.dialect)
            add_headers(request, names.write(status.limit, status.remaining, status.reset_after))
        add_headers(request, {"X-Schnell-Model": services.model.label})
        return await services.generations.start(caller, asked)
    except SchnellError as error:
        services.metrics.count_refusal(asked.dialect, error)
        raise


async def draw(request: Request, caller: Caller, asked: GenerationRequest) -> Record:
    """The finished record of a generation. A closed connection cancels it, unless it has an `Idempotency-Key`.

    Raises:
        SchnellError: it is refused, or it fails; nothing was charged.
    """
    started = await start(request, caller, asked)
    return await _unless_gone(request, _wait(request, caller, started))


async def find_started(request: Request, caller: Caller, started: Running | str) -> Record:
    """The record of an accepted generation as it is now."""
    if isinstance(started, Running):
        return started.record
    return await services_of(request).history.find(caller, started)


async def follow(request: Request, caller: Caller, started: Running | str) -> AsyncGenerator[Progress | Record, None]:
    """Every progress of an accepted generation, and at the end its record. Leaving early cancels it, unless detached.

    Raises:
        SchnellError: it failed.
    """
    if isinstance(started, str):
        yield await services_of(request).history.wait(caller, started)
        return
    with started.attended():
        async with aclosing(started.follow()) as steps:
            async for progress in steps:
                yield progress
        yield await started.ended()


def stream(
    request: Request,
    caller: Caller,
    started: Running | str,
    describe: Callable[[Record], Awaitable[dict[str, Any]]],
) -> EventSourceResponse:
    """Server-sent events: `queued` (position), `step` (k of n, and previews), then `done` (the record) or `error`."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            async with aclosing(follow(request, caller, started)) as steps:
                async for found in steps:
                    yield _event("done", await describe(found)) if isinstance(found, Record) else _progress_event(found)
        except SchnellError as error:
            yield _event("error", flat_error(error, error.status))

    return EventSourceResponse(events(), ping=_PING_SECONDS, headers={"X-Accel-Buffering": "no"})


async def _wait(request: Request, caller: Caller, started: Running | str) -> Record:
    if isinstance(started, str):
        return await services_of(request).history.wait(caller, started)
    with started.attended():
        return await started.ended()


async def _unless_gone(request: Request, waiting: Awaitable[Record]) -> Record:
    work = asyncio.ensure_future(waiting)
    gone = asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError("the client closed the connection")
        return work.result()
    finally:
        # leaving the wait is what cancels a generation that nobody waits for
        for task in (work, gone):
            task.cancel()


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _progress_event(progress: Progress) -> ServerSentEvent:
    if progress.stage == "queued":
        return _event("queued", {"position": progress.position or 0})
    told = {"stage": progress.stage, "step": progress.step, "total": progress.total}
    previews = [f"data:image/png;base64,{b64encode(preview).decode('ascii')}" for preview in progress.previews]
    return _event("step", told | ({"previews": previews} if previews else {}))


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

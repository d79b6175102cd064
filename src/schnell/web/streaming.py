"""A generation as server-sent events: LoRAs that are fetched for it, its place, its steps, its record."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from schnell.accounts.identity import Caller
from schnell.errors import SchnellError
from schnell.generations import GenerationRequest, Record, Running
from schnell.spec import FetchProgress, Progress
from schnell.web import submission
from schnell.web.errors import flat_error

_PING_SECONDS: Final = 15
_FETCH_SECONDS: Final = 0.25
Describe = Callable[[Record], Awaitable[dict[str, Any]]]


class _Beginning:
    """A generation on the way to being accepted; `fetched` is the latest that was told of its LoRAs."""

    def __init__(self, request: Request, caller: Caller, asked: GenerationRequest) -> None:
        self.fetched: FetchProgress | None = None
        self.asked = asked
        self._news = asyncio.Event()
        self.task = asyncio.create_task(submission.start(request, caller, asked, self._hear))

    async def news(self) -> None:
        """Wait until there is more to tell, or nothing more to come."""
        hearing = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({hearing, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hearing.cancel()
        self._news.clear()

    async def fetches(self) -> AsyncIterator[FetchProgress]:
        """How far its LoRAs are, a few times a second, until it is accepted or refused."""
        told = None
        while True:
            if self.fetched is not None and self.fetched != told:
                told = self.fetched
                yield told
            if self.task.done():
                return
            await asyncio.wait({self.task}, timeout=_FETCH_SECONDS)
            await self.news()

    def abandon(self) -> None:
        """Nobody waits any more: what is accepted after all is cancelled, unless it is detached."""
        self.task.add_done_callback(_let_go)

    def _hear(self, progress: FetchProgress) -> None:
        self.fetched = progress
        self._news.set()


async def stream(request: Request, caller: Caller, asked: GenerationRequest, describe: Describe) -> EventSourceResponse:
    """Server-sent events: `download` (bytes of a LoRA), `queued` (position), `step` (k of n, and previews), then
    `done` (the record) or `error`.

    Raises:
        SchnellError: it is refused before there is anything to tell.
    """
    beginning = _Beginning(request, caller, asked)
    await beginning.news()
    if beginning.task.done():
        beginning.task.result()
    events = _events(request, caller, beginning, describe)
    return EventSourceResponse(events, ping=_PING_SECONDS, headers={"X-Accel-Buffering": "no"})


async def _events(
    request: Request, caller: Caller, beginning: _Beginning, describe: Describe
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for fetched in beginning.fetches():
            yield _event("download", {"lora": fetched.lora, "received": fetched.received, "total": fetched.total})
        started = beginning.task.result()
        async with (
            submission.answering(request, caller, beginning.asked, started),
            aclosing(submission.follow(request, caller, started)) as steps,
        ):
            async for found in steps:
                yield _event("done", await describe(found)) if isinstance(found, Record) else _progress_event(found)
    except SchnellError as error:
        yield _event("error", flat_error(error, error.status))
    finally:
        beginning.abandon()


def _let_go(starting: "asyncio.Task[Running | str]") -> None:
    if starting.cancelled() or starting.exception() is not None:
        return
    started = starting.result()
    if isinstance(started, Running):
        with started.attended():
            pass


def _progress_event(progress: Progress) -> ServerSentEvent:
    if progress.stage == "queued":
        return _event("queued", {"position": progress.position or 0})
    told = {"stage": progress.stage, "step": progress.step, "total": progress.total}
    previews = [f"data:image/png;base64,{b64encode(preview).decode('ascii')}" for preview in progress.previews]
    return _event("step", told | ({"previews": previews} if previews else {}))


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

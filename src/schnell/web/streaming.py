"""A generation as server-sent events: downloads of its LoRAs, its place in the queue, its steps, its record."""

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
#: The least time between two events about a download: its progress is reported for every chunk.
_DOWNLOAD_SECONDS: Final = 0.25
#: Makes the `done` event's data from a finished record.
Describe = Callable[[Record], Awaitable[dict[str, Any]]]


async def stream(request: Request, caller: Caller, asked: GenerationRequest, describe: Describe) -> EventSourceResponse:
    """Start a generation and answer with its events.

    They are `download` (bytes of a LoRA), `queued` (position), `step` (k of n, and previews), then `done` (what
    `describe` gives) or `error`.

    Raises:
        SchnellError: it is refused before there is an event. Such a refusal keeps its HTTP status, which a stream that
            has begun could not give it.
    """
    start = _Start(request, caller, asked)
    await start.wait_for_change()
    if start.task.done():
        start.task.result()
    events = _events(request, caller, start, describe)
    # X-Accel-Buffering keeps nginx from holding events back
    return EventSourceResponse(events, ping=_PING_SECONDS, headers={"X-Accel-Buffering": "no"})


class _Start:
    """A generation on the way to being accepted.

    `task` gives what `submission.start` does; `fetched` is the latest progress of the LoRAs that it downloads, `asked`
    what is started.
    """

    def __init__(self, request: Request, caller: Caller, asked: GenerationRequest) -> None:
        self.fetched: FetchProgress | None = None
        self.asked = asked
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(submission.start(request, caller, asked, self._on_fetch))

    async def wait_for_change(self) -> None:
        """Wait until a download went on, or the generation is accepted or refused."""
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({changed, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        self._changed.clear()

    async def downloads(self) -> AsyncIterator[FetchProgress]:
        """The progress of its LoRAs' downloads, at most four times a second, until it is accepted or refused."""
        last = None
        while True:
            if self.fetched is not None and self.fetched != last:
                last = self.fetched
                yield last
            if self.task.done():
                return
            await asyncio.wait({self.task}, timeout=_DOWNLOAD_SECONDS)
            await self.wait_for_change()

    def abandon(self) -> None:
        """The client is gone or has its answer: cancel a generation that nobody waits for, once it is accepted."""
        # the task itself is not cancelled: a generation with an Idempotency-Key starts even for a client that is gone
        self.task.add_done_callback(_cancel_if_unattended)

    def _on_fetch(self, progress: FetchProgress) -> None:
        self.fetched = progress
        self._changed.set()


def _cancel_if_unattended(starting: "asyncio.Task[Running | str]") -> None:
    if starting.cancelled() or starting.exception() is not None:
        return
    started = starting.result()
    if isinstance(started, Running):
        # the last one to leave this block cancels the generation, unless it is detached or has ended
        with started.attended():
            pass


async def _events(
    request: Request, caller: Caller, start: _Start, describe: Describe
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for fetched in start.downloads():
            yield _event("download", {"lora": fetched.lora, "received": fetched.received, "total": fetched.total})
        started = start.task.result()
        async with (
            submission.answering(request, caller, start.asked, started),
            aclosing(submission.follow(request, caller, started)) as steps,
        ):
            async for found in steps:
                yield _event("done", await describe(found)) if isinstance(found, Record) else _progress_event(found)
    except SchnellError as error:
        yield _event("error", flat_error(error, error.status))
    finally:
        start.abandon()


def _progress_event(progress: Progress) -> ServerSentEvent:
    if progress.stage == "queued":
        return _event("queued", {"position": progress.position or 0})
    data = {"stage": progress.stage, "step": progress.step, "total": progress.total}
    previews = [f"data:image/png;base64,{b64encode(preview).decode('ascii')}" for preview in progress.previews]
    return _event("step", data | ({"previews": previews} if previews else {}))


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

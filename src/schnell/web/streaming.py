"""A generation as server-sent events: its place in the queue, downloads of its LoRAs, its steps, its record."""

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
from schnell.spec import Progress
from schnell.web import submission
from schnell.web.errors import flat_error

_PING_SECONDS: Final = 15
#: Makes the `done` event's data from a finished record.
Describe = Callable[[Record], Awaitable[dict[str, Any]]]


async def stream(request: Request, caller: Caller, asked: GenerationRequest, describe: Describe) -> EventSourceResponse:
    """Start a generation and answer with its events.

    They are `queued` (position), `download` (bytes of a LoRA that is fetched first, then `queued` again), `step` (k of
    n, and previews), then `done` (what `describe` gives) or `error`.

    Raises:
        SchnellError: it is refused before there is an event. Such a refusal keeps its HTTP status, which a stream that
            has begun could not give it.
    """
    started = await submission.start(request, caller, asked)
    events = _events(request, caller, asked, started, describe)
    # X-Accel-Buffering keeps nginx from holding events back
    return EventSourceResponse(events, ping=_PING_SECONDS, headers={"X-Accel-Buffering": "no"})


async def _events(
    request: Request, caller: Caller, asked: GenerationRequest, started: Running | str, describe: Describe
) -> AsyncIterator[ServerSentEvent]:
    try:
        async with (
            submission.answering(request, caller, asked, started),
            aclosing(submission.follow(request, caller, started)) as steps,
        ):
            async for found in steps:
                yield _event("done", await describe(found)) if isinstance(found, Record) else _progress_event(found)
    except SchnellError as error:
        yield _event("error", flat_error(error, error.status))


def _progress_event(progress: Progress) -> ServerSentEvent:
    if progress.fetched is not None:
        fetched = progress.fetched
        return _event("download", {"lora": fetched.lora, "received": fetched.received, "total": fetched.total})
    again = {"attempt": progress.attempt} if progress.attempt > 1 else {}
    if progress.stage == "queued":
        return _event("queued", {"position": progress.position or 0} | again)
    data = {"stage": progress.stage, "step": progress.step, "total": progress.total} | again
    previews = [f"data:image/png;base64,{b64encode(preview).decode('ascii')}" for preview in progress.previews]
    return _event("step", data | ({"previews": previews} if previews else {}))


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

"""The LoRA library: a card for each, and a form that adds one while its progress is streamed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.errors import SchnellError
from schnell.loras.repository import Labels, LibraryLora
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.errors import flat_error
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.loras import note_of, read_labels, read_owner
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import Services, services_of

router = APIRouter()
#: Bytes received and bytes in all (None: unknown) of a download, as they grow; None at its end.
_Received = asyncio.Queue[tuple[int, int | None] | None]


@router.get("/loras")
async def library(request: Request) -> Response:
    """The page: the team's own LoRAs, the public ones, and those that come with the model."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    found = await services.loras.list(caller.team_id)
    drawn = await services.loras.list_previewed(found)
    return page(
        request,
        "loras.html",
        caller,
        loras=found,
        drawn=drawn,
        model_id=services.model.ids[0],
        may_add="generate" in caller.scopes,
        may_train="generate" in caller.scopes and services.trainings.most_minutes > 0,
    )


@router.post("/loras")
async def add_from_source(request: Request, caller: Generator) -> Response:
    """Fetch a LoRA into the team's library. Answers with server-sent events: `progress`, then `done` or `error`."""
    fields = Fields(await read_json_object(request, '{"source": …}'))
    source = fields.text("source", required=True)
    labels, owner = read_labels(fields), read_owner(fields, caller)
    fields.check()
    await submission.check_may_add(request, caller)
    addition = _Addition(services_of(request), caller, str(source), labels, owner)
    return EventSourceResponse(addition.events())


class _Addition:
    """One request to add a LoRA, as events."""

    def __init__(self, services: Services, caller: Caller, source: str, labels: Labels, owner: str) -> None:
        self._services = services
        self._caller = caller
        self._source = source
        self._labels = labels
        self._owner = owner

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """The events of the answer. A client that goes away cancels the download."""
        received: _Received = asyncio.Queue()
        adding = asyncio.ensure_future(self._add(received))
        adding.add_done_callback(lambda _: received.put_nowait(None))
        try:
            while progress := await _latest(received):
                yield _event("progress", {"received": progress[0], "total": progress[1]})
            added = await adding
            self._services.lora_previews.ask_for(added)
            yield _event("done", {"lora": {"name": added.name}})
        except SchnellError as error:
            yield _event("error", flat_error(error, error.status))
        finally:
            adding.cancel()

    async def _add(self, received: "_Received") -> LibraryLora:
        return await self._services.loras.add(
            self._source,
            owner=self._owner,
            labels=self._labels,
            created_by=self._caller.user_name,
            on_progress=lambda done, total: received.put_nowait((done, total)),
            note=note_of(self._caller, "lora.added", self._owner),
        )


async def _latest(received: "_Received") -> tuple[int, int | None] | None:
    """Wait for progress and return the newest, without those before it; None once the addition has ended."""
    found = await received.get()
    while found is not None and not received.empty():
        found = received.get_nowait()
    return found


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

"""The LoRA library as cards, with a place to add one and to see what its scale does."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.background import BackgroundTask
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.errors import SchnellError
from schnell.loras.repository import Labels, LibraryLora
from schnell.web.auth import Generator
from schnell.web.errors import flat_error
from schnell.web.fields import Fields, read_json_object
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import Services, services_of

router = APIRouter()


@router.get("/loras")
async def library(request: Request) -> Response:
    """The team's own LoRAs, the public ones, and those that come with the model."""
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
    )


@router.post("/loras")
async def add_from_place(request: Request, caller: Generator) -> Response:
    """Fetch a LoRA into the team's library: server-sent events `progress`, then `done` (the LoRA) or `error`."""
    fields = Fields(await read_json_object(request))
    source, name = fields.text("source", required=True), fields.text("name")
    fields.check()
    addition = _Addition(services_of(request), caller, str(source), name or None)
    return EventSourceResponse(addition.events(), background=BackgroundTask(addition.draw_preview))


class _Addition:
    """A LoRA on its way into a library, and its preview when it has arrived."""

    def __init__(self, services: Services, caller: Caller, source: str, name: str | None) -> None:
        self._services = services
        self._caller = caller
        self._source = source
        self._name = name
        self._added: LibraryLora | None = None

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """What to tell the page."""
        told: asyncio.Queue[tuple[int, int | None] | None] = asyncio.Queue()
        adding = asyncio.ensure_future(self._add(told))
        adding.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while progress := await _latest(told):
                yield _event("progress", {"received": progress[0], "total": progress[1]})
            self._added = await adding
            yield _event("done", {"lora": {"name": self._added.name}})
        except SchnellError as error:
            yield _event("error", flat_error(error, error.status))
        finally:
            adding.cancel()

    async def draw_preview(self) -> None:
        """Draw the preview, if there is something to show."""
        if self._added is not None:
            await self._services.lora_previews.draw(self._added, self._caller.team_id)

    async def _add(self, told: "asyncio.Queue[tuple[int, int | None] | None]") -> LibraryLora:
        return await self._services.loras.add(
            self._source,
            owner=self._caller.team_id,
            labels=Labels(self._name),
            created_by=self._caller.user_name,
            on_progress=lambda received, total: told.put_nowait((received, total)),
        )


async def _latest(told: "asyncio.Queue[tuple[int, int | None] | None]") -> tuple[int, int | None] | None:
    """The newest progress: older ones are of no interest. None at the end."""
    found = await told.get()
    while found is not None and not told.empty():
        found = told.get_nowait()
    return found


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)

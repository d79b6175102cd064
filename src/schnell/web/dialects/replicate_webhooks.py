"""Which moments of a prediction its webhook hears of, and where a team gets the secret that they are signed with."""

import json
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.errors import NotFoundError
from schnell.generations import (Record, Running)
from schnell.generations.records import find_record
from schnell.generations.subscriptions import Subscription
from schnell.spec import Progress
from schnell.web.auth import Generator
from schnell.web.dialects.replicate_predictions import describe_prediction
from schnell.web.fields import Fields
from schnell.web.services import (Services, services_of)

router = APIRouter(tags=["Replicate"], include_in_schema=False)
_EVENTS: Final = ("start", "output", "logs", "completed")
_LOG_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Hook:
    """Where to send, and what."""

    url: str
    events: frozenset[str]

    @property
    def wants_end(self) -> bool:
        """Whether it is to hear of the prediction's end."""
        return "completed" in self.events


@router.get("/v1/webhooks/default/secret")
async def show_secret(request: Request, caller: Generator) -> dict[str, Any]:
    """The secret that this team's webhooks are signed with."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


def read_hook(services: Services, fields: Fields) -> Hook | None:
    """The webhook of a prediction, if it asks for one; what is wrong with it is noted in `fields`."""
    url = fields.text("webhook")
    events = fields.raw("webhook_events_filter")
    if events is None:
        events = list(_EVENTS)
    if not isinstance(events, list) or not all(isinstance(each, str) and each in _EVENTS for each in events):
        fields.refuse("webhook_events_filter", f"must be a list out of {', '.join(_EVENTS)}")
        return None
    if not url:
        return None
    if problem := services.webhooks.refusal_of(url):
        fields.refuse("webhook", problem)
    return Hook(url, frozenset(events))


async def begin_reporting(services: Services, running: Running, hook: Hook) -> None:
    """Tell the webhook of a prediction from now on: its end surely, what comes before once."""
    record = running.record
    kept = await services.webhooks.subscriptions.add(record.id, record.team_id, hook.url) if hook.wants_end else None
    services.webhooks.spawn(_report(services, running, hook, kept))


async def resume_reporting(services: Services) -> None:
    """Tell of the ends that a server before this one could not deliver. To be called when no record is in between."""
    for kept in await services.webhooks.subscriptions.pending():
        try:
            async with services.database.read() as connection:
                record = await find_record(connection, kept.team_id, kept.record_id)
        except NotFoundError:
            await services.webhooks.subscriptions.end(kept)
        else:
            services.webhooks.spawn(_tell_end(services, record, kept))


async def _report(services: Services, running: Running, hook: Hook, kept: Subscription | None) -> None:
    begun, last = False, 0.0
    async with aclosing(running.follow()) as steps:
        async for progress in steps:
            if progress.stage == "queued":
                continue
            if not begun:
                begun = True
                await _tell(services, running, hook, "start")
            elif _is_news(progress, last):
                last = time.monotonic()
                await _tell(services, running, hook, "logs")
    if running.record.status == "SUCCESS":
        await _tell(services, running, hook, "output")
    if kept is not None:
        await _tell_end(services, running.record, kept)


def _is_news(progress: Progress, last: float) -> bool:
    return progress.stage == "denoise" and progress.step > 0 and time.monotonic() - last >= _LOG_SECONDS


async def _tell(services: Services, running: Running, hook: Hook, event: str) -> None:
    if event in hook.events:
        body = json.dumps(await describe_prediction(services, running.record, running, inline=False))
        await services.webhooks.tell(hook.url, running.record.team_id, body)


async def _tell_end(services: Services, record: Record, kept: Subscription) -> None:
    await services.webhooks.deliver(kept, json.dumps(await describe_prediction(services, record, inline=False)))

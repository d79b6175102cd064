"""Webhooks of records: what has happened, posted to the address that a request gave. Every dialect has its own words.

A message is signed with the team's secret, as Replicate's are (the Standard Webhooks specification).
"""

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from schnell.errors import NotFoundError, SchnellError
from schnell.generations import Record, Running
from schnell.generations.records import find_record
from schnell.generations.webhooks import Subscription
from schnell.web.fields import Fields
from schnell.web.services import Services

#: After what a webhook may be told: the first step, some of the next, the pictures, and the end, good or bad.
EVENTS: Final = ("start", "output", "logs", "completed")
_LOG_SECONDS: Final = 0.5
#: How a dialect tells of a record; with the generation itself while it is under way in this process.
Describe = Callable[[Services, Record, Running | None], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to tell of a record, and after which of the `EVENTS`."""

    url: str
    events: frozenset[str]


def read_webhook(
    services: Services, fields: Fields, *, url: str, events: str, default: Sequence[str]
) -> Webhook | None:
    """The webhook in the fields called `url` and `events`, if any. What is wrong with it is noted in `fields`."""
    told = fields.raw(events)
    if told is None:
        told = list(default)
    if not isinstance(told, list) or not all(isinstance(each, str) and each in EVENTS for each in told):
        fields.refuse(events, f"must be a list out of {', '.join(EVENTS)}")
        return None
    address = fields.text(url)
    if not address:
        return None
    if problem := services.webhooks.refusal_of(address):
        fields.refuse(url, problem)
    return Webhook(address, frozenset(told))


async def start_webhook(services: Services, running: Running, webhook: Webhook, describe: Describe) -> None:
    """Tell of a generation from now on.

    `completed` is kept in the database until it is delivered, also across restarts; the other events are sent once.

    Raises:
        SchnellError: it cannot be kept; the generation is cancelled, since nobody would learn of it.
    """
    record = running.record
    kept = None
    if "completed" in webhook.events:
        try:
            kept = await services.webhooks.subscriptions.add(record.id, record.team_id, webhook.url)
        except SchnellError:
            running.cancel()
            raise
    services.webhooks.spawn(_report(services, running, webhook, kept, describe))


async def resume_webhooks(
    services: Services, subscriptions: Sequence[Subscription], describe: Callable[[str], Describe]
) -> None:
    """Deliver the `completed` events that another server could not. `describe` gives a dialect's words by its name.

    To be called when their records have ended: one that was left unfinished has no end to report yet.
    """
    for kept in subscriptions:
        try:
            async with services.database.read() as connection:
                record = await find_record(connection, kept.team_id, kept.record_id)
        except NotFoundError:
            await services.webhooks.subscriptions.end(kept)
        else:
            services.webhooks.spawn(_send_completed(services, record, kept, describe(record.dialect)))


async def _report(
    services: Services, running: Running, webhook: Webhook, kept: Subscription | None, describe: Describe
) -> None:
    async def tell(event: str) -> None:
        if event in webhook.events:
            body = json.dumps(await describe(services, running.record, running))
            await services.webhooks.tell(webhook.url, running.record.team_id, body)

    begun, last_logs = False, 0.0
    async with aclosing(running.follow()) as steps:
        async for progress in steps:
            if progress.stage in {"queued", "fetch"}:
                continue
            if not begun:
                begun = True
                await tell("start")
            elif progress.step > 0 and time.monotonic() - last_logs >= _LOG_SECONDS:
                last_logs = time.monotonic()
                await tell("logs")
    await running.closed()
    if running.record.status == "SUCCESS":
        await tell("output")
    if kept is not None:
        await _send_completed(services, running.record, kept, describe)


async def _send_completed(services: Services, record: Record, kept: Subscription, describe: Describe) -> None:
    await services.webhooks.deliver(kept, json.dumps(await describe(services, record, None)))

"""A prediction's webhooks: what has happened, posted to the address that its request gave."""

import json
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from schnell.errors import NotFoundError
from schnell.generations import Record, Running
from schnell.generations.records import find_record
from schnell.generations.webhooks import Subscription
from schnell.web.dialects.replicate.reading import Webhook
from schnell.web.dialects.replicate.writing import describe_prediction
from schnell.web.services import Services

_LOG_SECONDS: Final = 0.5


async def resume_webhooks(services: Services, subscriptions: Sequence[Subscription]) -> None:
    """Deliver the `completed` events that another server could not.

    To be called when their records have ended: one that was left unfinished has no end to report yet.
    """
    for kept in subscriptions:
        try:
            async with services.database.read() as connection:
                record = await find_record(connection, kept.team_id, kept.record_id)
        except NotFoundError:
            await services.webhooks.subscriptions.end(kept)
        else:
            services.webhooks.spawn(_send_completed(services, record, kept))


async def start_webhook(services: Services, running: Running, webhook: Webhook) -> None:
    """Report a prediction to its webhook from now on.

    `completed` is kept in the database until it is delivered, also across restarts; the other events are sent once.
    """
    record = running.record
    kept = None
    if "completed" in webhook.events:
        kept = await services.webhooks.subscriptions.add(record.id, record.team_id, webhook.url)
    services.webhooks.spawn(_report(services, running, webhook, kept))


async def _report(services: Services, running: Running, webhook: Webhook, kept: Subscription | None) -> None:
    begun, last_logs = False, 0.0
    async with aclosing(running.follow()) as steps:
        async for progress in steps:
            if progress.stage in {"queued", "fetch"}:
                continue
            if not begun:
                begun = True
                await _send(services, running, webhook, "start")
            elif progress.step > 0 and time.monotonic() - last_logs >= _LOG_SECONDS:
                last_logs = time.monotonic()
                await _send(services, running, webhook, "logs")
    await running.closed()
    if running.record.status == "SUCCESS":
        await _send(services, running, webhook, "output")
    if kept is not None:
        await _send_completed(services, running.record, kept)


async def _send(services: Services, running: Running, webhook: Webhook, event: str) -> None:
    if event in webhook.events:
        body = json.dumps(await describe_prediction(services, running.record, running, inline=False))
        await services.webhooks.tell(webhook.url, running.record.team_id, body)


async def _send_completed(services: Services, record: Record, kept: Subscription) -> None:
    await services.webhooks.deliver(kept, json.dumps(await describe_prediction(services, record, inline=False)))

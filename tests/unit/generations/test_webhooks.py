import asyncio
import json
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from databases import database, migrated_url
from schnell.clock import Backoff
from schnell.database.session import Database
from schnell.errors import DatabaseUnavailableError
from schnell.generations.webhooks import Subscription, Subscriptions, WebhookSender

__all__ = ["database", "migrated_url"]


def answering(*statuses: int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    left, seen = list(statuses), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(left.pop(0))

    return httpx.MockTransport(answer), seen


def sender(transport: httpx.AsyncBaseTransport | None = None, **more: Any) -> WebhookSender:
    nowhere = Subscriptions(Database("sqlite:never-opened.db"), "main")
    return WebhookSender("secret", nowhere, **{"transport": transport} | more)


async def keeping(database: Database, transport: httpx.AsyncBaseTransport) -> tuple[WebhookSender, Subscription]:
    kept = Subscriptions(database, "main")
    return (
        WebhookSender("secret", kept, private=True, delays=(0, 0), transport=transport),
        await kept.add("record", "team", "http://hook/"),
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest",
        "https://[::ffff:127.0.0.1]/",
        "http://example.com/",
        "ftp://example.com/",
        "https://user:password@example.com/",
        "https://",
        "nonsense",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_an_address_that_may_not_be_told_is_refused(url: str) -> None:
    assert sender().refusal_of(url)


def test_private_addresses_are_told_where_the_operator_allows_it() -> None:
    assert sender().refusal_of("https://example.com/hook") is None
    assert sender(private=True).refusal_of("http://10.0.0.1:5678/hook") is None


async def test_a_name_that_leads_to_a_private_address_is_never_asked() -> None:
    transport, seen = answering(200)
    assert not await sender(transport).tell("https://localhost/", "team", "{}")
    assert seen == []


async def test_a_refused_message_comes_again_under_the_same_id_until_it_is_taken(database: Database) -> None:
    transport, seen = answering(503, 500, 200)
    webhooks, kept = await keeping(database, transport)
    assert await webhooks.deliver(kept, "{}")
    assert len(seen) == 3
    assert {request.headers["webhook-id"] for request in seen} == {f"msg_{kept.id}"}
    assert await webhooks.subscriptions.pending() == []


@pytest.mark.parametrize("statuses", [(500, 500, 500), (410,)])
async def test_a_message_is_given_up(database: Database, statuses: tuple[int, ...]) -> None:
    transport, seen = answering(*statuses)
    webhooks, kept = await keeping(database, transport)
    assert not await webhooks.deliver(kept, "{}")
    assert len(seen) == len(statuses)
    assert await webhooks.subscriptions.pending() == []


async def test_a_message_that_arrived_is_not_sent_again_because_the_database_was_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, seen = answering(500, 200)
    webhooks, kept = await keeping(database, transport)
    write, failures = database.write, [DatabaseUnavailableError("away")] * 4

    def flaky() -> Any:
        if failures:
            raise failures.pop()
        return write()

    monkeypatch.setattr(database, "write", flaky)
    monkeypatch.setattr("schnell.generations.webhooks._DATABASE_BACKOFF", Backoff(0, 0))
    assert await webhooks.deliver(kept, "{}")
    assert len(seen) == 2
    assert not failures
    assert await webhooks.subscriptions.pending() == []


async def test_a_delivery_that_fails_in_an_unknown_way_is_counted_and_ends_no_other() -> None:
    failures: list[str] = []
    webhooks = sender(on_failure=lambda: failures.append("counted"))
    delivered = asyncio.Event()

    async def broken() -> None:
        raise RuntimeError("a bug")

    async def good() -> None:
        await asyncio.sleep(0.01)
        delivered.set()

    webhooks.spawn(broken())
    webhooks.spawn(good())
    await webhooks.close()
    assert failures == ["counted"]
    assert delivered.is_set()


async def test_a_server_that_stops_leaves_a_message_for_its_next_start(database: Database) -> None:
    transport, _ = answering(503)
    kept = Subscriptions(database, "main")
    webhooks = WebhookSender("secret", kept, private=True, delays=(3600,), transport=transport)
    subscription = await kept.add("record", "team", "http://hook/")
    delivering = asyncio.create_task(webhooks.deliver(subscription, "{}"))
    async with asyncio.timeout(10):
        while not (await kept.pending())[0].tries:  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)
    await webhooks.close()
    assert not await delivering
    assert [(each.id, each.tries) for each in await kept.pending()] == [(subscription.id, 1)]
    assert await Subscriptions(database, "other").pending() == []


async def test_a_message_that_comes_once_is_not_tried_again() -> None:
    transport, seen = answering(500)
    assert not await sender(transport, private=True).tell("http://hook/", "team", "{}")
    assert len(seen) == 1


async def test_redirects_are_not_followed() -> None:
    transport, seen = answering(302)
    assert not await sender(transport, private=True).tell("http://hook/", "team", "{}")
    assert len(seen) == 1


async def test_a_teams_signature_is_no_other_teams() -> None:
    transport, seen = answering(200)
    webhooks = sender(transport, private=True)
    await webhooks.tell("http://hook/", "team", json.dumps({"id": 1}))
    headers = dict(seen[0].headers)
    assert Webhook(webhooks.secret_of("team")).verify(seen[0].content.decode(), headers) == {"id": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(webhooks.secret_of("other")).verify(seen[0].content.decode(), headers)

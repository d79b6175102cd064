import json
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from schnell.web.webhooks import WebhookSender


def answering(*statuses: int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    left, seen = list(statuses), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(left.pop(0))

    return httpx.MockTransport(answer), seen


def sender(transport: httpx.AsyncBaseTransport | None = None, **more: Any) -> WebhookSender:
    return WebhookSender("secret", **{"delays": (0, 0), "transport": transport} | more)


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
    assert not await sender(transport).send("https://localhost/", "team", "{}", again=True)
    assert seen == []


async def test_a_refused_message_comes_again_under_the_same_id_until_it_is_taken() -> None:
    transport, seen = answering(503, 500, 200)
    assert await sender(transport, private=True).send("http://hook/", "team", "{}", again=True)
    assert len(seen) == 3
    assert len({request.headers["webhook-id"] for request in seen}) == 1


@pytest.mark.parametrize(("statuses", "again"), [((500, 500, 500), True), ((500,), False), ((410,), True)])
async def test_a_message_is_given_up(statuses: tuple[int, ...], again: bool) -> None:
    transport, seen = answering(*statuses)
    assert not await sender(transport, private=True).send("http://hook/", "team", "{}", again=again)
    assert len(seen) == len(statuses)


async def test_redirects_are_not_followed() -> None:
    transport, seen = answering(302)
    assert not await sender(transport, private=True).send("http://hook/", "team", "{}", again=False)
    assert len(seen) == 1


async def test_a_teams_signature_is_no_other_teams() -> None:
    transport, seen = answering(200)
    webhooks = sender(transport, private=True)
    await webhooks.send("http://hook/", "team", json.dumps({"id": 1}), again=False)
    headers = dict(seen[0].headers)
    assert Webhook(webhooks.secret_of("team")).verify(seen[0].content.decode(), headers) == {"id": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(webhooks.secret_of("other")).verify(seen[0].content.decode(), headers)

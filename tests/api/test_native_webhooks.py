"""A webhook of the native API: the record, signed, once it has ended; also when the server stopped in between."""

import asyncio
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from client_service import Delivery, Receiver, receiver
from server_process import ServerProcess, serving
from servers import BODY, KEY, Server, run_server

__all__ = ["receiver"]
HEADERS = {"API-KEY": KEY}


def check_signature(secret: str, delivery: Delivery) -> None:
    Webhook(secret).verify(delivery.body, {name.lower(): value for name, value in delivery.headers.items()})


def secret_of(server: ServerProcess) -> str:
    return str(httpx.get(f"{server.url}/api/webhooks/secret", headers=HEADERS).json()["key"])


def test_the_record_arrives_as_it_can_be_asked_for(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path, webhook_private="true") as server:
        body = BODY | {"async": True, "webhook": receiver.url}
        started = httpx.post(f"{server.url}/api/features", json=body, headers=HEADERS).json()["aiRecord"]
        (delivery,) = receiver.wait_for(1)
        check_signature(secret_of(server), delivery)
        told = delivery.json()["aiRecord"]
        asked = httpx.get(f"{server.url}/api/results/{started['uuid']}", headers=HEADERS).json()["aiRecord"]
        assert (told["uuid"], told["status"]) == (started["uuid"], "SUCCESS")
        assert told.keys() == asked.keys()
        assert httpx.get(told["temporaryUrl"]).status_code == 200


def test_its_end_is_told_after_a_restart_in_the_same_words(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path, 60.0, webhook_private="true") as server:
        body = BODY | {"async": True, "webhook": receiver.url}
        started = httpx.post(f"{server.url}/api/features", json=body, headers=HEADERS).json()["aiRecord"]
        server.kill()
    with serving(tmp_path, webhook_private="true") as server:
        (delivery,) = receiver.wait_for(1)
        check_signature(secret_of(server), delivery)
    told = delivery.json()["aiRecord"]
    assert (told["uuid"], told["status"]) == (started["uuid"], "FAILURE")


def test_other_events_come_where_they_are_asked_for(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path, 0.05, webhook_private="true") as server:
        events = ["start", "output", "completed"]
        body = BODY | {"async": True, "webhook": receiver.url, "webhookEvents": events}
        httpx.post(f"{server.url}/api/features", json=body, headers=HEADERS).raise_for_status()
        deliveries = receiver.wait_for(3)
    statuses = [each.json()["aiRecord"]["status"] for each in deliveries]
    assert statuses == ["PROCESSING", "SUCCESS", "SUCCESS"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"webhook": "https://example.org/hook"}, "webhook"),
        ({"webhook": "http://example.org/hook", "async": True}, "webhook"),
        ({"webhook": "https://127.0.0.1/hook", "async": True}, "webhook"),
        ({"webhook": "https://example.org/hook", "async": True, "webhookEvents": ["ended"]}, "webhookEvents"),
        ({"webhook": 5, "async": True}, "webhook"),
    ],
)
async def test_a_wrong_webhook_is_refused_by_its_name(tmp_path: Path, given: dict[str, object], field: str) -> None:
    async with run_server(tmp_path) as server:
        refused = await server.client.post("/api/features", json=BODY | given)
        assert refused.status_code == 400
        assert f'"field": "{field}"' in refused.json()["details"].replace('":"', '": "')
        assert await nothing_drawn(server)


async def nothing_drawn(server: Server) -> bool:
    await asyncio.sleep(0)
    return not server.runner.jobs

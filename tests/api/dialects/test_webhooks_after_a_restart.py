"""A server that stops, well or badly, owes its webhooks still: the next start delivers them."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
from replicate.webhook import Webhooks, WebhookSigningSecret

from client_service import Delivery, Receiver, receiver
from server_process import ServerProcess, serving
from servers import KEY

__all__ = ["receiver"]
MODEL = "black-forest-labs/flux-schnell-lora"
HEADERS = {"API-KEY": KEY}


def predict(server: ServerProcess, hook: Receiver) -> str:
    body = {"input": {"prompt": "a", "megapixels": "0.25"}, "webhook": hook.url, "webhook_events_filter": ["completed"]}
    made = httpx.post(f"{server.url}/v1/models/{MODEL}/predictions", json=body, headers=HEADERS)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def check_signature(server: ServerProcess, delivery: Delivery) -> None:
    secret = httpx.get(f"{server.url}/v1/webhooks/default/secret", headers=HEADERS).json()["key"]
    Webhooks.validate(headers=delivery.headers, body=delivery.body, secret=WebhookSigningSecret(key=secret))


def test_what_was_refused_before_a_stop_comes_after_the_next_start(tmp_path: Path, receiver: Receiver) -> None:
    receiver.refusals = 1_000
    with serving(tmp_path, webhook_private="true") as server:
        prediction = predict(server, receiver)
        until(lambda: bool(receiver.refused))
        assert server.stop() == 0
    receiver.refusals = 0
    with serving(tmp_path, webhook_private="true") as server:
        (delivery,) = receiver.wait_for(1)
        check_signature(server, delivery)
    assert (delivery.json()["id"], delivery.json()["status"]) == (prediction, "succeeded")
    assert {each.headers["webhook-id"] for each in receiver.refused} == {delivery.headers["webhook-id"]}


def test_a_prediction_that_a_kill_ended_is_told_as_failed(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path, 60.0, webhook_private="true") as server:
        prediction = predict(server, receiver)
        server.kill()
    assert receiver.deliveries == []
    with serving(tmp_path, webhook_private="true") as server:
        (delivery,) = receiver.wait_for(1)
        check_signature(server, delivery)
        assert (delivery.json()["id"], delivery.json()["status"]) == (prediction, "failed")
        assert server.stop() == 0
    with serving(tmp_path, webhook_private="true"):
        assert len(receiver.deliveries) == 1

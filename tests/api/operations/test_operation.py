import logging
from pathlib import Path

import pytest

from schnell.spec import DeviceSnapshot
from servers import KEY, Server, run_server


async def test_health_and_readiness(server: Server) -> None:
    assert (await server.client.get("/healthz")).text == "ok"
    assert (await server.client.get("/readyz")).json() == {"ready": True, "problem": None}
    server.services.admission.close()
    assert (await server.client.get("/readyz")).status_code == 503
    server.services.admission.closed = False


async def test_a_lost_device_is_named_and_the_last_one_makes_the_server_unready(server: Server) -> None:
    server.runner.devices = (DeviceSnapshot("cuda:0"), DeviceSnapshot("cuda:1", is_lost=True))
    answer = await server.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "problem": None, "lostDevices": ["cuda:1"]})
    server.runner.devices = (DeviceSnapshot("cuda:0", is_lost=True), DeviceSnapshot("cuda:1", is_lost=True))
    answer = await server.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["problem"] == "every device has failed; restart the server"
    assert 'schnell_device_up{device="cuda:1"} 0.0' in (await server.client.get("/metrics")).text


async def test_metrics_count_what_happened(server: Server) -> None:
    await server.draw(num_outputs=2)
    await server.draw(seed=-1)
    server.runner.flagged = [0]
    await server.draw()
    text = (await server.client.get("/metrics")).text
    for line in (
        'schnell_generations_total{dialect="onemin",outcome="SUCCESS"} 1.0',
        'schnell_generations_total{dialect="onemin",outcome="NSFW_CONTENT"} 1.0',
        "schnell_images_total 2.0",
        "schnell_credits_total 800.0",
        "schnell_safety_flags_total 1.0",
        "schnell_queue_depth 0.0",
        'schnell_requests_total{method="POST",route="/api/features",status="400"} 2.0',
    ):
        assert line in text, line
    assert "schnell_step_seconds_count" in text
    assert "schnell_batch_rows_sum" in text


async def test_metrics_can_be_kept_behind_a_token(tmp_path: Path) -> None:
    async with run_server(tmp_path, metrics_token="let-me-see") as server:
        assert (await server.client.get("/metrics")).status_code == 401
        del server.client.headers["API-KEY"]
        headers = {"Authorization": "Bearer let-me-see"}
        assert (await server.client.get("/metrics", headers=headers)).status_code == 200


async def test_every_answer_carries_a_request_id(server: Server) -> None:
    assert (await server.client.get("/healthz")).headers["x-request-id"]
    kept = await server.client.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    replaced = await server.client.get("/healthz", headers={"X-Request-Id": "no spaces, please"})
    assert replaced.headers["x-request-id"] != "no spaces, please"


async def test_other_sites_are_kept_out_unless_named(tmp_path: Path) -> None:
    origin = {"Origin": "https://friend.example"}
    async with run_server(tmp_path) as server:
        assert "access-control-allow-origin" not in (await server.client.get("/models", headers=origin)).headers
    async with run_server(tmp_path, cors_origins=("https://friend.example",)) as server:
        answer = await server.client.get("/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"


async def test_no_secret_reaches_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="schnell"):
        link = (await server.draw()).json()["aiRecord"]["temporaryUrl"]
        await server.client.get(link)
        await server.client.post("/api/session", json={"key": KEY})
    assert caplog.text
    assert KEY not in caplog.text
    assert link.rpartition("=")[2] not in caplog.text

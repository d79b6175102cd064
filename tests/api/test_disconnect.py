import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server_process import ServerProcess, serving
from servers import BODY


async def record(client: httpx.AsyncClient) -> dict[str, object]:
    for _ in range(200):
        found = (await client.get("/api/features")).json()["aiRecords"]
        if found and found[0]["status"] != "PROCESSING":
            return dict(found[0])
        await asyncio.sleep(0.05)
    raise TimeoutError


async def hang_up(client: httpx.AsyncClient, path: str = "/api/features", **headers: str) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.post(path, json=BODY, headers=headers), 0.5)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tmp_path, step_seconds=0.6) as server:
        yield server


@pytest.mark.parametrize("path", ["/api/features", "/api/features?isStreaming=true"])
async def test_a_closed_connection_cancels_the_job_and_costs_nothing(slow: ServerProcess, path: str) -> None:
    async with slow.client() as client:
        await hang_up(client, path)
        found = await record(client)
        assert found["status"] == "FAILURE"
        assert (await client.get("/api/session")).json()["usedCredit"] == 0


async def test_with_an_idempotency_key_a_closed_connection_cancels_nothing(slow: ServerProcess) -> None:
    async with slow.client() as client:
        await hang_up(client, **{"Idempotency-Key": "again"})
        again = await client.post("/api/features", json=BODY, headers={"Idempotency-Key": "again"})
        assert again.json()["aiRecord"]["status"] == "SUCCESS"
        assert len((await client.get("/api/features")).json()["aiRecords"]) == 1


async def test_sigterm_finishes_what_runs_and_exits_zero(slow: ServerProcess) -> None:
    async with slow.client() as client:
        drawing = asyncio.create_task(client.post("/api/features", json=BODY))
        await asyncio.sleep(0.5)
        code = await asyncio.to_thread(slow.stop)
        assert (await drawing).json()["aiRecord"]["status"] == "SUCCESS"
    assert code == 0

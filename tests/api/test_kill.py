"""Kill a real server at random moments under load, start it again, and audit its books, records and files."""

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from books import check_books
from counts import SOAK
from databases import database_url
from server_process import ServerProcess, start_server
from servers import body_with

__all__ = ["database_url"]
CLIENTS = 8


@pytest.mark.timeout(3600)
async def test_kill_9_leaves_nothing_in_between(tmp_path: Path, database_url: str) -> None:
    chance = random.Random(11)
    drawn = 0
    for turn in range(50 if SOAK else 3):
        server = await asyncio.to_thread(start_server, tmp_path, 0.01, database_url=database_url)
        drawn = await check_books(tmp_path, database_url)
        drew = asyncio.Event()
        load = [asyncio.create_task(keep_drawing(server, chance, drew)) for _ in range(CLIENTS)]
        if turn % 2 == 0:  # however slow the machine is, some turns have something to lose
            await asyncio.wait_for(drew.wait(), 120)
        await asyncio.sleep(chance.uniform(0.1, 1.5))
        server.kill()
        await asyncio.gather(*load)
    last = await asyncio.to_thread(start_server, tmp_path, 0.01, database_url=database_url)
    drawn = await check_books(tmp_path, database_url)
    assert await asyncio.to_thread(last.stop) == 0
    assert drawn > 0


async def keep_drawing(server: ServerProcess, chance: random.Random, drew: asyncio.Event) -> None:
    async with server.client() as client:
        try:
            while True:
                if await one_request(client, chance):
                    drew.set()
        except httpx.HTTPError:
            return  # killed


async def one_request(client: httpx.AsyncClient, chance: random.Random) -> bool:
    """Whether it left a picture."""
    body = body_with(aspect_ratio="custom", width=256, height=256, num_outputs=chance.randint(1, 4))
    kind = chance.randrange(4)
    if kind == 0:
        await client.post("/api/features", json=body | {"async": True})
        return False
    if kind == 1:
        await client.post("/api/features", json=body, headers={"Idempotency-Key": f"key {chance.randrange(50)}"})
        return False
    record = (await client.post("/api/features", json=body)).json().get("aiRecord")
    if record and kind == 2:
        await client.delete(f"/api/results/{record['uuid']}")
    return bool(record) and kind == 3

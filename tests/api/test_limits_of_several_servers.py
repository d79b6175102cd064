"""Two real servers on one PostgreSQL grant together what one alone would: a key's rate, and a team's places."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from databases import migrated_postgres, new_postgres_url
from schnell.accounts.keys import create_key
from schnell.accounts.teams import create_team, list_members
from schnell.database.session import Database
from server_process import ServerProcess, start_server
from servers import body_with

RATE, PLACES = 5, 4
ASYNC = body_with(aspect_ratio="custom", width=256, height=256) | {"async": True}
#: Paths of dialects, with a body, and what a refusal of each kind looks like.
DIALECTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/api/features", body_with(), {"errorCode": "{}"}),
    ("/v1/images/generations", {"prompt": "x"}, {"error": {"type": "requests", "code": "rate_limit_exceeded"}}),
    ("/sdapi/v1/txt2img", {"prompt": "x"}, {"error": "{}"}),
]


class Pair:
    """Two servers of one installation, whose steps take a minute, and keys of teams."""

    def __init__(self, url: str, servers: tuple[ServerProcess, ServerProcess]) -> None:
        self.url = url
        self.servers = servers

    async def key_of(self, team: str, rate: str | None = None) -> str:
        database = Database(self.url)
        async with database.write() as connection:
            made = await create_team(connection, team)
            member = (await list_members(connection, made.id))[0]
            key = await create_key(connection, made.id, member.user_id, rate_limit=rate)
        await database.close()
        return key.secret

    async def post(self, n: int, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
        async with self.servers[n % 2].client() as client:
            return await client.post(path, json=body, headers={"API-KEY": key, "Authorization": f"Bearer {key}"})


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    url = new_postgres_url(migrated_postgres())
    shared = {
        "database_url": url,
        "assets_url": f"file:{tmp_path / 'pictures'}",
        "link_secrets": "x" * 32,
        "lease_seconds": "6",
        "team_queue_limit": str(PLACES),
    }
    found = await asyncio.gather(
        *[asyncio.to_thread(start_server, tmp_path / name, 60.0, **shared) for name in ("a", "b")]
    )
    yield Pair(url, (found[0], found[1]))
    for server in found:
        server.end()


async def test_two_servers_keep_the_limits_of_one_and_a_dead_ones_work_counts_no_more(pair: Pair) -> None:
    await _share_a_rate(pair)
    await _share_a_queue(pair)


async def _share_a_rate(pair: Pair) -> None:
    key = await pair.key_of("frequent", f"{RATE}/hour")
    asked = await asyncio.gather(*[pair.post(n, key, "/api/features", ASYNC) for n in range(3 * RATE)])
    granted = [each for each in asked if each.status_code != 429]
    # more than the queue has places for: a request that is refused there counts, as on one server
    assert len(granted) <= RATE
    refused = [each for each in asked if each.status_code == 429 and each.json()["errorCode"] == "RATE_LIMITED"]
    assert len(refused) == 2 * RATE
    # until the first of them has left its hour, whichever server had it
    await _refuse_in_every_dialect(pair, key, "RATE_LIMITED", range(3500, 3661))


async def _share_a_queue(pair: Pair) -> None:
    key = await pair.key_of("busy")
    asked = await asyncio.gather(*[pair.post(n, key, "/api/features", ASYNC) for n in range(3 * PLACES)])
    assert [each.status_code for each in asked].count(200) == PLACES
    assert {each.json()["errorCode"] for each in asked if each.status_code != 200} == {"TEAM_QUEUE_FULL"}
    await _refuse_in_every_dialect(pair, key, "TEAM_QUEUE_FULL", range(1, 3600))
    # another team has places of its own
    other = await pair.key_of("calm")
    assert (await pair.post(0, other, "/api/features", ASYNC)).status_code == 200
    drawn = [n % 2 for n, each in enumerate(asked) if each.status_code == 200]
    dead = 0 if drawn.count(0) else 1
    pair.servers[dead].kill()
    async with asyncio.timeout(90):
        while (answer := await pair.post(1 - dead, key, "/api/features", ASYNC)).status_code != 200:
            assert answer.status_code == 429
            await asyncio.sleep(0.2)


async def _refuse_in_every_dialect(pair: Pair, key: str, code: str, waits: range) -> None:
    for path, body, shape in DIALECTS:
        for n in range(2):
            answer = await pair.post(n, key, path, body)
            assert (answer.status_code, int(answer.headers["retry-after"]) in waits) == (429, True), answer.headers
            _check_shape(answer.json(), shape, code)


def _check_shape(found: Any, shape: Any, code: str) -> None:
    if isinstance(shape, dict):
        for name, expected in shape.items():
            _check_shape(found[name], expected, code)
    else:
        assert found == shape.format(code)

"""A commit of each kind whose answer is lost, before and after it took effect: nothing is lost, off or in between."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from books import charged_for_successes, check_credits, check_rows
from commit_faults import KINDS, CommitFaults, Kind, When, commit_faults
from counts import repeats
from databases import migrated_url
from fakes import FakeRunner
from schnell.errors import GenerationFailedError
from servers import BODY, Server, run_server
from waiting import until

__all__ = ["migrated_url"]


@pytest.fixture
def faults(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommitFaults]:
    with commit_faults(migrated_url, monkeypatch) as found:
        yield found


@pytest.fixture
async def server(tmp_path: Path, faults: CommitFaults) -> AsyncIterator[Server]:
    async with run_server(tmp_path, FakeRunner(), database_url=faults.url, drain_seconds=20) as running:
        yield running


async def settled(server: Server) -> None:
    """Nothing runs, nothing is to be closed."""
    await until(lambda: not server.services.admission.all() and not server.services.generations.is_busy, seconds=30)


async def check(server: Server) -> None:
    await settled(server)
    async with server.services.database.read() as connection:
        await check_credits(connection)
        await check_rows(connection, await server.services.store.list_keys())
        used, cost = await charged_for_successes(connection)
    assert used == cost


async def draw(server: Server) -> httpx.Response:
    return await server.draw(aspect_ratio="custom", width=256, height=256, num_inference_steps=2)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lost_commit_loses_nothing(server: Server, faults: CommitFaults, kind: Kind, when: When) -> None:
    # slow enough that the note of a started record is written before the end
    server.runner.step_seconds = 0.02 if kind == "started" else 0.0
    server.runner.failure = GenerationFailedError("out of memory") if kind == "failure" else None
    expected = {"accept": (503, "DATABASE_UNAVAILABLE"), "failure": (500, "GENERATION_FAILED")}.get(kind, (200, None))
    for turn in range(repeats(100)):
        faults.lose(kind, when)
        answer = await draw(server)
        assert (answer.status_code, answer.json().get("errorCode")) == expected, answer.text
        await settled(server)
        assert faults.lost == turn + 1
        if kind == "success":
            link = answer.json()["aiRecord"]["temporaryUrl"]
            assert (await server.client.get(link)).status_code == 200
    await check(server)


async def test_a_key_whose_acceptance_was_lost_is_free_again(server: Server, faults: CommitFaults) -> None:
    whens: tuple[When, ...] = ("before", "after")
    for when in whens:
        headers = {"Idempotency-Key": f"order {when}"}
        faults.lose("accept", when)
        first = await server.client.post("/api/features", json=BODY, headers=headers)
        assert first.status_code == 503
        await settled(server)
        assert (await server.client.post("/api/features", json=BODY, headers=headers)).status_code == 200
    await check(server)


@pytest.mark.timeout(3600)
async def test_lost_commits_under_load_lose_nothing(server: Server, faults: CommitFaults) -> None:
    async def client(number: int) -> None:
        for turn in range(repeats(100)):
            faults.lose(KINDS[(number + turn) % 3], "after" if turn % 2 else "before")
            await draw(server)

    await asyncio.gather(*(client(number) for number in range(8)))
    faults.kind = None
    assert faults.lost > 0
    await check(server)

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from databases import migrated_url
from fakes import FakeRunner
from schnell.clock import now
from schnell.database.tables import idempotency_keys
from schnell.errors import GenerationFailedError
from schnell.generations.idempotency import KEPT_FOR
from servers import BODY, Server, body_with, run_server

__all__ = ["migrated_url"]
HEADERS = {"Idempotency-Key": "order-66"}


@pytest.fixture
async def server(tmp_path: Path, migrated_url: str) -> AsyncIterator[Server]:
    async with run_server(tmp_path, FakeRunner(step_seconds=0.02), database_url=migrated_url) as running:
        yield running


async def ask(server: Server, **headers: str) -> tuple[int, str]:
    answer = await server.client.post("/api/features", json=BODY, headers=HEADERS | headers)
    return answer.status_code, answer.json()["aiRecord"]["uuid"] if answer.status_code == 200 else answer.text


async def used(server: Server) -> int:
    return int((await server.client.get("/api/session")).json()["usedCredit"])


async def test_the_same_key_50_times_at_once_is_one_picture_and_one_charge(server: Server) -> None:
    answers = await asyncio.gather(*(ask(server) for _ in range(50)))
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert len(server.runner.jobs) == 1
    assert await used(server) == 400
    assert len(await server.services.store.list_keys()) == 1


async def test_the_same_key_later_gives_the_same_record(server: Server) -> None:
    assert await ask(server) == await ask(server)
    assert len(server.runner.jobs) == 1


async def test_another_key_is_another_picture(server: Server) -> None:
    assert await ask(server) != await ask(server, **{"Idempotency-Key": "order-67"})


async def test_another_body_with_the_same_key_is_a_conflict(server: Server) -> None:
    await ask(server)
    answer = await server.client.post("/api/features", json=body_with(seed=1), headers=HEADERS)
    assert (answer.status_code, answer.json()["errorCode"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert answer.headers["x-should-retry"] == "false"


async def test_after_a_failure_it_runs_again(server: Server) -> None:
    server.runner.failure = GenerationFailedError("out of memory")
    assert (await ask(server))[0] == 500
    server.runner.failure = None
    assert (await ask(server))[0] == 200
    assert await used(server) == 400


async def test_after_a_day_the_key_is_free(server: Server) -> None:
    first = await ask(server)
    async with server.services.database.write() as connection:
        await connection.execute(update(idempotency_keys).values(created_at=now() - KEPT_FOR))
    assert await ask(server) != first


async def test_a_refused_request_does_not_use_the_key_up(server: Server) -> None:
    server.services.admission.close()
    assert (await ask(server))[0] == 503
    server.services.admission.closed = False
    assert (await ask(server))[0] == 200


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_an_unusable_key_is_refused_by_name(server: Server, key: str) -> None:
    answer = await server.client.post("/api/features", json=BODY, headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["details"]


async def test_after_a_failure_50_at_once_are_one_picture_and_one_charge(server: Server) -> None:
    server.runner.failure = GenerationFailedError("out of memory")
    assert (await ask(server))[0] == 500
    server.runner.failure = None
    answers = await asyncio.gather(*(ask(server) for _ in range(50)))
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert await used(server) == 400

"""What administrators see of what goes on: their team's, and operators all of it. The figures are the ledger's."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from databases import new_postgres_url
from schnell.clock import now
from schnell.database.tables import records, users
from servers import Server, body_with, key_for, run_server


@pytest.fixture(params=["sqlite", "postgresql"])
async def two_teams(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Server, dict[str, str]]]:
    settings: dict[str, Any] = {"database_url": new_postgres_url()} if request.param == "postgresql" else {}
    async with run_server(tmp_path, **settings) as server:
        other = await key_for(server, "Design", "generate", "read", "admin")
        await server.draw(lora_weights="flat", extra_lora="line")
        await server.draw(lora_weights="flat")
        server.runner.flagged = [0]
        await server.draw()
        server.runner.flagged = []
        drawn = await server.client.post("/api/features", json=body_with(num_outputs=2), headers=other)
        assert drawn.status_code == 200
        yield server, other


async def test_usage_by_anything_is_the_ledgers(two_teams: tuple[Server, dict[str, str]]) -> None:
    server, other = two_teams
    usage = {
        by: (await server.client.get(f"/api/admin/usage/{by}")).json()["usage"]
        for by in ("day", "team", "user", "model", "lora")
    }
    # 400 a picture of a quarter of a megapixel, 200 a LoRA; what failed costs nothing
    total = {"requests": 4, "failed": 1, "pictures": 4, "credits": 800 + 600 + 800}
    for by in ("day", "team", "user", "model"):
        assert {name: sum(row[name] for row in usage[by]) for name in total} == total, by
    assert {row["name"]: row["pictures"] for row in usage["lora"]} == {"flat": 2, "line": 1}
    # people of one name are told apart
    async with server.services.database.write() as connection:
        await connection.execute(update(users).values(name="Ada"))
    rows = (await server.client.get("/api/admin/usage/user")).json()["usage"]
    assert sorted(row["name"] for row in rows) == ["Ada (Default team)", "Ada (Design)"]
    ids = {(await server.client.get("/api/session", headers=each)).json()["userId"] for each in ({}, other)}
    assert {row["id"] for row in rows} == ids
    # each row of a key says whose it is, on the page and in its file, too
    rows = (await server.client.get("/api/admin/usage")).json()["usage"]
    assert {row["userId"] for row in rows} == ids
    text = (await server.client.get("/api/admin/usage?format=csv")).text
    page = (await server.client.get("/admin/usage?by=user")).text
    assert all(each in text and each in page for each in ids)
    assert text.splitlines()[0].endswith(",user_id")
    own = (await server.client.get("/api/admin/usage/team", headers=other)).json()["usage"]
    assert [(row["name"], row["pictures"]) for row in own] == [("Design", 2)]
    text = (await server.client.get("/api/admin/usage/team?format=csv", headers=other)).text
    assert text.splitlines()[0] == "name,requests,failed,pictures,credits,id"


async def test_failures_and_storage_are_ones_own(two_teams: tuple[Server, dict[str, str]]) -> None:
    server, other = two_teams
    [failure] = (await server.client.get("/api/admin/failures")).json()["failures"]
    assert (failure["code"], failure["count"]) == ("NSFW_CONTENT", 1)
    assert (await server.client.get("/api/admin/failures", headers=other)).json()["failures"] == []
    everything = (await server.client.get("/api/admin/storage")).json()
    assert {row["team"]: row["pictures"] for row in everything["teams"]} == {"Default team": 2, "Design": 2}
    assert everything["diskFreeBytes"] > 0
    own = (await server.client.get("/api/admin/storage", headers=other)).json()
    assert [row["team"] for row in own["teams"]] == ["Design"]
    assert "diskFreeBytes" not in own
    assert (await server.client.get("/api/admin/servers", headers=other)).status_code == 403


async def test_a_generation_is_cancelled_by_its_team_and_by_operators_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_server(tmp_path) as server:
        server.runner.gate = asyncio.Event()
        design = await key_for(server, "Design", "generate", "read", "admin")
        sales = await key_for(server, "Sales", "generate", "read", "admin")
        started = await server.client.post("/api/features", json=body_with() | {"async": True}, headers=design)
        record = started.json()["aiRecord"]["uuid"]
        queue = (await server.client.get("/api/admin/queue")).json()["queue"]
        assert [(row["id"], row["team"]) for row in queue] == [(record, "Design")]
        assert (await server.client.get("/api/admin/queue", headers=sales)).json()["queue"] == []
        # it is found by its id, also behind all that the list shows
        monkeypatch.setattr("schnell.generations.overview._MOST_SHOWN", 1)
        earlier = await server.client.post("/api/features", json=body_with() | {"async": True})
        async with server.services.database.write() as connection:
            first = records.c.id == earlier.json()["aiRecord"]["uuid"]
            old = now() - timedelta(hours=1)
            await connection.execute(update(records).where(first).values(created_at=old))
        [shown] = (await server.client.get("/api/admin/queue")).json()["queue"]
        assert shown["id"] != record
        path = f"/api/admin/queue/{record}/cancel"
        assert (await server.client.post(path, headers=sales)).status_code == 404
        assert (await server.client.post(path)).json() == {"uuid": record, "status": "FAILURE"}
        [entry] = (await server.client.get("/api/admin/audit?action=generation", headers=design)).json()
        assert (entry["action"], entry["targetId"]) == ("generation.cancelled", record)
        assert (await server.client.get("/api/admin/audit?action=generation", headers=sales)).json() == []


async def test_no_answer_holds_a_prompt(tmp_path: Path) -> None:
    async with run_server(tmp_path) as server:
        server.runner.gate = asyncio.Event()
        await server.client.post("/api/features", json=body_with(prompt="an unmistakable walrus") | {"async": True})
        for path in ("queue", "failures", "storage", "servers", "audit", "usage/day"):
            assert "walrus" not in (await server.client.get(f"/api/admin/{path}")).text

"""What becomes of work that is under way when the budget or the people behind it change."""

import asyncio
from typing import Any

from schnell.accounts.credits import audit
from servers import BODY, Server


async def make_team(server: Server, **budget: Any) -> tuple[str, str, dict[str, str]]:
    """The ids of a team and its user, and the header with their key."""
    team = (await server.client.post("/api/admin/teams", json={"name": "acme"} | budget)).json()["id"]
    (user,) = (await server.client.get(f"/api/admin/teams/{team}/users")).json()
    key = (await server.client.post(f"/api/admin/teams/{team}/keys", json={})).json()["key"]
    return team, user["userId"], {"API-KEY": key}


async def start_waiting(server: Server, key: dict[str, str]) -> str:
    """The id of a record whose picture waits for `server.runner.gate`."""
    server.runner.gate = asyncio.Event()
    answer = await server.client.post("/api/features", json=BODY | {"async": True}, headers=key)
    assert answer.status_code == 200
    return str(answer.json()["aiRecord"]["uuid"])


async def finish(server: Server, uuid: str) -> None:
    running = server.services.admission.find(uuid)
    assert running is not None
    assert server.runner.gate is not None
    server.runner.gate.set()
    assert (await running.ended()).status == "SUCCESS"


async def used(server: Server, team: str) -> int:
    async with server.services.database.read() as connection:
        assert await audit(connection) == []
    found = (await server.client.get("/api/admin/teams")).json()
    return int(next(each["usedCredit"] for each in found if each["id"] == team))


async def test_a_limit_that_is_lowered_under_way_lets_that_work_end_and_refuses_more(server: Server) -> None:
    team, _, key = await make_team(server, creditLimit=1000)
    uuid = await start_waiting(server, key)
    await server.client.patch(f"/api/admin/teams/{team}", json={"creditLimit": 100})
    refused = await server.client.post("/api/features", json=BODY, headers=key)
    assert refused.status_code == 402
    assert "only has 0 credits" in refused.json()["message"]
    await finish(server, uuid)
    assert await used(server, team) == 400
    await server.client.patch(f"/api/admin/teams/{team}", json={"creditLimit": 800})
    assert (await server.client.post("/api/features", json=BODY, headers=key)).status_code == 200
    assert await used(server, team) == 800


async def test_a_user_who_is_made_inactive_is_refused_and_what_they_had_under_way_ends(server: Server) -> None:
    team, user, key = await make_team(server)
    uuid = await start_waiting(server, key)
    switched = await server.client.patch(f"/api/admin/teams/{team}/users/{user}", json={"status": "INACTIVE"})
    assert switched.status_code == 200
    for method, path in (("POST", "/api/features"), ("GET", f"/api/results/{uuid}")):
        assert (await server.client.request(method, path, json=BODY, headers=key)).status_code == 401
    await finish(server, uuid)
    assert await used(server, team) == 400
    await server.client.patch(f"/api/admin/teams/{team}/users/{user}", json={"status": "ACTIVE"})
    assert (await server.client.get(f"/api/results/{uuid}", headers=key)).json()["aiRecord"]["status"] == "SUCCESS"


async def test_a_window_there_and_back_over_http_keeps_what_was_used(server: Server) -> None:
    team, user, key = await make_team(server, creditLimit=1000)
    assert (await server.client.post("/api/features", json=BODY, headers=key)).status_code == 200
    for window in ("day", "month", "none"):
        for path in (f"/api/admin/teams/{team}", f"/api/admin/teams/{team}/users/{user}"):
            changed = await server.client.patch(path, json={"budgetWindow": window})
            assert changed.json()["usedCredit"] == 400
        assert await used(server, team) == 400

"""Every route with which somebody manages a team, a server or an account leaves a line in the audit log.

The routes are those of the table of roles, which is compared with the app's own: a new one that changes something fails
here until it has a row that shows what it does, and a line that says who did it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from api.test_roles import TABLE, Need, World, build_world, fill
from mini_loras import lora_bytes
from schnell.accounts.audit import Entry, list_entries
from servers import BODY, Server

#: Needs of routes that manage something, and who asks for them here.
MANAGING: Final[Mapping[Need, Any]] = {
    "admin": "operator",
    "operator": "operator",
    "team": "team admin",
    "admin ended": "team admin",
    "own": "member",
    "owner": "member",
}
#: A body with which each of them changes something; None where it takes none.
CHANGES: Final[Mapping[str, Any]] = {
    "PUT /api/lora-sources/{site}/token": {"token": "hf_secret"},
    "DELETE /api/lora-sources/{site}/token": None,
    "POST /api/keys": {"name": "laptop"},
    "PATCH /api/keys/{key_id}": {"rateLimit": "60/minute"},
    "DELETE /api/keys/{key_id}": None,
    "PUT /api/password": {"name": "ada@example.org", "password": "correct horse battery"},
    "DELETE /api/sessions": None,
    "DELETE /api/sessions/{session_id}": None,
    "POST /api/admin/teams": {"name": "Another"},
    "PATCH /api/admin/teams/{team_id}": {"creditLimit": 5_000_000},
    "POST /api/admin/teams/{team_id}/users": {"name": "Another"},
    "PATCH /api/admin/teams/{team_id}/users/{user_id}": {"creditLimit": 500_000},
    "POST /api/admin/teams/{team_id}/users/{user_id}/invites": None,
    "POST /api/admin/teams/{team_id}/keys": {"user": "Member"},
    "PATCH /api/admin/keys/{key_id}": {"expiresAt": "2031-01-31T00:00:00Z"},
    "DELETE /api/admin/keys/{key_id}": None,
    "POST /api/admin/teams/{team_id}/invites": {"name": "Another"},
    "DELETE /api/admin/invites/{invite_id}": None,
    "POST /api/admin/queue/{record_id}/cancel": None,
}


def managing_routes() -> list[str]:
    return [row for row, need in TABLE.items() if need in MANAGING and not row.startswith("GET ")]


async def entries(server: Server) -> list[Entry]:
    async with server.services.database.read() as connection:
        return await list_entries(connection, limit=500)


async def change(server: Server, world: World, row: str) -> httpx.Response:
    """Do what the route does, as somebody who may."""
    method, _, path = row.partition(" ")
    path = path.replace("{site}", "huggingface")
    if "queue" in path:  # of something that is under way
        server.runner.gate = asyncio.Event()
        asked = BODY | {"async": True}
        started = await server.client.post("/api/features", json=asked, headers=world.headers["member"])
        filled = path.replace("{record_id}", started.json()["aiRecord"]["uuid"])
    else:
        filled, _ = await fill(server, world, path)
    who = world.headers[MANAGING[TABLE[row]]]
    return await server.client.request(method, filled, json=CHANGES[row], headers=who)


def test_every_route_that_manages_something_has_a_row_here() -> None:
    assert set(managing_routes()) == set(CHANGES)


async def test_every_route_that_manages_something_says_who_did_it(server: Server) -> None:
    async with server.services.database.write() as connection:
        world = await build_world(connection)
    del server.client.headers["API-KEY"]
    wrong = []
    for row in managing_routes():
        before = len(await entries(server))
        answer = await change(server, world, row)
        if not answer.is_success:
            wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
        new = (await entries(server))[: len(await entries(server)) - before]
        if not any(each.actor_id and each.via == "key" for each in new):
            wrong.append(f"{row} leaves no line that says who")
        if any("hf_secret" in str(each) or "horse" in str(each) for each in new):
            wrong.append(f"{row} leaves a secret in the log")
    assert not wrong, "\n".join(wrong)


async def test_a_lora_that_becomes_public_or_is_taken_back_says_who_did_it(server: Server) -> None:
    for form in ({"name": "ours"}, {"name": "everybodys", "public": "true"}):
        added = await server.client.post("/api/loras", data=form, files={"file": ("a.safetensors", lora_bytes(3))})
        assert added.status_code == 201, added.text
    assert (await server.client.delete("/api/loras/everybodys", params={"public": "true"})).status_code == 204
    assert (await server.client.delete("/api/loras/ours")).status_code == 204
    lines = [(each.actor, each.action, each.target, each.details) for each in await entries(server)]
    assert lines == [
        ("Administrator", "lora.removed", "everybodys", {"public": True}),
        ("Administrator", "lora.added", "everybodys", {"public": True}),
    ]


@pytest.mark.parametrize("gallery", [True, False], ids=["gallery", "api"])
async def test_an_administrator_who_deletes_others_pictures_is_written_down(server: Server, *, gallery: bool) -> None:
    async with server.services.database.write() as connection:
        world = await build_world(connection)
    admin, member = world.headers["team admin"], world.headers["member"]
    drawn = [await server.client.post("/api/features", json=BODY, headers=each) for each in (admin, member)]
    ids = [each.json()["aiRecord"]["uuid"] for each in drawn]
    if gallery:
        await server.client.post("/gallery/delete", json={"records": ids}, headers=admin)
        await server.client.post("/gallery/restore", json={"records": ids}, headers=admin)
    else:
        for each in ids:
            assert (await server.client.delete(f"/api/results/{each}", headers=admin)).is_success
    lines = await entries(server)
    assert [each.action for each in lines] == ["generation.restored", "generation.deleted"][0 if gallery else 1 :]
    for each in lines:
        assert (each.actor_id, each.team_id) == (world.owner.user_id, world.owner.team_id)
        assert each.details == {"of": [world.member.user_id], "records": [ids[1]]}

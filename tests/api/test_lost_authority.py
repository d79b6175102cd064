"""Links and keys are worth no more than who has made them, when they are used."""

from typing import Any

import httpx
import pytest

from schnell.accounts.teams import set_operator
from servers import BODY, Server

PASSWORD = "correct horse battery"


def browser(server: Server) -> httpx.AsyncClient:
    """A browser without a key, with cookies of its own."""
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


async def team_of(server: Server) -> str:
    return str((await server.client.get("/api/session")).json()["teamId"])


async def invite(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    made = await client.post(f"/api/admin/teams/{path}/invites", json=body or None)
    assert made.status_code == 201, made.text
    return str(made.json()["link"]).partition("#invite=")[2]


async def accept(client: httpx.AsyncClient, secret: str, name: str) -> int:
    body = {"invite": secret, "name": name, "password": PASSWORD}
    return (await client.post("/api/invites/accept", json=body)).status_code


async def join(server: Server, client: httpx.AsyncClient, name: str, role: str) -> str:
    """Make somebody a member of the first team, signed in; gives their id."""
    secret = await invite(server.client, await team_of(server), name=name, role=role)
    assert await accept(client, secret, name) == 204
    return str((await client.get("/api/session")).json()["userId"])


@pytest.mark.parametrize("change", [{"operator": True}, {"role": "ADMIN"}])
async def test_a_link_for_a_member_ends_when_the_member_rises(server: Server, change: dict[str, Any]) -> None:
    team = await team_of(server)
    async with browser(server) as eve, browser(server) as ada:
        await join(server, eve, "eve", "ADMIN")
        user = await join(server, ada, "ada", "MEMBER")
        secret = await invite(eve, f"{team}/users/{user}")
        assert (await server.client.patch(f"/api/admin/teams/{team}/users/{user}", json=change)).status_code == 200
        assert await accept(eve, secret, "ada") == 404
        # and it is not taken away from her: her own password still opens
        assert (await ada.get("/api/session")).json()["userId"] == user
    lines = (await server.client.get("/api/admin/audit?action=invite.revoked")).json()
    assert [each["target"] for each in lines] == ["ada"]


async def test_an_administrators_link_never_opens_an_operator(server: Server) -> None:
    """Whatever has made the member one: the link's maker is looked at when it is used."""
    team = await team_of(server)
    async with browser(server) as eve, browser(server) as ada:
        await join(server, eve, "eve", "ADMIN")
        user = await join(server, ada, "ada", "MEMBER")
        secret = await invite(eve, f"{team}/users/{user}")
        async with server.services.database.write() as connection:
            await set_operator(connection, user, operator=True)
        assert await accept(eve, secret, "ada") == 404


@pytest.mark.parametrize("change", [{"status": "INACTIVE"}, {"role": "MEMBER"}])
async def test_who_is_removed_does_not_come_back_by_an_invite_of_their_own(
    server: Server, change: dict[str, Any]
) -> None:
    team = await team_of(server)
    async with browser(server) as eve, browser(server) as back:
        user = await join(server, eve, "eve", "ADMIN")
        secret = await invite(eve, team, name="Eve again", role="ADMIN")
        assert (await server.client.patch(f"/api/admin/teams/{team}/users/{user}", json=change)).status_code == 200
        assert await accept(back, secret, "eve2") == 404
        listed = (await server.client.get(f"/api/admin/teams/{team}/invites")).json()
        assert [each["userName"] for each in listed if each["revokedAt"]] == ["Eve again"]


async def test_an_invite_is_good_as_long_as_its_maker_is(server: Server) -> None:
    team = await team_of(server)
    async with browser(server) as eve, browser(server) as bob:
        await join(server, eve, "eve", "ADMIN")
        assert await accept(bob, await invite(eve, team, name="Bob"), "bob") == 204


async def test_a_key_without_admin_is_no_administrators_whatever_the_role(server: Server) -> None:
    team = await team_of(server)
    plain = (await server.client.post("/api/keys", json={"scopes": ["generate", "read"]})).json()["key"]
    await server.client.post(f"/api/admin/teams/{team}/users", json={"name": "Bob"})
    bob = {"API-KEY": (await server.client.post(f"/api/admin/teams/{team}/keys", json={"user": "Bob"})).json()["key"]}
    drawn = (await server.client.post("/api/features", json=BODY, headers=bob)).json()["aiRecord"]["uuid"]
    headers = {"API-KEY": plain}
    assert (await server.client.delete(f"/api/results/{drawn}", headers=headers)).status_code == 403
    assert (await server.client.get("/api/usage", headers=headers)).json()["usage"] == []
    assert [row["user"] for row in (await server.client.get("/api/usage")).json()["usage"]] == ["Bob"]
    # what another deleted is restored by administrators only
    thrown = await server.client.post("/gallery/delete", json={"records": [drawn]}, headers=bob)
    assert thrown.status_code == 200, thrown.text
    for given, count in ((headers, 0), ({}, 1)):
        restored = await server.client.post("/gallery/restore", json={"records": [drawn]}, headers=given)
        assert restored.json() == {"restored": count}

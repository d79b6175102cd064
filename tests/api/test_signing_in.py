"""Signing in beside keys: invites, passwords, sessions, and what each of them refuses."""

import asyncio
import re
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from schnell.clock import now
from schnell.database.tables import api_keys
from servers import BODY, KEY, Server, key_for

PASSWORD = "correct horse battery"


def browser(server: Server, **headers: str) -> httpx.AsyncClient:
    """A browser without a key, with cookies of its own."""
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)


async def team_of(server: Server) -> str:
    return str((await server.client.get("/api/session")).json()["teamId"])


async def invite(server: Server, name: str = "Ada", **body: Any) -> str:
    """The secret of a new invite to the first team."""
    made = await server.client.post(f"/api/admin/teams/{await team_of(server)}/invites", json={"name": name} | body)
    assert made.status_code == 201, made.text
    link = str(made.json()["link"])
    return link.partition("#invite=")[2]


async def join(server: Server, client: httpx.AsyncClient, login: str = "ada", **body: Any) -> httpx.Response:
    secret = await invite(server, **body)
    return await client.post("/api/invites/accept", json={"invite": secret, "name": login, "password": PASSWORD})


async def test_an_invite_makes_a_member_who_signs_in_and_out(server: Server) -> None:
    async with browser(server) as ada:
        secret = await invite(server, role="MEMBER", creditLimit=500)
        shown = (await ada.post("/api/invites/show", json={"invite": secret})).json()
        assert (shown["teamName"], shown["userName"], shown["createdBy"]) == ("Default team", "Ada", "Administrator")
        body = {"invite": secret, "userName": "Ada L.", "name": "Ada@Example.org", "password": PASSWORD}
        assert (await ada.post("/api/invites/accept", json=body)).status_code == 204
        who = (await ada.get("/api/session")).json()
        assert (who["userName"], who["role"], who["scopes"]) == ("Ada L.", "MEMBER", ["generate", "read"])
        assert who["creditLimit"] == 500
        # it was for one person, once
        assert (await ada.post("/api/invites/accept", json=body)).status_code == 404
        cookie = ada.cookies["schnell_session"]
        assert (await ada.delete("/api/session")).status_code == 204
        # and a copy of the cookie is worth nothing
        assert (await ada.get("/api/session", headers={"Cookie": f"schnell_session={cookie}"})).status_code == 401
        signed = await ada.post("/api/session/password", json={"name": " ADA@example.ORG ", "password": PASSWORD})
        assert signed.status_code == 204
        assert (await ada.get("/api/session")).json()["userName"] == "Ada L."


async def test_names_and_passwords_that_are_wrong_are_told_apart_by_nobody(server: Server) -> None:
    async with browser(server) as ada:
        await join(server, ada)
        answers = [
            await ada.post("/api/session/password", json={"name": name, "password": password})
            for name, password in (("ada", "not her password"), ("nobody", PASSWORD))
        ]
    assert [each.status_code for each in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


async def test_both_cost_a_hash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    fits = server.services.passwords.fits

    async def spy(password: str, login: Any) -> bool:
        checked.append(login is None)
        return await fits(password, login)

    monkeypatch.setattr("schnell.accounts.passwords.PasswordHashes.fits", lambda _self, *given: spy(*given))
    async with browser(server) as ada:
        await join(server, ada)
        for name in ("ada", "nobody"):
            await ada.post("/api/session/password", json={"name": name, "password": "wrong password"})
    assert checked == [False, True]


async def test_who_guesses_is_slowed_down_whether_the_name_exists_or_not(serve: Any) -> None:
    async with serve(sign_in_rate_limit="3/hour") as server, browser(server) as guesser:
        for name in ("ada", "nobody", "ada"):
            refused = await guesser.post("/api/session/password", json={"name": name, "password": "wrong password"})
            assert refused.status_code == 401
        refused = await guesser.post("/api/session/password", json={"name": "x", "password": PASSWORD})
        assert (refused.status_code, refused.json()["errorCode"]) == (429, "RATE_LIMITED")
        # keys are guessed at the same door
        assert (await guesser.post("/api/session", json={"key": "wrong"})).status_code == 429
        assert int(refused.headers["Retry-After"]) > 0


async def test_success_is_not_counted_as_guessing(serve: Any) -> None:
    async with serve(sign_in_rate_limit="1/hour") as server, browser(server) as visitor:
        for _ in range(3):
            assert (await visitor.post("/api/session", json={"key": KEY})).status_code == 204


@pytest.mark.parametrize(
    ("password", "what"),
    [("short", "12-256 characters"), ("a" * 20, "five different"), ("ada-longname1", "more than the name")],
)
async def test_a_password_that_is_quickly_guessed_is_refused(server: Server, password: str, what: str) -> None:
    secret = await invite(server)
    async with browser(server) as ada:
        body = {"invite": secret, "name": "ada-longname", "password": password}
        refused = await ada.post("/api/invites/accept", json=body)
        assert (refused.status_code, refused.json()["errorCode"]) == (400, "INVALID_FIELD")
        assert what in refused.json()["message"]
        assert password not in refused.text
        # the invite is still good
        assert (await ada.post("/api/invites/show", json={"invite": secret})).status_code == 200


async def test_a_name_is_one_persons_however_it_is_written(server: Server) -> None:
    async with browser(server) as ada, browser(server) as other:
        assert (await join(server, ada, "ada")).status_code == 204
        taken = await join(server, other, " \uff21\uff24\uff21")
        assert (taken.status_code, taken.json()["errorCode"]) == (409, "CONFLICT")


async def test_a_revoked_invite_opens_nothing(server: Server) -> None:
    secret = await invite(server)
    (listed,) = (await server.client.get(f"/api/admin/teams/{await team_of(server)}/invites")).json()
    assert secret not in str(listed)
    assert (await server.client.delete(f"/api/admin/invites/{listed['id']}")).json()["revokedAt"]
    async with browser(server) as ada:
        for path, body in (("show", {}), ("accept", {"name": "ada", "password": PASSWORD})):
            assert (await ada.post(f"/api/invites/{path}", json={"invite": secret} | body)).status_code == 404


async def test_a_link_for_a_member_changes_the_password_and_ends_sessions(server: Server) -> None:
    async with browser(server) as ada, browser(server) as again:
        await join(server, ada)
        who = (await ada.get("/api/session")).json()
        made = await server.client.post(f"/api/admin/teams/{who['teamId']}/users/{who['userId']}/invites")
        secret = made.json()["link"].partition("#invite=")[2]
        body = {"invite": secret, "name": "ada", "password": "another long password"}
        assert (await again.post("/api/invites/accept", json=body)).status_code == 204
        assert (await again.get("/api/session")).json()["userId"] == who["userId"]
        assert (await ada.get("/api/session")).status_code == 401
        old = await ada.post("/api/session/password", json={"name": "ada", "password": PASSWORD})
        assert old.status_code == 401


async def test_an_administrator_of_a_team_cannot_become_its_operator(server: Server) -> None:
    """By a new password, a key in their name, their role, or by locking them out."""
    team = await team_of(server)
    who = (await server.client.get("/api/session")).json()
    async with browser(server) as eve:
        await join(server, eve, "eve", role="ADMIN")
        assert (await eve.get("/api/session")).json()["scopes"] == ["generate", "read", "admin"]
        user = f"/api/admin/teams/{team}/users/{who['userId']}"
        tries = [
            await eve.post(f"{user}/invites"),
            await eve.patch(user, json={"status": "INACTIVE"}),
            await eve.post(f"/api/admin/teams/{team}/keys", json={"user": who["userId"]}),
            await eve.patch(
                f"/api/admin/teams/{team}/users/{(await eve.get('/api/session')).json()['userId']}",
                json={"operator": True},
            ),
        ]
        (key,) = [
            each for each in (await eve.get(f"/api/admin/teams/{team}/keys")).json() if each["name"] == "first key"
        ]
        tries.append(await eve.delete(f"/api/admin/keys/{key['id']}"))
    assert [each.status_code for each in tries] == [403] * len(tries)


async def test_members_make_name_see_and_revoke_keys_of_their_own(server: Server) -> None:
    async with browser(server) as ada:
        await join(server, ada)
        made = await ada.post("/api/keys", json={"name": "laptop"})
        assert made.status_code == 201
        details = made.json()["details"]
        assert (details["userName"], details["scopes"], details["usedAt"]) == ("Ada", ["generate", "read"], None)
        used = await ada.get("/api/session", headers={"API-KEY": made.json()["key"], "Cookie": ""})
        assert used.json()["userName"] == "Ada"
        (listed,) = (await ada.get("/api/keys")).json()
        assert listed["usedAt"]
        path = f"/api/keys/{listed['id']}"
        assert (await ada.patch(path, json={"name": "desk"})).json()["name"] == "desk"
        assert (await ada.post("/api/keys", json={"scopes": ["admin"]})).status_code == 400
        assert (await ada.delete(path)).json()["revokedAt"]
        gone = await ada.get("/api/session", headers={"API-KEY": made.json()["key"], "Cookie": ""})
        assert gone.status_code == 401
        # a key of somebody else's is none
        (first,) = (await server.client.get("/api/keys")).json()
        for answer in (
            await ada.delete(f"/api/keys/{first['id']}"),
            await ada.patch(f"/api/keys/{first['id']}", json={"name": "x"}),
        ):
            assert answer.status_code == 404


async def test_an_administrators_key_belongs_to_who_it_was_made_for(server: Server) -> None:
    team = await team_of(server)
    async with browser(server) as ada, browser(server) as eve:
        await join(server, ada, "ada")
        await join(server, eve, "eve", name="Eve", role="ADMIN")
        mine = await eve.post(f"/api/admin/teams/{team}/keys", json={"name": "no name given"})
        hers = await eve.post(f"/api/admin/teams/{team}/keys", json={"user": "Ada"})
    assert (mine.json()["details"]["userName"], hers.json()["details"]["userName"]) == ("Eve", "Ada")


async def test_a_key_cannot_outgrow_itself(server: Server) -> None:
    """Nor sign its owner out, take their keys away, or become a password, a member or an invite that outlasts it."""
    team = await team_of(server)
    first = (await server.client.get("/api/keys")).json()[0]["id"]
    full = ["generate", "read", "admin", "operator"]
    for limits in (
        {"scopes": ["read"]},
        {"scopes": full, "expiresAt": "2090-01-01T00:00:00Z"},
        {"scopes": full, "rateLimit": "100/minute"},
    ):
        lent = (await server.client.post("/api/keys", json=limits)).json()["key"]
        async with browser(server) as signed_in:
            # a browser that signed in with the key is worth what the key is
            await signed_in.post("/api/session", json={"key": lent})
            for client, headers in ((server.client, {"API-KEY": lent}), (signed_in, {})):
                tries = [
                    await client.post("/api/keys", json={}, headers=headers),
                    await client.patch(f"/api/keys/{first}", json={"name": "mine"}, headers=headers),
                    await client.delete(f"/api/keys/{first}", headers=headers),
                    await client.delete("/api/sessions", headers=headers),
                    await client.delete(f"/api/sessions/{team}", headers=headers),
                    await client.put("/api/password", json={"name": "ada", "password": PASSWORD}, headers=headers),
                    await client.post(f"/api/admin/teams/{team}/keys", json={}, headers=headers),
                    await client.post(f"/api/admin/teams/{team}/users", json={"name": "Eve"}, headers=headers),
                    await client.post(f"/api/admin/teams/{team}/invites", json={"name": "Eve"}, headers=headers),
                ]
                assert [each.status_code for each in tries] == [403] * len(tries)
            page = (await signed_in.get("/account")).text
            assert 'id="new-key"' not in page
            assert 'id="new-password"' not in page
    made = await server.client.post("/api/keys", json={"rateLimit": "5/second"})
    assert made.json()["details"]["rateLimit"] == "5/second"
    assert (await server.client.put("/api/password", json={"name": "ada", "password": PASSWORD})).status_code == 204


async def test_a_password_is_changed_with_the_one_before_and_signs_other_browsers_out(server: Server) -> None:
    async with browser(server) as one, browser(server) as other:
        await join(server, one)
        await other.post("/api/session/password", json={"name": "ada", "password": PASSWORD})
        change = {"name": "ada", "password": "a new long password"}
        assert (await one.put("/api/password", json=change)).status_code == 400
        assert (await one.put("/api/password", json=change | {"current": PASSWORD})).status_code == 204
        assert (await one.get("/api/session")).status_code == 200
        assert (await other.get("/api/session")).status_code == 401


async def test_sessions_are_listed_and_ended_one_by_one_or_all_others(server: Server) -> None:
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    async with browser(server, **{"User-Agent": agent}) as one, browser(server) as other:
        await join(server, one)
        for _ in range(2):
            await other.post("/api/session/password", json={"name": "ada", "password": PASSWORD})
        listed = (await one.get("/api/sessions")).json()
        assert [each["browser"] for each in listed].count("Firefox on Linux") == 1
        assert len(listed) == 3
        assert (await one.delete(f"/api/sessions/{listed[0]['id']}")).status_code == 204
        assert (await other.get("/api/session")).status_code == 401
        assert (await one.delete("/api/sessions")).status_code == 204
        assert len((await one.get("/api/sessions")).json()) == 1
        assert (await one.delete(f"/api/sessions/{listed[1]['id']}")).status_code == 404


async def test_a_session_dies_with_its_key_and_with_its_member(server: Server) -> None:
    team = await team_of(server)
    made = (await server.client.post(f"/api/admin/teams/{team}/keys", json={})).json()
    async with browser(server) as visitor, browser(server) as ada:
        await visitor.post("/api/session", json={"key": made["key"]})
        assert (await visitor.get("/api/session")).status_code == 200
        await server.client.delete(f"/api/admin/keys/{made['details']['id']}")
        assert (await visitor.get("/api/session")).status_code == 401
        await join(server, ada)
        user = (await ada.get("/api/session")).json()["userId"]
        await server.client.patch(f"/api/admin/teams/{team}/users/{user}", json={"status": "INACTIVE"})
        assert (await ada.get("/api/session")).status_code == 401
        signed = await ada.post("/api/session/password", json={"name": "ada", "password": PASSWORD})
        assert (signed.status_code, "not active" in signed.text) == (401, True)


async def test_other_sites_can_neither_sign_in_nor_accept(server: Server) -> None:
    secret = await invite(server)
    async with browser(server, Origin="https://evil.example") as ada:
        accepted = {"invite": secret, "name": "ada", "password": PASSWORD}
        for path, body in (
            ("/api/invites/accept", accepted),
            ("/api/session/password", {"name": "ada", "password": PASSWORD}),
        ):
            assert (await ada.post(path, json=body)).status_code == 403


async def test_the_audit_log_says_who_did_what_and_what_was_before(server: Server) -> None:
    team = await team_of(server)
    async with browser(server) as eve:
        await join(server, eve, "eve", name="Eve", role="ADMIN")
        who = (await eve.get("/api/session")).json()
        user = f"/api/admin/teams/{team}/users/{who['userId']}"
        await server.client.patch(user, json={"creditLimit": 5})
        made = await eve.post("/api/keys", json={"name": "laptop"})
        await eve.delete(f"/api/keys/{made.json()['details']['id']}")
        lines = (await eve.get("/api/admin/audit")).json()
        elsewhere = await key_for(server, "others", "admin")
        assert (await server.client.get("/api/admin/audit", headers=elsewhere)).json() == []
        assert (await server.client.get(f"/api/admin/audit?team={team}", headers=elsewhere)).status_code == 404
        assert (await eve.get("/api/admin/audit?action=key&limit=1")).json() == [lines[0]]
        assert (await eve.get(f"/api/admin/audit?before={lines[1]['id']}&actor=Eve")).json()[0][
            "action"
        ] == "invite.accepted"
    assert [(each["actor"], each["via"], each["action"], each["target"]) for each in lines[:5]] == [
        ("Eve", "session", "key.revoked", lines[0]["target"]),
        ("Eve", "session", "key.made", lines[0]["target"]),
        ("Administrator", "key", "member.changed", "Eve"),
        ("Eve", "session", "invite.accepted", "Eve"),
        ("Administrator", "key", "invite.made", "Eve"),
    ]
    assert lines[2]["details"] == {"credit_limit": [100_000_000, 5]}
    assert re.fullmatch(r"laptop \(schnell_\w{6}…\)", lines[0]["target"].replace("-", "_"))
    # no secret is ever in it
    assert made.json()["key"] not in str(lines)


async def test_a_keys_limit_and_end_hold_at_once_and_can_be_taken_away(server: Server) -> None:
    key = (await server.client.post("/api/keys", json={"name": "laptop"})).json()
    path, with_it = f"/api/keys/{key['details']['id']}", {"API-KEY": key["key"]}
    changed = await server.client.patch(path, json={"rateLimit": "2/hour"})
    assert (changed.status_code, changed.json()["rateLimit"], changed.json()["name"]) == (200, "2/hour", "laptop")
    drawn = [(await server.client.post("/api/features", json=BODY, headers=with_it)).status_code for _ in range(3)]
    assert drawn == [200, 200, 429]
    # a key that has a limit, or ends, cannot take that away itself
    assert (await server.client.patch(path, json={"rateLimit": None}, headers=with_it)).status_code == 403
    await server.client.patch(path, json={"rateLimit": None, "expiresAt": "2090-01-01T00:00:00Z"})
    async with server.services.database.write() as connection:
        ended = update(api_keys).where(api_keys.c.id == key["details"]["id"])
        await connection.execute(ended.values(expires_at=now() - timedelta(seconds=1)))
    assert (await server.client.get("/api/session", headers=with_it)).status_code == 401
    again = await server.client.patch(path, json={"expiresAt": None})
    assert (again.json()["expiresAt"], again.json()["rateLimit"]) == (None, None)
    assert (await server.client.get("/api/session", headers=with_it)).status_code == 200
    past = {"expiresAt": "2020-01-01T00:00:00Z"}
    for url in ("/api/keys", f"/api/admin/teams/{key['details']['teamId']}/keys"):
        refused = await server.client.post(url, json={"name": "past"} | past)
        assert (refused.status_code, "expiresAt" in refused.text) == (400, True), refused.text
    assert (await server.client.patch(f"/api/admin/keys/{key['details']['id']}", json=past)).status_code == 400
    for wrong in (
        {"rateLimit": "often"},
        {"expiresAt": "soon"},
        {"expiresAt": 1},
        past,
        {"scopes": ["admin"]},
        {"name": ""},
    ):
        refused = await server.client.patch(path, json=wrong)
        assert (refused.status_code, next(iter(wrong)) in refused.text) == (400, True), refused.text
    await server.client.delete(path)
    assert (await server.client.patch(path, json={"name": "again"})).status_code == 409


async def test_an_administrator_changes_keys_of_the_team_but_no_operators(server: Server) -> None:
    team = await team_of(server)
    own = (await server.client.get("/api/keys")).json()[0]["id"]
    theirs = f"/api/admin/teams/{team}/keys"
    async with browser(server) as eve, browser(server) as ada:
        await join(server, eve, "eve", role="ADMIN", name="Eve")
        await join(server, ada, "ada", name="Ada")
        key = (await eve.post(theirs, json={"user": "Ada"})).json()
        path = f"/api/admin/keys/{key['details']['id']}"
        assert (await eve.patch(path, json={"rateLimit": "1/day"})).json()["rateLimit"] == "1/day"
        assert (await ada.patch(path, json={"rateLimit": None})).status_code == 403
        assert (await eve.patch(f"/api/admin/keys/{own}", json={"rateLimit": "1/day"})).status_code == 403
        lent = (await eve.post("/api/keys", json={"scopes": ["read", "admin"], "rateLimit": "9/day"})).json()
        with_it = {"API-KEY": lent["key"]}
        assert (await ada.patch(path, json={"rateLimit": None}, headers=with_it)).status_code == 403
        other = await key_for(server, "others", "generate", "read", "admin")
        assert (await ada.patch(path, json={"rateLimit": None}, headers=other)).status_code == 404


async def test_team_changes_are_the_operators(server: Server) -> None:
    team = await team_of(server)
    async with browser(server) as eve:
        await join(server, eve, "eve", role="ADMIN")
        assert (await eve.patch(f"/api/admin/teams/{team}", json={"creditLimit": 10**12})).status_code == 403
        assert (await eve.post("/api/admin/teams", json={"name": "mine"})).status_code == 403
        assert [each["id"] for each in (await eve.get("/api/admin/teams")).json()] == [team]
        assert (await eve.get("/api/admin/usage")).status_code == 200


async def test_behind_https_the_cookie_is_one_that_no_other_host_can_set(serve: Any) -> None:
    async with serve(public_url="https://schnell.test") as server, browser(server) as visitor:
        visitor.base_url = httpx.URL("https://schnell.test")
        signed_in = await visitor.post("/api/session", json={"key": KEY})
        cookie = signed_in.headers["set-cookie"]
        assert cookie.startswith("__Host-schnell_session=")
        assert ("Path=/" in cookie, "Secure" in cookie, "Domain" in cookie) == (True, True, False)
        assert (await visitor.get("/api/session")).status_code == 200
        planted = {"Cookie": f"schnell_session={visitor.cookies['__Host-schnell_session']}"}
        visitor.cookies.clear()
        assert (await visitor.get("/api/session", headers=planted)).status_code == 401


async def test_guesses_that_come_at_once_are_no_more_than_the_limit(serve: Any) -> None:
    async with serve(sign_in_rate_limit="3/hour") as server, browser(server) as guesser:
        body = {"name": "ada", "password": "wrong password"}
        answers = await asyncio.gather(*(guesser.post("/api/session/password", json=body) for _ in range(12)))
        assert sorted(each.status_code for each in answers) == [401] * 3 + [429] * 9
        # what an invite tells of names is counted, too
        accepted = {"invite": "x" * 30, "name": "ada", "password": PASSWORD}
        refused = await guesser.post("/api/invites/accept", json=accepted)
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)

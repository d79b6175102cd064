import csv
import io
from datetime import UTC, datetime

import pytest

from servers import BODY, KEY, Server


async def make_team(server: Server, **body: object) -> str:
    answer = await server.client.post("/api/admin/teams", json={"name": "acme"} | body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def make_key(server: Server, team: str, **body: object) -> dict[str, str]:
    answer = await server.client.post(f"/api/admin/teams/{team}/keys", json=body)
    assert answer.status_code == 201, answer.text
    return {"API-KEY": answer.json()["key"]}


async def test_an_operator_makes_teams_users_and_keys_over_http(server: Server) -> None:
    team = await make_team(server, creditLimit=1000, owner="Ann")
    bob = await server.client.post(f"/api/admin/teams/{team}/users", json={"name": "Bob", "creditLimit": 400})
    assert bob.json()["createdBy"] == "Administrator"
    headers = await make_key(server, team, user="Bob", name="laptop")
    first = await server.client.post("/api/features", json=BODY, headers=headers)
    assert first.json()["aiRecord"]["teamUser"]["userName"] == "Bob"
    assert (await server.client.post("/api/features", json=BODY, headers=headers)).status_code == 402
    keys = (await server.client.get(f"/api/admin/teams/{team}/keys")).json()
    assert [key["name"] for key in keys] == ["laptop"]
    assert headers["API-KEY"] not in str(keys)
    await server.client.delete(f"/api/admin/keys/{keys[0]['id']}")
    gone = await server.client.post("/api/features", json=BODY, headers=headers)
    assert (gone.status_code, gone.json()["message"]) == (401, "API Key has been deleted")


async def test_a_team_can_be_switched_off(server: Server) -> None:
    team = await make_team(server)
    headers = await make_key(server, team)
    await server.client.patch(f"/api/admin/teams/{team}", json={"status": "INACTIVE"})
    answer = await server.client.post("/api/features", json=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["message"].startswith("API Key is not active. Please contact your team administrator")


async def test_scopes_are_kept_apart(server: Server) -> None:
    team = await make_team(server)
    reader = await make_key(server, team, scopes=["read"])
    writer = await make_key(server, team, scopes=["generate"])
    assert (await server.client.post("/api/features", json=BODY, headers=reader)).status_code == 403
    assert (await server.client.get("/api/features", headers=writer)).status_code == 403
    for headers in (reader, writer):
        assert (await server.client.get("/api/admin/teams", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "a\0b"},
        {"name": 7},
        {"name": "x", "creditLimit": -1},
        {"name": "x", "creditLimit": "7"},
        {"name": "x", "budgetWindow": "year"},
        {"name": "x", "creditLmit": 7},
    ],
)
async def test_wrong_bodies_are_refused_by_name(server: Server, body: dict[str, object]) -> None:
    answer = await server.client.post("/api/admin/teams", json=body)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] in {"INVALID_FIELD", "MISSING_REQUIRED_FIELDS"}


async def test_a_name_is_used_once(server: Server) -> None:
    await make_team(server)
    answer = await server.client.post("/api/admin/teams", json={"name": "acme"})
    assert (answer.status_code, answer.json()["errorCode"]) == (409, "CONFLICT")


async def test_a_key_is_not_made_for_one_of_several_who_have_the_name(server: Server) -> None:
    team = await make_team(server)
    made = [(await server.client.post(f"/api/admin/teams/{team}/users", json={"name": "Bo"})).json() for _ in range(2)]
    refused = await server.client.post(f"/api/admin/teams/{team}/keys", json={"user": "Bo"})
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "INVALID_FIELD")
    assert all(each["userId"] in refused.json()["message"] for each in made)
    named = await server.client.post(f"/api/admin/teams/{team}/keys", json={"user": made[1]["userId"]})
    assert named.json()["details"]["userId"] == made[1]["userId"]


async def test_usage_is_told_by_day_user_and_key_as_json_and_csv(server: Server) -> None:
    await server.draw(num_outputs=2)
    server.runner.flagged = [0]
    await server.draw()
    rows = (await server.client.get("/api/usage")).json()["usage"]
    assert rows == [
        {
            "day": f"{datetime.now(UTC):%Y-%m-%d}",
            "team": "Default team",
            "user": "Administrator",
            "key": KEY[: len(rows[0]["key"])],
            "requests": 2,
            "failed": 1,
            "pictures": 2,
            "credits": 800,
            "userId": (await server.client.get("/api/session")).json()["userId"],
        }
    ]
    text = (await server.client.get("/api/usage?format=csv")).text
    assert next(csv.DictReader(io.StringIO(text)))["credits"] == "800"
    assert (await server.client.get("/api/usage?until=2020-01-01")).json() == {"usage": []}
    assert (await server.client.get("/api/admin/usage")).json()["usage"] == rows


async def test_members_see_their_own_usage_only(server: Server) -> None:
    team = await make_team(server)
    await server.client.post(f"/api/admin/teams/{team}/users", json={"name": "Bob"})
    owner, bob = await make_key(server, team), await make_key(server, team, user="Bob")
    await server.client.post("/api/features", json=BODY, headers=owner)
    assert (await server.client.get("/api/usage", headers=bob)).json()["usage"] == []
    assert len((await server.client.get("/api/usage", headers=owner)).json()["usage"]) == 1


async def test_a_browser_trades_its_key_for_a_session(server: Server) -> None:
    del server.client.headers["API-KEY"]
    assert (await server.client.post("/api/session", json={"key": "wrong"})).status_code == 401
    answer = await server.client.post("/api/session", json={"key": KEY})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert KEY not in cookie
    assert (await server.client.get("/api/session")).json()["userName"] == "Administrator"
    assert (await server.client.post("/api/features", json=BODY)).status_code == 200
    elsewhere = await server.client.post("/api/features", json=BODY, headers={"Origin": "https://evil.example"})
    assert elsewhere.status_code == 403
    await server.client.delete("/api/session")
    assert (await server.client.get("/api/session")).status_code == 401


async def test_a_forged_session_is_refused(server: Server) -> None:
    del server.client.headers["API-KEY"]
    who = "0" * 8 + "-0000-0000-0000-" + "0" * 12
    server.client.cookies.set("schnell_session", f"{who}.4000000000.{'0' * 64}")
    assert (await server.client.get("/api/session")).status_code == 401

"""Who may use what: every route of the app, asked by everyone.

A row for each route says whom it is for. The table is compared with the app's own routes: a new route without a row,
and a row without a route, are failures.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, get_args

import httpx
from fastapi import FastAPI
from sqlalchemy import update

from schnell.accounts.audit import SERVER
from schnell.accounts.identity import Member
from schnell.accounts.invites import make_invite
from schnell.accounts.keys import create_key, revoke_key
from schnell.accounts.sessions import start_session
from schnell.accounts.teams import add_member, create_team, find_member, set_operator
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import new_id, sessions
from servers import BODY, Server

Who = Literal[
    "no key",
    "read",
    "generate",
    "member",
    "team admin",
    "operator",
    "other team",
    "revoked key",
    "revoked session",
    "expired session",
]
#: open: for everybody. link: for who has a signed link, whatever their key. page, admin page, team page, operator
#: page: pages for `read`, for `admin`, for who may manage the team, and for `operator`. read, generate, admin,
#: operator: for who has that scope. Where the path names something, `team` is for who may manage its team, `own`
#: for its owner, and the rest for its team; for others it does not exist. owner: for who may all that their member
#: may, without an end or a limit. admin ended: for `admin`, of a generation that has ended: it exists for nobody.
Need = Literal[
    "open",
    "link",
    "page",
    "admin page",
    "team page",
    "operator page",
    "read",
    "generate",
    "admin",
    "operator",
    "team",
    "own",
    "owner",
    "admin ended",
]
_SCOPES: Final[Mapping[Who, frozenset[str]]] = {
    "read": frozenset({"read"}),
    "generate": frozenset({"generate"}),
    "member": frozenset({"read", "generate"}),
    "team admin": frozenset({"read", "generate", "admin"}),
    "operator": frozenset({"read", "generate", "admin", "operator"}),
    "other team": frozenset({"read", "generate", "admin"}),
}
#: The scope that a need takes, where it is not called as the need is.
_WANTED: Final[Mapping[Need, str]] = {
    "own": "read",
    "owner": "read",
    "team": "admin",
    "page": "read",
    "admin page": "admin",
    "team page": "admin",
    "operator page": "operator",
    "admin ended": "admin",
}
#: Who is in the team that paths name.
_INSIDE: Final = frozenset({"read", "generate", "member", "team admin"})
#: Who has a key that may less than its owner.
_LENT: Final = frozenset({"read", "generate"})

TABLE: Final[Mapping[str, Need]] = {
    # the native API
    "POST /api/features": "generate",
    "GET /api/features": "read",
    "GET /api/results/{record_id}": "read",
    "POST /api/results/{record_id}/cancel": "generate",
    "POST /api/results/{record_id}/rating": "generate",
    "POST /api/results/{record_id}/feedback": "generate",
    "DELETE /api/results/{record_id}": "generate",
    "GET /models": "open",
    "GET /api/loras": "read",
    "POST /api/loras": "generate",
    "POST /api/loras/inspect": "generate",
    "GET /api/loras/{name}": "read",
    "GET /api/loras/{name}/preview": "read",
    "DELETE /api/loras/{name}": "generate",
    "GET /api/lora-sources": "read",
    "PUT /api/lora-sources/{site}/token": "admin",
    "DELETE /api/lora-sources/{site}/token": "admin",
    "POST /api/verify": "open",
    "GET /api/webhooks/secret": "generate",
    "GET /mcp": "read",
    "POST /mcp": "read",
    "DELETE /mcp": "read",
    # one's own account
    "POST /api/session": "open",
    "DELETE /api/session": "open",
    "GET /api/session": "read",
    "POST /api/session/password": "open",
    "GET /api/session/openid": "open",
    "POST /api/session/openid": "open",
    "GET /api/session/openid/callback": "open",
    "POST /api/invites/show": "open",
    "POST /api/invites/accept": "open",
    "GET /api/keys": "read",
    "POST /api/keys": "owner",
    "PATCH /api/keys/{key_id}": "own",
    "DELETE /api/keys/{key_id}": "own",
    "PUT /api/password": "owner",
    "GET /api/sessions": "read",
    "DELETE /api/sessions": "owner",
    "DELETE /api/sessions/{session_id}": "own",
    "GET /api/usage": "read",
    # administration
    "GET /api/admin/teams": "admin",
    "POST /api/admin/teams": "operator",
    "PATCH /api/admin/teams/{team_id}": "operator",
    "GET /api/admin/teams/{team_id}/users": "team",
    "POST /api/admin/teams/{team_id}/users": "team",
    "PATCH /api/admin/teams/{team_id}/users/{user_id}": "team",
    "POST /api/admin/teams/{team_id}/users/{user_id}/invites": "team",
    "GET /api/admin/teams/{team_id}/keys": "team",
    "POST /api/admin/teams/{team_id}/keys": "team",
    "PATCH /api/admin/keys/{key_id}": "team",
    "DELETE /api/admin/keys/{key_id}": "team",
    "GET /api/admin/teams/{team_id}/invites": "team",
    "POST /api/admin/teams/{team_id}/invites": "team",
    "DELETE /api/admin/invites/{invite_id}": "team",
    "GET /api/admin/usage": "admin",
    "GET /api/admin/audit": "admin",
    "GET /api/admin/usage/{by}": "admin",
    "GET /api/admin/queue": "admin",
    "POST /api/admin/queue/{record_id}/cancel": "admin ended",
    "GET /api/admin/failures": "admin",
    "GET /api/admin/storage": "admin",
    "GET /api/admin/servers": "operator",
    "GET /api/admin/replicas": "operator",
    "GET /admin": "admin page",
    "GET /admin/teams": "admin page",
    "GET /admin/teams/{team_id}": "team page",
    "GET /admin/usage": "admin page",
    "GET /admin/audit": "admin page",
    "GET /admin/replicas": "operator page",
    # other services' APIs
    "POST /v1/images/generations": "generate",
    "GET /v1/webhooks/default/secret": "generate",
    "POST /v1/models/{owner}/{name:path}/predictions": "generate",
    "POST /v1/predictions": "generate",
    "GET /v1/predictions": "read",
    "GET /v1/predictions/{prediction_id}": "read",
    "POST /v1/predictions/{prediction_id}/cancel": "generate",
    "GET /v1/models": "read",
    "GET /v1/models/{owner}/{name}/versions": "read",
    "GET /v1/models/{owner}/{name}/versions/{version}": "read",
    "GET /v1/models/{model:path}": "read",
    "POST /sdapi/v1/txt2img": "generate",
    "GET /sdapi/v1/progress": "read",
    "POST /sdapi/v1/skip": "generate",
    "POST /sdapi/v1/interrupt": "generate",
    "GET /sdapi/v1/options": "read",
    "POST /sdapi/v1/options": "generate",
    "GET /sdapi/v1/sd-models": "read",
    "GET /sdapi/v1/loras": "read",
    "GET /sdapi/v1/{name}": "read",
    "POST /sdapi/v1/{name}": "generate",
    "POST /hf-inference/models/{model:path}": "generate",
    "POST /models/{model:path}": "generate",
    # operation, and checking pictures
    "GET /openapi.json": "open",
    "GET /healthz": "open",
    "GET /readyz": "open",
    "GET /metrics": "open",
    "GET /files/{key:path}": "link",
    "GET /{environment}/images/{name:picture}": "read",
    "GET /.well-known/schnell/root.pem": "open",
    "GET /.well-known/schnell/services/supportedAlgorithms": "open",
    "GET /.well-known/schnell/matches/byBinding": "open",
    "GET /.well-known/schnell/manifests/{manifest_id}": "open",
    # pages
    "GET /": "open",
    "GET /sign-in": "open",
    "GET /join": "open",
    "GET /gallery": "page",
    "GET /gallery/loras": "page",
    "GET /thumbnails/{environment}/images/{name}": "read",
    "POST /gallery/delete": "generate",
    "POST /gallery/restore": "generate",
    "POST /gallery/download": "read",
    "POST /gallery/collections": "generate",
    "DELETE /gallery/collections/{collection_id}": "generate",
    "POST /gallery/collections/{collection_id}/add": "generate",
    "POST /gallery/collections/{collection_id}/take-out": "generate",
    "POST /gallery/share": "generate",
    "POST /gallery/unshare": "generate",
    "GET /s/{secret}": "open",
    "GET /s/{secret}/picture": "open",
    "GET /train": "page",
    "POST /train": "generate",
    "GET /train/{training_id}": "read",
    "POST /train/{training_id}/cancel": "generate",
    "GET /train/{training_id}/samples/{name}": "read",
    "GET /loras": "page",
    "POST /loras": "generate",
    "GET /account": "page",
    "GET /verify": "open",
    "POST /language": "open",
    "GET /docs": "open",
    "GET /docs/openapi": "open",
    "GET /docs/search": "open",
    "GET /docs/pictures/{name}": "open",
    "GET /docs/{slug:path}.md": "open",
    "GET /docs/{slug:path}": "open",
    "GET /llms.txt": "open",
    "GET /favicon.ico": "open",
    "GET /static/{digest}/{name:path}": "open",
}
#: What is found wrong with a body is told before it is looked whose the thing is: these have to be right.
BODIES: Final[Mapping[str, Any]] = {
    "PUT /api/password": {"name": "ada", "password": "short"},
    "POST /api/results/{record_id}/rating": {"rating": 3},
    "POST /api/results/{record_id}/feedback": {"feedback": "fine"},
    "PATCH /api/keys/{key_id}": {"name": "renamed"},
    "POST /api/admin/teams/{team_id}/users": {"name": "Another"},
    "POST /api/admin/teams/{team_id}/invites": {"name": "Another"},
    "POST /gallery/collections": {"name": "Another"},
    "POST /gallery/collections/{collection_id}/add": {"keys": ["dev/images/none.webp"]},
    "POST /gallery/collections/{collection_id}/take-out": {"keys": ["dev/images/none.webp"]},
}


@dataclass(frozen=True)
class World:
    """A team with what paths name, and somebody of each kind, as the headers of their requests."""

    owner: Member
    member: Member
    headers: Mapping[Who, Mapping[str, str]]


def routes_of(app: FastAPI) -> Iterator[str]:
    """Every method and path; HEAD is answered as GET is."""

    def walk(routes: Sequence[Any]) -> Iterator[str]:
        for route in routes:
            if methods := getattr(route, "methods", None):
                yield from (f"{method} {route.path}" for method in methods if method != "HEAD")
            else:
                yield from walk(route.original_router.routes)

    return walk(app.routes)


async def build_world(connection: Connection) -> World:
    team, others, operators = [
        await create_team(connection, name, owner=f"Owner of {name}") for name in ("named", "others", "operators")
    ]
    owner, other, operator = [await find_member(connection, each.id) for each in (team, others, operators)]
    await set_operator(connection, operator.user_id, operator=True)
    member = await add_member(connection, team.id, "Member")

    async def key(of: Member, scopes: Sequence[str]) -> Mapping[str, str]:
        made = await create_key(connection, of.team_id, of.user_id, scopes=scopes)
        return {"API-KEY": made.secret}

    async def cookie(key_id: str | None = None) -> tuple[str, Mapping[str, str]]:
        who = {"method": "password", "browser": "test", "key_id": key_id}
        token = await start_session(connection, owner.team_id, owner.user_id, **who)  # type: ignore[arg-type]
        return token, {"Cookie": f"schnell_session={token}"}

    revoked = await create_key(connection, owner.team_id, owner.user_id, scopes=owner.scopes)
    _, dead = await cookie(revoked.key.id)
    await revoke_key(connection, revoked.key.id)
    _, late = await cookie()
    # of the two sessions, the one without a key has run out
    await connection.execute(
        update(sessions).where(sessions.c.key_id.is_(None)).values(expires_at=now() - timedelta(seconds=1))
    )
    headers: dict[Who, Mapping[str, str]] = {
        "no key": {},
        "revoked key": {"API-KEY": revoked.secret},
        "revoked session": dead,
        "expired session": late,
        "other team": await key(other, other.scopes),
        "read": await key(member, ["read"]),
        "generate": await key(member, ["generate"]),
        "member": await key(member, member.scopes),
        "operator": await key(await find_member(connection, operators.id), ("generate", "read", "admin", "operator")),
        "team admin": await key(owner, owner.scopes),
    }
    return World(owner, member, headers)


async def fill(server: Server, world: World, path: str) -> tuple[str, bool]:
    """The path with ids of the team's things in it, made anew for each request; and whether it names any."""
    team_id, member = world.owner.team_id, world.member
    made: dict[str, str] = {"{team_id}": team_id, "{user_id}": member.user_id}
    names = [
        name for name in ("key_id", "session_id", "invite_id", "record_id", "prediction_id") if f"{{{name}}}" in path
    ]
    async with server.services.database.write() as connection:
        if "key_id" in names:
            key = await create_key(connection, team_id, member.user_id)
            made["{key_id}"] = key.key.id
        if "session_id" in names:
            token = await start_session(connection, team_id, member.user_id, method="password", browser="test")
            found = await connection.execute(sessions.select().order_by(sessions.c.created_at.desc()))
            made["{session_id}"] = next(row.id for row in found if row.user_id == member.user_id)
            assert token
        if "invite_id" in names:
            made["{invite_id}"] = (await make_invite(connection, SERVER, team_id, "Invited")).invite.id
    if "record_id" in names:
        drawn = await server.client.post("/api/features", json=BODY, headers=world.headers["member"])
        made["{record_id}"] = drawn.json()["aiRecord"]["uuid"]
    if "{collection_id}" in path:
        answer = await server.client.post(
            "/gallery/collections", json={"name": new_id()}, headers=world.headers["team admin"]
        )
        made["{collection_id}"] = answer.json()["id"]
    if "prediction_id" in names:
        path_of_model = "/v1/models/black-forest-labs/flux-schnell/predictions"
        drawn = await server.client.post(
            path_of_model, json={"input": {"prompt": "x"}}, headers=world.headers["team admin"]
        )
        assert drawn.status_code == 201, drawn.text
        made["{prediction_id}"] = drawn.json()["id"]
    for name, value in made.items():
        path = path.replace(name, value)
    path = path.replace("{name:picture}", "2026_11_25_15_09_24_339_000001.webp")
    return path, "{team_id}" in made and any(value in path for value in made.values())


def expected(who: Who, need: Need, *, named: bool) -> set[str]:  # noqa: PLR0911 - a line for each rule
    """What may happen: `in`, `401`, `403`, `404`, `sign in`."""
    scopes = _SCOPES.get(who)
    if need == "open":
        return {"in"}
    if need == "link":
        return {"403"}
    # a page leads whom it can show nothing to sign in
    if need.endswith("page") and (scopes is None or "read" not in scopes):
        return {"sign in"}
    if scopes is None:
        return {"401"}
    if need in {"own", "owner"} and who in _LENT:
        return {"403"}
    if _WANTED.get(need, need) not in scopes:
        return {"403"}
    if need == "admin ended":
        return {"404"}
    return (
        expected_of_named(who, need)
        if named and need not in {"operator", "page", "admin page", "operator page"}
        else {"in"}
    )


def expected_of_named(who: Who, need: Need) -> set[str]:
    """What may happen where the path names something of a team, for who has the scope."""
    if need == "own":
        return {"in"} if who == "member" else {"404"}
    if need in {"team", "team page"}:
        return {"404"} if who == "other team" else {"in"}
    return {"in"} if who in _INSIDE else {"404"}


def outcome(answer: httpx.Response, *, named: bool) -> str:
    if answer.status_code in {401, 403} or (named and answer.status_code == 404):
        return str(answer.status_code)
    if answer.status_code == 303 and answer.headers["location"].startswith("/sign-in"):
        return "sign in"
    return "in" if answer.status_code < 500 else f"failed with {answer.status_code}"


async def test_every_route_is_in_the_table_and_every_row_is_a_route(server: Server) -> None:
    assert set(routes_of(server.app)) == set(TABLE)


async def test_every_route_lets_in_whom_the_table_says_and_nobody_else(server: Server) -> None:
    async with server.services.database.write() as connection:
        world = await build_world(connection)
    assert set(world.headers) == set(get_args(Who))
    del server.client.headers["API-KEY"]
    wrong = []
    for row, need in TABLE.items():
        method, _, path = row.partition(" ")
        for who, headers in world.headers.items():
            filled, named = await fill(server, world, path)
            body = None if method == "GET" else BODIES.get(row, {})
            # or a GET of /mcp would be a stream without an end
            asked = {**headers, "Accept": "application/json"}
            try:
                async with asyncio.timeout(30):
                    answer = await server.client.request(method, filled, json=body, headers=asked)
            except TimeoutError:
                wrong.append(f"{row} for {who}: no answer")
                continue
            happened, may = outcome(answer, named=named), expected(who, need, named=named)
            if happened not in may:
                wrong.append(f"{row} for {who}: {happened} ({answer.status_code} {answer.text[:100]}), not {may}")
            server.client.cookies.clear()
    assert not wrong, "\n".join(wrong)


def test_the_table_knows_every_kind_of_caller_and_refuses_each_somewhere() -> None:
    needs = set(TABLE.values())
    assert needs == set(get_args(Need))
    for who in get_args(Who):
        outcomes = [expected(who, need, named=need in {"team", "own"}) for need in needs - {"link"}]
        assert {"in"} in outcomes
        assert any(each != {"in"} for each in outcomes) or who == "operator"

"""Sign-in by an OpenID provider: a real one, run by a package, in a process of its own."""

from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select

from openid_provider import OpenIdIssuer, run_issuer
from schnell.accounts.teams import list_members
from schnell.database.tables import identities
from schnell.errors import ConfigurationError
from servers import Server, run_server

CALLBACK = "/api/session/openid/callback"
ROLES = ("staff=MEMBER", "leads=ADMIN", "infra=OPERATOR")


@pytest.fixture(scope="module")
def issuer() -> Iterator[OpenIdIssuer]:
    with run_issuer() as running:
        yield running


@pytest.fixture
def serve_with(tmp_path: Path, issuer: OpenIdIssuer) -> Any:
    """A server that knows the provider."""

    def start(**settings: Any) -> Any:
        known = {"oidc_issuer": issuer.url, "oidc_client_id": "schnell", "oidc_client_secret": "secret"}
        return run_server(tmp_path, **(known | settings))

    return start


@asynccontextmanager
async def browser(server: Server) -> Any:
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


async def come_back(client: httpx.AsyncClient, subject: str, path: str = "/api/session/openid") -> str:
    """Begin a sign-in, type who one is at the provider, and give the address that it sends the browser back to."""
    begun = await client.get(path)
    assert begun.status_code == 303, begun.text
    return await type_in(begun.headers["location"], subject)


async def type_in(address: str, subject: str) -> str:
    async with httpx.AsyncClient(timeout=30) as outside:
        typed = await outside.post(address, data={"sub": subject})
    assert typed.status_code == 302, typed.text
    address = str(typed.headers["location"])
    assert address.startswith(f"http://127.0.0.1:8000{CALLBACK}?")
    return address


async def sign_in(client: httpx.AsyncClient, subject: str, path: str = "/api/session/openid") -> httpx.Response:
    return await client.get(await come_back(client, subject, path))


async def accept(client: httpx.AsyncClient, subject: str, secret: str) -> httpx.Response:
    begun = await client.post("/api/session/openid", json={"invite": secret})
    assert begun.status_code == 200, begun.text
    # neither the provider nor a log is told
    assert secret not in begun.text + begun.headers["set-cookie"]
    return await client.get(await type_in(begun.json()["address"], subject))


async def invite(server: Server, **body: Any) -> str:
    team = (await server.client.get("/api/session")).json()["teamId"]
    made = await server.client.post(f"/api/admin/teams/{team}/invites", json={"name": "Somebody"} | body)
    return str(made.json()["link"]).partition("#invite=")[2]


def someone(issuer: OpenIdIssuer, **claims: object) -> str:
    subject = f"someone-{uuid4().hex}"
    issuer.know(subject, **claims)
    return subject


async def test_who_is_not_invited_is_a_stranger(serve_with: Any, issuer: OpenIdIssuer) -> None:
    async with serve_with() as server, browser(server) as client:
        refused = await sign_in(client, someone(issuer, name="Zoe", email="zoe@example.org"))
        assert refused.status_code == 403
        assert "zoe@example.org is not known here yet" in refused.json()["message"]
        assert "schnell_session" not in client.cookies


async def test_an_invite_makes_a_member_who_is_the_same_one_next_time(serve_with: Any, issuer: OpenIdIssuer) -> None:
    async with serve_with() as server, browser(server) as client, browser(server) as later:
        subject = someone(issuer, name="Ada")
        secret = await invite(server, role="ADMIN")
        answer = await accept(client, subject, secret)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        first = (await client.get("/api/session")).json()
        assert (first["userName"], first["role"], first["scopes"]) == ("Ada", "ADMIN", ["generate", "read", "admin"])
        again = await sign_in(later, subject, "/api/session/openid?next=/gallery")
        assert again.headers["location"] == "/gallery"
        assert (await later.get("/api/session")).json()["userId"] == first["userId"]
        assert (await later.get("/api/sessions")).json()[0]["method"] == "oidc"
        # each link is for one person
        other = await accept(later, someone(issuer), secret)
        assert other.status_code == 404


async def test_an_invite_is_not_accepted_for_another_site_nor_from_an_address(
    serve_with: Any, issuer: OpenIdIssuer
) -> None:
    async with serve_with() as server, browser(server) as client:
        secret = await invite(server)
        foreign = {"Origin": "https://evil.example"}
        begun = await client.post("/api/session/openid", json={"invite": secret}, headers=foreign)
        assert (begun.status_code, begun.headers.get("set-cookie")) == (403, None)
        assert (await sign_in(client, someone(issuer), f"/api/session/openid?invite={secret}")).status_code == 403


async def test_roles_come_from_a_claim_at_each_sign_in_both_ways(serve_with: Any, issuer: OpenIdIssuer) -> None:
    async with serve_with(oidc_roles=ROLES, oidc_team="Default team") as server, browser(server) as client:
        subject = someone(issuer, name="Ada")
        seen = []
        for groups in (["staff"], ["other", "infra"], "leads", ["staff"]):
            issuer.know(subject, name="Ada", groups=groups)
            assert (await sign_in(client, subject)).status_code == 303
            seen.append((await client.get("/api/session")).json()["scopes"][2:])
        assert seen == [[], ["admin", "operator"], ["admin"], []]
        issuer.know(subject, name="Ada", groups=["other"])
        refused = await sign_in(client, subject)
        assert (refused.status_code, "no role on this server" in refused.text) == (403, True)
        async with server.services.database.read() as connection:
            assert [each.user_name for each in await list_members(connection)].count("Ada") == 1
        log = (await server.client.get("/api/admin/audit?actor=OpenID")).json()
        assert [each["action"] for each in log] == ["member.changed"] * 3 + ["member.added"]


async def test_nobody_is_found_by_their_address(serve_with: Any, issuer: OpenIdIssuer) -> None:
    """Who controls an address at the provider must not get the account of somebody else with that address."""
    async with serve_with(oidc_team="Default team") as server, browser(server) as ada, browser(server) as eve:
        users = []
        for client in (ada, eve):
            await sign_in(client, someone(issuer, name="Ada", email="ada@example.org"))
            users.append((await client.get("/api/session")).json()["userId"])
        assert users[0] != users[1]
        async with server.services.database.read() as connection:
            rows = (await connection.execute(select(identities.c.user_id))).scalars().all()
        assert set(rows) == set(users)


async def test_an_answer_to_another_browser_is_refused(serve_with: Any, issuer: OpenIdIssuer) -> None:
    """Or a page could sign somebody in as its own author, and see what they draw (login CSRF)."""
    async with serve_with(oidc_team="Default team") as server, browser(server) as eve, browser(server) as victim:
        address = await come_back(eve, someone(issuer))
        without = await victim.get(address)
        assert (without.status_code, without.json()["errorCode"]) == (400, "SIGN_IN_FAILED")
        await victim.get("/api/session/openid")
        other_flow = await victim.get(address)
        assert other_flow.status_code == 400
        assert "schnell_session" not in victim.cookies
        assert (await eve.get(address)).status_code == 303
        # and each answer is good for once
        assert (await eve.get(address)).status_code == 400


@pytest.mark.parametrize(
    ("public_url", "name"),
    [("https://schnell.test", "__Host-schnell_openid"), ("http://schnell.test", "schnell_openid")],
)
async def test_a_sibling_host_cannot_plant_a_flow_of_its_own(
    serve_with: Any, issuer: OpenIdIssuer, public_url: str, name: str
) -> None:
    """Browsers take a `__Host-` cookie from this host alone, with https; without, no such cookie is taken at all."""
    async with serve_with(oidc_team="Default team", public_url=public_url) as server, browser(server) as client:
        client.base_url = httpx.URL(public_url)
        begun = await client.get("/api/session/openid")
        cookie = begun.headers["set-cookie"]
        assert cookie.startswith(f"{name}=")
        assert ("Path=/;" in cookie, "Domain" in cookie) == (True, False)
        assert ("Secure" in cookie) == public_url.startswith("https")
        async with httpx.AsyncClient(timeout=30) as outside:
            typed = await outside.post(begun.headers["location"], data={"sub": someone(issuer)})
        back = typed.headers["location"]
        other = "schnell_openid" if name.startswith("__Host-") else "__Host-schnell_openid"
        planted = {"Cookie": f"{other}={client.cookies[name]}"}
        kept = dict(client.cookies)
        client.cookies.clear()
        assert (await client.get(back, headers=planted)).status_code == 400
        client.cookies.update(kept)
        finished = await client.get(back)
        assert finished.status_code == 303
        # each flow is good for one sign-in
        assert any(each.startswith(f'{name}="";') for each in finished.headers.get_list("set-cookie"))


async def test_who_says_no_at_the_provider_is_told_so(serve_with: Any) -> None:
    async with serve_with() as server, browser(server) as client:
        begun = await client.get("/api/session/openid")
        state = httpx.URL(begun.headers["location"]).params["state"]
        refused = await client.get(f"{CALLBACK}?error=access_denied&state={state}")
        assert (refused.status_code, "access_denied" in refused.text) == (400, True)
        page = await client.get(f"{CALLBACK}?error=access_denied", headers={"Accept": "text/html"})
        assert "<h1>" in page.text


async def test_it_leads_to_pages_of_this_site_only(serve_with: Any, issuer: OpenIdIssuer) -> None:
    async with serve_with(oidc_team="Default team") as server, browser(server) as client:
        for elsewhere in ("https://evil.example/", "//evil.example", "/\\evil.example"):
            answer = await sign_in(client, someone(issuer), f"/api/session/openid?next={elsewhere}")
            assert answer.headers["location"] == "/"


async def test_a_provider_that_is_away_or_calls_itself_otherwise_is_refused(
    serve_with: Any, issuer: OpenIdIssuer
) -> None:
    for wrong in ("http://127.0.0.1:9", issuer.url.replace("127.0.0.1", "localhost") + "/"):
        async with serve_with(oidc_issuer=wrong) as server, browser(server) as client:
            refused = await client.get("/api/session/openid")
            assert (refused.status_code, refused.json()["errorCode"]) == (400, "SIGN_IN_FAILED")


async def test_without_a_provider_there_is_none(server: Server) -> None:
    for path in ("/api/session/openid", CALLBACK):
        assert (await server.client.get(path)).status_code == 404
    assert "Continue with" not in (await server.client.get("/sign-in")).text


@pytest.mark.parametrize(
    ("settings", "name"), [({"oidc_client_id": None}, "OIDC_CLIENT_ID"), ({"oidc_roles": ("x=BOSS",)}, "OIDC_ROLES")]
)
async def test_settings_that_cannot_be_used_are_named(serve_with: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        async with serve_with(**settings):
            pass

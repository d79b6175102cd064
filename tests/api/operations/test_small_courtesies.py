"""What clients and proxies take for granted: HEAD, pictures by their keys, other origins, addresses."""

from typing import Any

import pytest
from pydantic import ValidationError

from schnell.settings import Settings
from servers import Server

ORIGIN = "https://app.example"


async def test_head_is_get_without_a_body(server: Server) -> None:
    drawn = (await server.draw()).json()["aiRecord"]
    paths = ["/healthz", "/readyz", "/models", "/v1/models", "/docs", "/api/loras", "/openapi.json"]
    paths += [f"/api/results/{drawn['uuid']}", f"/{drawn['aiRecordDetail']['resultObject'][0]}"]
    for path in paths:
        got, head = await server.client.get(path), await server.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-length"] == got.headers["content-length"], path
    missing = await server.client.head("/v1/images/generations")
    assert (missing.status_code, missing.headers["allow"], missing.content) == (405, "POST", b"")


async def test_a_key_of_a_result_object_opens_for_its_team_alone(server: Server) -> None:
    record = (await server.draw()).json()["aiRecord"]
    key = record["aiRecordDetail"]["resultObject"][0]
    found = await server.client.get(f"/{key}")
    assert (found.status_code, found.headers["content-type"]) == (200, "image/webp")
    assert found.content == (await server.client.get(record["temporaryUrl"])).content
    assert (await server.client.get(f"/{key}", headers={"API-KEY": ""})).status_code == 401
    made = await server.client.post("/api/admin/teams", json={"name": "others"})
    other = (await server.client.post(f"/api/admin/teams/{made.json()['id']}/keys", json={"name": "k"})).json()["key"]
    assert (await server.client.get(f"/{key}", headers={"API-KEY": other})).status_code == 404
    for odd in (f"/{key}x", "/development/images/..%2f..%2fetc", f"/x/images/{key.rpartition('/')[2]}"):
        assert (await server.client.get(odd)).status_code == 404, odd
    await server.client.delete(f"/api/results/{record['uuid']}")
    assert (await server.client.get(f"/{key}")).status_code == 404


async def test_an_operator_may_set_what_stands_before_the_keys(serve: Any) -> None:
    async with serve(result_prefix="https://pictures.example/") as server:
        detail = (await server.draw()).json()["aiRecord"]["aiRecordDetail"]
    assert detail["resultObject"][0].startswith("https://pictures.example/development/images/")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_an_allowed_origin_may_send_what_its_sdk_sends(serve: Any, method: str) -> None:
    asked = "authorization,content-type,x-stainless-os,prefer,x-key,x-use-cache,api-key,idempotency-key"
    headers = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked}
    async with serve(cors_origins=(ORIGIN,)) as server:
        allowed = await server.client.options("/v1/predictions", headers=headers | {"Origin": ORIGIN})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        refused = await server.client.options("/v1/predictions", headers=headers | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers
        answer = await server.client.get("/v1/models", headers={"Origin": ORIGIN})
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert all(name in exposed for name in ("x-schnell-cost", "x-request-id", "retry-after", "location"))


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert Settings(host="::1", port=8213).base_url == "http://[::1]:8213"
    assert Settings(host="::", port=80).base_url == "http://127.0.0.1:80"


@pytest.mark.parametrize("url", ["https://x.org/schnell", "https://x.org?a=b", "x.org", "ftp://x.org", "https://"])
def test_a_public_url_with_more_than_a_host_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match=r"path prefix|must be http"):
        Settings(public_url=url)


def test_a_public_url_may_end_in_a_slash() -> None:
    assert Settings(public_url="https://x.org:8443/").base_url == "https://x.org:8443"

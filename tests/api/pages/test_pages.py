import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from mini_loras import lora_bytes
from servers import Server
from tls_server import run_tls_server

#: What stands between the tags of a script or style that a page holds itself; JSON runs nowhere.
_INLINE = re.compile(r"<(script|style)(?![^>]*( src=|application/json))[^>]*>(.*?)</\1>", re.DOTALL)


async def test_pages_allow_no_script_and_no_style_but_this_servers_own(server: Server) -> None:
    for path in ("/", "/gallery", "/loras", "/account", "/docs", "/docs/openapi", "/sign-in"):
        answer = await server.client.get(path)
        assert answer.status_code == 200, path
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        for kind in ("script-src", "style-src"):
            assert re.fullmatch(r"'self'( 'sha256-[\w+/]{43}=')+", policy[kind]), path
        for kind, _, text in _INLINE.findall(answer.text):
            digest = b64encode(sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy[f"{kind}-src"], path
        assert " style=" not in answer.text
        assert " onclick=" not in answer.text


async def test_the_playground_is_painted_without_asking_for_anything_but_its_font(server: Server) -> None:
    page = (await server.client.get("/")).text
    assert 'rel="stylesheet"' not in page
    assert "<script src=" not in page
    assert [kind for kind, _, _ in _INLINE.findall(page)] == ["style", "script"]
    # a file that a page holds finds others from there, too
    style = _INLINE.findall(page)[0][2]
    for address in re.findall(r'url\("([^"]+)"\)', style):
        assert (await server.client.get(address)).status_code == 200, address


@pytest.mark.parametrize(
    ("cookie", "told"), [("dark", ' data-theme="dark"'), ("light", ' data-theme="light"'), ('"><b', "")]
)
async def test_a_page_comes_in_the_theme_that_was_chosen(server: Server, cookie: str, told: str) -> None:
    page = await server.client.get("/docs", headers={"Cookie": f"schnell_theme={cookie}"})
    assert f'<html lang="en"{told}>' in page.text


@pytest.mark.parametrize("path", ["/gallery", "/account", "/loras"])
async def test_a_stranger_is_led_to_the_sign_in_page_and_back(server: Server, path: str) -> None:
    answer = await server.client.get(path, headers={"API-KEY": ""})
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/sign-in?next=%2F{path[1:]}"


@pytest.mark.parametrize("next_page", ["https://evil.example/", "//evil.example", "/\\evil.example"])
async def test_the_sign_in_page_leads_to_no_other_site(server: Server, next_page: str) -> None:
    answer = await server.client.get("/sign-in", params={"next": next_page})
    assert 'data-next="/"' in answer.text


async def test_static_files_are_kept_for_good_under_their_digest_only(server: Server) -> None:
    page = (await server.client.get("/docs")).text
    address = page.split('rel="stylesheet" href="')[1].split('"')[0]
    assert "immutable" in (await server.client.get(address)).headers["cache-control"]
    stale = "/static/0/" + address.split("/", 3)[3]
    assert (await server.client.get(stale)).headers["cache-control"] == "no-cache"
    assert (await server.client.get("/static/0/%2e%2e/site.py")).status_code == 404


async def test_a_prompt_is_shown_as_text(server: Server) -> None:
    await server.draw(prompt="<script>alert(1)</script>'\"")
    page = (await server.client.get("/gallery")).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


async def test_the_gallery_searches_words_in_any_case_and_order(server: Server) -> None:
    await server.draw(prompt="A red Apple")
    await server.draw(prompt="100% pear")
    for words, count in (("apple RED", 1), ("%", 1), ("melon", 0), ("", 2)):
        page = await server.client.get("/gallery", params={"q": words}, headers={"HX-Request": "true"})
        assert page.text.count("<figure") == count, words


async def test_an_error_is_a_page_for_a_browser_and_json_for_a_program(server: Server) -> None:
    for path in ("/nothing", "/docs/nothing", "/files/nothing"):
        program = await server.client.get(path)
        browser = await server.client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert browser.status_code == program.status_code
        assert program.headers["content-type"] == "application/json"
        assert browser.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in browser.headers["content-security-policy"]
        assert program.json()["errorCode"] not in browser.text
        assert 'href="/">To the playground</a>' in browser.text
    assert (await server.client.post("/nothing", headers={"Accept": "text/html"})).json()["errorCode"] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/admin/usage?by=foo", "/admin/teams/abc", "/gallery?cursor=abc"])
async def test_a_wrong_value_in_an_address_is_a_page_for_a_browser(server: Server, path: str) -> None:
    browser = await server.client.get(path, headers={"Accept": "text/html"})
    program = await server.client.get(path)
    assert (browser.status_code, program.status_code) == (400, 400)
    # its first letter is a capital there
    assert str(escape(program.json()["message"][1:])) in browser.text
    assert "It did not work" in browser.text


async def test_the_library_page_offers_only_what_the_key_may_do(server: Server) -> None:
    assert 'id="open-add"' in (await server.client.get("/loras")).text
    made = await server.client.post(
        f"/api/admin/teams/{(await server.client.get('/api/session')).json()['teamId']}/keys",
        json={"name": "looker", "scopes": ["read"]},
    )
    looker = {"API-KEY": made.json()["key"]}
    page = await server.client.get("/loras", headers=looker)
    assert 'id="open-add"' not in page.text
    assert (await server.client.post("/loras", json={"source": "a/b"}, headers=looker)).status_code == 403


async def test_fetching_a_lora_tells_how_far_it_is_and_draws_its_preview(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    data = lora_bytes(3, rank=64)
    with run_tls_server() as site:
        site.serve("/teal.safetensors", data)
        settings = {
            "lora_private_networks": ("127.0.0.0/8", "::1/128"),
            "lora_ca_file": str(site.write_authority(tmp_path / "authority.pem")),
        }
        async with serve(**settings) as server:
            answer = await server.client.post("/loras", json={"source": site.url("/teal.safetensors")})
            events = re.findall(r"event: (\w+)\r\ndata: (.*)\r", answer.text)
            refused = await server.client.post("/loras", json={"source": site.url("/teal.safetensors")})
            missing = await server.client.post("/loras", json={"source": site.url("/none.safetensors")})
            async with asyncio.timeout(20):
                while (await server.client.get("/api/loras/teal/preview")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            empty = await server.client.post("/loras", json={})
    progress = [json.loads(body) for name, body in events if name == "progress"]
    assert progress[-1] == {"received": len(data), "total": len(data)}
    assert events[-1] == ("done", '{"lora": {"name": "teal"}}')
    assert empty.json()["errorCode"] == "MISSING_REQUIRED_FIELDS"
    assert '"errorCode": "CONFLICT"' in refused.text
    assert '"errorCode": "LORA_DOWNLOAD_FAILED"' in missing.text

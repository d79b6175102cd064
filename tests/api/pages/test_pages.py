import pytest

from servers import Server


async def test_pages_allow_no_inline_script_and_no_inline_style(server: Server) -> None:
    for path in ("/", "/gallery", "/loras", "/account", "/docs", "/docs/openapi", "/sign-in"):
        answer = await server.client.get(path)
        assert answer.status_code == 200, path
        assert "script-src 'self';" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert " style=" not in answer.text
        assert " onclick=" not in answer.text


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
    page = (await server.client.get("/")).text
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

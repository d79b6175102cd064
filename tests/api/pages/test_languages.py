"""Pages in the visitor's language; the API in English."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mini_loras import lora_bytes
from page_texts import PSEUDO, pseudo_languages, unbracketed
from schnell.clock import now
from schnell.web.pages.playground import EXAMPLES
from servers import Server, run_server

_GERMAN = {"Accept-Language": "de-DE,de;q=0.9,en;q=0.8", "Accept": "text/html"}
_PAGES = (
    *("/", "/gallery", "/gallery?q=nobody+drew+this", "/loras", "/train", "/verify", "/account", "/join", "/sign-in"),
    *(
        "/admin",
        "/admin/teams",
        "/admin/audit",
        "/admin/replicas",
        "/docs",
        "/docs/openapi",
        "/docs/search",
        "/docs/search?q=LoRA",
    ),
    *(f"/admin/usage?by={by}" for by in ("day", "team", "user", "model", "lora")),
    "/nothing-here",
)
_NAMES = {
    *("generate", "read", "admin", "operator", "first key", "UTC", "KiB", "GiB", "teal.safetensors"),
    *("schnell-mini", "black-forest-labs/flux-schnell-lora", "a FLUX.1 model of width", "paint"),
    "http://127.0.0.1:8000/api/features",
}


@pytest.mark.parametrize("path", ["/", "/gallery", "/account", "/docs", "/nothing-here"])
async def test_a_page_is_in_the_language_that_the_browser_asks_for(server: Server, path: str) -> None:
    german = await server.client.get(path, headers=_GERMAN)
    english = await server.client.get(path, headers={"Accept": "text/html"})
    assert '<html lang="de">' in german.text
    assert "Zum Inhalt" in german.text
    assert german.headers["content-language"] == "de"
    assert '<html lang="en">' in english.text
    assert english.headers["content-language"] == "en"
    for answer in (german, english):
        assert {"Accept-Language", "Cookie"} <= set(answer.headers["vary"].split(", "))


async def test_a_number_that_stands_in_a_template_is_written_as_in_the_language(server: Server) -> None:
    # one language's page after the other's, since they share the compiled template
    for headers, number in ((None, "1,601"), (_GERMAN, "1.601"), (None, "1,601")):
        page = await server.client.get("/", headers=headers or {"Accept": "text/html"})
        assert f"one of {number} icons" in page.text or f"{number} Symbolen" in page.text


async def test_the_switch_keeps_the_choice_and_leads_back(server: Server) -> None:
    page = await server.client.get("/verify?x=1", headers=_GERMAN)
    assert '<input type="hidden" name="next" value="/verify?x=1">' in page.text
    chosen = await server.client.post("/language", data={"language": "en", "next": "/verify?x=1"})
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/verify?x=1")
    cookie = chosen.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "max-age=31536000" in cookie
    again = await server.client.get("/verify", headers=_GERMAN)
    assert '<html lang="en">' in again.text


@pytest.mark.parametrize("next_page", ["https://evil.example/", "//evil.example"])
async def test_the_switch_leads_to_no_other_site(server: Server, next_page: str) -> None:
    answer = await server.client.post("/language", data={"language": "de", "next": next_page})
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("form", [{"language": "tlh"}, {"language": "de\0"}, {}])
async def test_a_language_that_is_not_there_is_refused(server: Server, form: dict[str, str]) -> None:
    answer = await server.client.post("/language", data=form)
    assert answer.status_code in {400, 422}
    assert "language" in answer.json()["message"]
    assert "set-cookie" not in answer.headers


async def test_the_api_answers_in_english_whatever_is_asked_for(server: Server) -> None:
    headers = {"Accept-Language": "de"}
    english = await server.client.post("/api/features", json={})
    german = await server.client.post("/api/features", json={}, headers=headers)
    assert german.json()["message"] == english.json()["message"]
    assert "content-language" not in german.headers


async def test_scripts_find_their_texts_on_the_page(server: Server) -> None:
    german = await server.client.get("/gallery", headers=_GERMAN)
    english = await server.client.get("/gallery")
    assert '"Undo": "R\\u00fcckg\\u00e4ngig"' in german.text
    # of other pages' scripts it has none
    assert "Zum Prompt" not in german.text
    assert 'id="texts"' not in english.text


@pytest.fixture
def serve_pseudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """A server whose pages can be read with every text of the catalogue in brackets."""
    monkeypatch.setattr("schnell.web.pages.load_languages", pseudo_languages)
    return lambda **settings: run_server(tmp_path, **settings)


async def _furnish(server: Server) -> tuple[str, set[str]]:
    """Something of everything that pages show; the path of a public page, and the words that are data."""
    client = server.client
    await server.draw(prompt="prompt", num_outputs=2, lora_weights="flat")
    await client.post("/api/loras", files={"file": ("teal.safetensors", lora_bytes(3))}, data={"licence": "Apache-2.0"})
    session = (await client.get("/api/session")).json()
    team = f"/api/admin/teams/{session['teamId']}"
    await client.post(f"{team}/users", json={"name": "Another"})
    await client.post(f"{team}/invites", json={"name": "Invited"})
    made = (await client.post("/api/keys", json={"name": "notes", "scopes": ["read"]})).json()
    await client.delete(f"/api/keys/{made['details']['id']}")
    await client.post("/gallery/collections", json={"name": "Chosen"})
    page = (await client.get("/gallery")).text
    key = page.split('data-key="')[1].split('"')[0]
    shared = (await client.post("/gallery/share", json={"key": key})).json()["path"]
    data: set[str] = {
        made["details"]["prefix"],
        "prompt",
        "teal",
        "Another",
        "Invited",
        "notes",
        "Chosen",
        session["teamName"],
        session["userName"],
        session["userId"],
    }
    return shared, data | _names_of(key)


def _names_of(key: str) -> set[str]:
    """What pages show that is no text of theirs: prompts, names of models, LoRAs and keys, scopes, and times."""
    pseudo = pseudo_languages().find(PSEUDO)
    assert pseudo is not None
    days = {pseudo.day(now() - timedelta(days=back)) for back in range(31)}
    loras = {"black-light", "black light", "blueprint", "flat style", "flat", "line art", "line", "pixel art", "pixel"}
    return _NAMES | loras | days | {str(each["prompt"]) for each in EXAMPLES} | {key, key.rpartition("/")[0]}


async def test_every_text_of_every_page_comes_from_the_catalogue(serve_pseudo: Callable[..., Any]) -> None:
    async with serve_pseudo() as server:
        shared, data = await _furnish(server)
        team = (await server.client.get("/api/session")).json()["teamId"]
        wrong: dict[str, list[str]] = {}
        for path in (*_PAGES, f"/admin/teams/{team}", shared):
            answer = await server.client.get(path, headers={"Accept-Language": PSEUDO, "Accept": "text/html"})
            assert f'<html lang="{PSEUDO}">' in answer.text, path
            if found := unbracketed(answer.text, data):
                wrong[path] = found
        for path in ("/", "/verify", "/sign-in"):
            answer = await server.client.get(path, headers={"Accept-Language": PSEUDO, "API-KEY": ""})
            if found := unbracketed(answer.text, data):
                wrong[f"{path}, signed out"] = found
    assert wrong == {}

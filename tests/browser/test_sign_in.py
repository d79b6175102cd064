"""A link with a key signs a visitor in who is nobody yet, and asks one who is somebody already."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Page, expect

from server_process import ServerProcess
from servers import KEY

WHO = "fetch('/api/session').then(answer => answer.json()).then(found => found.teamName)"


@pytest.fixture
def other(site: ServerProcess) -> tuple[str, str]:
    """The name of another team, and its key."""
    with httpx.Client(base_url=site.url, headers={"API-KEY": KEY}, timeout=30) as client:
        team = client.post("/api/admin/teams", json={"name": f"team {uuid4().hex}"}).json()
        made = client.post(f"/api/admin/teams/{team['id']}/keys", json={"scopes": ["generate", "read"]})
    return team["name"], made.json()["key"]


def follow(page: Page, link: str) -> None:
    """Click on a link that stands on another site."""
    page.goto(f"data:text/html,<a id=a href='{link.replace('#', '%23')}'>x</a>")
    page.click("#a")
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_link_asks_before_it_replaces_a_session(
    visit: Callable[..., Any], site: ServerProcess, other: tuple[str, str], width: int, scheme: str
) -> None:
    name, key = other
    with visit(width, scheme) as visitor:
        page = visitor.page
        before = page.evaluate(WHO)
        follow(page, f"{site.url}/sign-in#key={key}")
        expect(page.locator("#key-problem")).to_contain_text("press Sign in to use that one instead")
        assert page.evaluate(WHO) == before != name
        assert key not in page.url
        if folder := os.environ.get("SHOTS"):
            page.screenshot(path=str(Path(folder) / f"sign-in-{scheme}-{width}.png"))
        page.click("#sign-in button[type=submit]")
        page.wait_for_url(f"{site.url}/?*")
        assert page.evaluate(WHO) == name
        assert visitor.faults == []

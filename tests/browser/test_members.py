"""A person's ways in: invited, signed in, a key of their own, signed out; and through a real OpenID provider."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from browser.conftest import Visit, Visitor
from counts import SOAK
from openid_provider import OpenIdIssuer, run_issuer
from server_process import ServerProcess, serving
from servers import KEY

PASSWORD = "correct horse battery"
LOOKS = [("light", 1280), ("dark", 390), *([("dark", 1280), ("light", 390)] if SOAK else [])]
Enter = Callable[..., AbstractContextManager[Visitor]]


@pytest.fixture(scope="module")
def issuer() -> Iterator[OpenIdIssuer]:
    with run_issuer() as running:
        yield running


@pytest.fixture(scope="module")
def team_site(tmp_path_factory: pytest.TempPathFactory, issuer: OpenIdIssuer) -> Iterator[ServerProcess]:
    """A server of its own, whose people may also sign in with the provider."""
    provider = {
        "oidc_issuer": issuer.url,
        "oidc_client_id": "schnell",
        "oidc_client_secret": "secret",
        "oidc_name": "Example login",
    }
    roles = {"oidc_roles": "leads=ADMIN,staff=MEMBER", "oidc_team": "Default team"}
    with serving(tmp_path_factory.mktemp("team"), 0.0, **provider, **roles) as server:
        yield server


@pytest.fixture
def enter(browser: Browser, team_site: ServerProcess) -> Enter:
    @contextmanager
    def start(color_scheme: Any = "light", width: int = 1280) -> Iterator[Visitor]:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=color_scheme)
        yield Visitor(context.new_page(), team_site.url)
        context.close()

    return start


def check(page: Page, name: str, look: tuple[str, int]) -> None:
    """No problem of accessibility, nothing too wide; a picture of it where SHOTS names a folder."""
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}-{look[0]}-{look[1]}.png"), full_page=True)
    found = Axe().run(page)
    assert found.violations_count == 0, f"{name}\n{found.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name


def press(page: Page, name: str, key: str = "Enter") -> None:
    """Go to a control with Tab alone, and press a key there."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(e => e.getAttribute('aria-label') || e.id || e.textContent.trim())(document.activeElement)"
        )
        if name == focused:
            page.keyboard.press(key)
            return
    raise AssertionError(f"{name} is not reached with Tab")


def who(page: Page) -> str:
    return str(page.evaluate("fetch('/api/session').then(a => a.json()).then(found => found.userName ?? '')"))


@pytest.mark.parametrize("look", LOOKS)
def test_invited_signed_in_a_key_of_ones_own_signed_out_with_the_keyboard_alone(  # noqa: PLR0915 - a person's way
    enter: Enter, team_site: ServerProcess, look: tuple[str, int]
) -> None:
    login = f"ada-{uuid4().hex[:8]}@example.org"
    with enter(*look) as owner:
        page = owner.page
        page.goto(f"{owner.url}/sign-in#key={KEY}")
        page.wait_for_url(f"{owner.url}/")
        owner.open("/account")
        page.fill("#invite-name", "Ada")
        press(page, "invite-role", "Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#invite-link")).to_contain_text("/join#invite=")
        expect(page.locator("#invites")).to_contain_text("Ada")
        expect(page.locator("#invite-link")).to_be_focused()
        check(page, "account-administrator", look)
        link = str(page.locator("#invite-link").text_content())
        assert owner.faults == []
    with enter(*look) as ada:
        page = ada.page
        page.goto(link)
        expect(page.locator("#join-what")).to_contain_text("Administrator invites you to the team Default team")
        expect(page.locator("#login")).to_be_focused()
        check(page, "join", look)
        page.keyboard.type(login)
        page.keyboard.press("Tab")
        page.keyboard.type("short")
        page.keyboard.press("Enter")
        expect(page.locator("#password:invalid")).to_be_focused()
        page.keyboard.press("Control+A")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{ada.url}/")
        assert who(page) == "Ada"
        ada.open("/account")
        # what she is no administrator of is not there
        assert page.locator("#team").count() == 0
        page.focus("#key-name")
        page.keyboard.type("laptop")
        page.keyboard.press("Enter")
        expect(page.locator("#secret")).to_contain_text("schnell_")
        expect(page.locator("#made-for")).to_have_text("Ada")
        expect(page.locator("#own-keys")).to_contain_text("laptop")
        expect(page.locator("#own-keys")).to_contain_text("never")
        secret = str(page.locator("#secret").text_content())
        owned = httpx.get(f"{team_site.url}/api/session", headers={"API-KEY": secret}, timeout=30).json()
        assert owned["userName"] == "Ada"
        check(page, "account-member", look)
        page.focus("#copy-secret")
        press(page, "Change laptop")
        page.keyboard.type("desk")
        page.keyboard.press("Tab")
        page.keyboard.type("60/minute")
        page.keyboard.press("Enter")
        expect(page.locator("#own-keys")).to_contain_text("desk")
        expect(page.locator("#own-keys")).to_contain_text("60/minute")
        expect(page.get_by_label("Change desk")).to_be_focused()
        expect(page.locator("#own-keys")).not_to_contain_text("never")
        press(page, "Revoke desk")
        expect(page.locator("#question")).to_be_visible()
        press(page, "question-yes")
        expect(page.locator("#own-keys")).to_contain_text("revoked")
        assert page.evaluate("document.activeElement !== document.body")
        page.focus("main")
        page.evaluate("document.querySelector('.who').focus()")
        press(page, "sign-out")
        page.wait_for_url(f"{ada.url}/")
        assert who(page) == ""
        ada.open("/sign-in?next=/account")
        check(page, "sign-in", look)
        page.focus("#login")
        page.keyboard.type(login.upper())
        page.keyboard.press("Tab")
        page.keyboard.type("not her password")
        page.keyboard.press("Enter")
        expect(page.locator("#password-problem")).to_contain_text("do not belong together")
        expect(page.locator("#password")).to_be_focused()
        check(page, "sign-in-refused", look)
        page.keyboard.press("Control+A")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.locator("#password-problem")).to_have_text("")
        page.wait_for_url(f"{ada.url}/account")
        assert who(page) == "Ada"
        assert ada.faults == []


def test_a_key_that_is_being_changed_stays_open_when_another_is_saved(visit: Visit, site: ServerProcess) -> None:
    for name in ("kept open", "saved"):
        httpx.post(f"{site.url}/api/keys", json={"name": name}, headers={"API-KEY": KEY}).raise_for_status()
    with visit() as admin:
        page = admin.open("/account")
        page.get_by_label("Change kept open").click()
        page.get_by_label("Rate limit of kept open").fill("5/hour")
        page.get_by_label("Change saved").click()
        page.get_by_label("New name of saved").fill("stored")
        page.get_by_label("Change saved").click()
        expect(page.get_by_label("Change stored")).to_be_focused()
        expect(page.get_by_label("New name of stored")).to_be_hidden()
        expect(page.get_by_label("Rate limit of kept open")).to_have_value("5/hour")
        page.get_by_label("Change kept open").click()
        expect(page.locator("#own-keys")).to_contain_text("5/hour")
        assert admin.faults == []


def test_through_a_real_openid_provider_in_and_out_again(enter: Enter, issuer: OpenIdIssuer) -> None:
    subject = f"lead-{uuid4().hex}"
    issuer.know(subject, name="Grace", email="grace@example.org", groups=["leads"])
    with enter() as visitor:
        page = visitor.open("/gallery")
        assert "/sign-in" in page.url
        page.click("#openid")
        page.fill("[name=sub]", subject)
        page.click("text=Authorize >> nth=-1")
        page.wait_for_url(f"{visitor.url}/gallery")
        assert who(page) == "Grace"
        visitor.open("/account")
        expect(page.locator("#sign-ins")).to_contain_text("OpenID")
        # the claim made her an administrator
        expect(page.locator("#team h2")).to_have_text("Team Default team")
        cookie = next(each for each in page.context.cookies() if each.get("name") == "schnell_session")
        page.click("#sign-out")
        page.wait_for_url(f"{visitor.url}/")
        page.context.add_cookies([{"name": "schnell_session", "value": str(cookie.get("value")), "url": visitor.url}])
        assert who(page) == ""
        assert visitor.faults == []


def test_who_has_no_role_at_the_provider_is_told_so_on_a_page(enter: Enter, issuer: OpenIdIssuer) -> None:
    subject = f"stranger-{uuid4().hex}"
    issuer.know(subject, email="mallory@example.org", groups=["others"])
    with enter() as visitor:
        page = visitor.open("/sign-in")
        page.click("#openid")
        page.fill("[name=sub]", subject)
        page.click("text=Authorize >> nth=-1")
        expect(page.locator("main")).to_contain_text("allory@example.org has no role on this server")


def test_a_link_that_was_used_or_cut_says_so(enter: Enter) -> None:
    with enter() as visitor:
        for invite, said in (("x" * 43, "was used, revoked, or has run out"), ("x", "This link is not whole")):
            visitor.page.goto("about:blank")
            visitor.page.goto(f"{visitor.url}/join#invite={invite}")
            expect(visitor.page.locator("#join-what")).to_contain_text(said)
            expect(visitor.page.locator("#join-form")).to_be_hidden()

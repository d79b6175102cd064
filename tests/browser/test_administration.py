"""An administrator's way through the pages, and the member's whom it is about."""

from collections.abc import ItemsView
from dataclasses import dataclass

import httpx
import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Visit, Visitor, settle
from server_process import ServerProcess, serving
from servers import BODY, KEY

ADMIN = {"API-KEY": KEY}


@dataclass
class Member:
    name: str
    key: str
    team: str


def add_member(site: ServerProcess, name: str, **key: object) -> Member:
    with httpx.Client(base_url=site.url, headers=ADMIN) as client:
        team = client.get("/api/session").json()["teamId"]
        client.post(f"/api/admin/teams/{team}/users", json={"name": name}).raise_for_status()
        made = client.post(f"/api/admin/teams/{team}/keys", json={"user": name, "name": "tests", **key})
        return Member(name, made.json()["key"], team)


def set_limit(visitor: Visitor, member: Member, limit: int) -> None:
    page = visitor.open(f"/admin/teams/{member.team}")
    page.get_by_label(f"Credit limit of {member.name}").fill(str(limit))
    page.get_by_role("button", name=f"Save {member.name}").click()
    expect(page.locator("#toast")).to_have_text("Saved")
    expect(page.get_by_label(f"Credit limit of {member.name}")).to_have_value(str(limit))


def credit_limits(site: ServerProcess, team: str) -> ItemsView[str, int]:
    """Credit limits of a team's members, by name."""
    users = httpx.get(f"{site.url}/api/admin/teams/{team}/users", headers=ADMIN).json()
    return {each["userName"]: each["creditLimit"] for each in users}.items()


def save(page: Page, what: str) -> None:
    """Press a row's button, and wait until the API has answered: the page itself is renewed only after that."""
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        page.get_by_role("button", name=f"Save {what}").click()


def run(visitor: Visitor) -> Page:
    page = visitor.open("/?prompt=a+limit&megapixels=0.25")
    page.click("#run")
    return page


def test_a_limit_is_met_raised_counted_and_written_down(visit: Visit, site: ServerProcess) -> None:
    member = add_member(site, "Limited Ada")
    with visit() as admin, visit(key=member.key) as ada:
        set_limit(admin, member, 500)
        settle(run(ada))
        expect(run(ada).locator(".frame-problem")).to_contain_text("credits")
        set_limit(admin, member, 5000)
        settle(run(ada))
        used = admin.open("/admin/usage?by=user").locator("tr", has_text=member.name)
        # two pictures were drawn, and the refused request was none
        expect(used).to_contain_text("800")
        expect(used.locator("td").nth(1)).to_have_text("2")
        rows = admin.open("/admin/audit?action=member").locator("tbody tr", has_text=member.name)
        expect(rows.first).to_contain_text("500 → 5000")
        expect(rows.first).to_contain_text("Administrator")
        expect(rows.first).to_contain_text("member.changed")
        assert admin.faults == []


def test_a_key_is_revoked_where_its_owner_is_shown(visit: Visit, site: ServerProcess) -> None:
    member = add_member(site, "Leaving Bob")
    with visit() as admin:
        page = admin.open(f"/admin/teams/{member.team}")
        page.get_by_role("button", name=f"Revoke tests of {member.name}").click()
        page.click("#question-yes")
        expect(page.locator("tr.gone", has_text=member.name)).to_contain_text("revoked")
    assert httpx.get(f"{site.url}/api/session", headers={"API-KEY": member.key}).status_code == 401


def test_a_keys_limit_and_end_are_changed_where_its_owner_is_shown(visit: Visit, site: ServerProcess) -> None:
    member = add_member(site, "Busy Cleo", expiresAt="2031-01-31T12:30:00Z")
    with visit() as admin:
        page = admin.open(f"/admin/teams/{member.team}")
        limit = page.get_by_label(f"Rate limit of tests of {member.name}")
        end = page.get_by_label(f"Day on which tests of {member.name} ends (UTC)")
        expect(end).to_have_value("2031-01-31")
        limit.fill("7/hour")
        save(page, f"tests of {member.name}")
        expect(page.locator("#toast")).to_have_text("Saved")
        expect(limit).to_have_value("7/hour")
        shown = httpx.get(f"{site.url}/api/keys", headers={"API-KEY": member.key}).json()[0]
        # the hour of an end that nobody touched stays
        assert (shown["rateLimit"], shown["expiresAt"][:16]) == ("7/hour", "2031-01-31T12:30")
        limit.fill("")
        end.fill("")
        save(page, f"tests of {member.name}")
        shown = httpx.get(f"{site.url}/api/keys", headers={"API-KEY": member.key}).json()[0]
        assert (shown["rateLimit"], shown["expiresAt"]) == (None, None)
        limit.fill("often")
        save(page, f"tests of {member.name}")
        expect(page.locator("#problem")).to_contain_text("rateLimit")
        rows = admin.open("/admin/audit?action=key.changed").locator("tbody tr")
        expect(rows.first).to_contain_text("7/hour → ")
        assert admin.faults == []


def test_what_is_typed_while_another_row_is_saved_stays(visit: Visit, site: ServerProcess) -> None:
    saved, typed = add_member(site, "Saved Dora"), add_member(site, "Typed Emil")
    with visit() as admin:
        page = admin.open(f"/admin/teams/{saved.team}")
        limit, other = (page.get_by_label(f"Credit limit of {each.name}") for each in (saved, typed))
        role = page.get_by_label(f"Role of {typed.name}")
        other.fill("70")
        role.select_option("ADMIN")
        limit.fill("50")
        old = limit.element_handle()
        save(page, saved.name)
        # typed after the saving began, before the page was renewed or just after it
        limit.fill("51")
        limit.focus()
        page.wait_for_function("element => !element.isConnected", arg=old)
        expect(limit).to_have_value("51")
        expect(limit).to_be_focused()
        expect(other).to_have_value("70")
        expect(role).to_have_value("ADMIN")
        save(page, typed.name)
        assert credit_limits(site, typed.team) >= {"Saved Dora": 50, "Typed Emil": 70}.items()
        assert admin.faults == []


def test_an_invite_is_made_and_taken_back(visit: Visit, site: ServerProcess) -> None:
    team = httpx.get(f"{site.url}/api/session", headers=ADMIN).json()["teamId"]
    with visit() as admin:
        page = admin.open(f"/admin/teams/{team}")
        page.fill("#invite-name", "Invited Zoe")
        page.click("#invite button")
        expect(page.locator("#made-link")).to_contain_text("/join#invite=")
        page.get_by_role("button", name="Take back the invite of Invited Zoe").click()
        page.click("#question-yes")
        expect(page.locator("#content")).not_to_contain_text("Invited Zoe")


def test_what_waits_is_cancelled_from_the_queue(visit: Visit, tmp_path_factory: pytest.TempPathFactory) -> None:
    # a server of its own, on which a picture takes as long as the test
    with serving(tmp_path_factory.mktemp("slow"), 60.0) as slow, visit(key=None) as admin:
        admin.url = slow.url
        asked = httpx.post(f"{slow.url}/api/features", json=BODY | {"async": True}, headers=ADMIN).json()["aiRecord"]
        admin.page.goto(f"{slow.url}/sign-in#key={KEY}")
        admin.page.wait_for_url(f"{slow.url}/?*")
        page = admin.open("/admin")
        page.get_by_role("button", name="Cancel the generation of Administrator").click()
        page.click("#question-yes")
        expect(page.locator("#live")).to_contain_text("Nothing is waiting or being drawn.")
        record = httpx.get(f"{slow.url}/api/results/{asked['uuid']}", headers=ADMIN).json()["aiRecord"]
        assert record["status"] == "FAILURE"
        expect(admin.open("/admin/audit").locator("tbody tr").first).to_contain_text("generation.cancelled")


def test_the_pages_are_not_for_members(visit: Visit, site: ServerProcess) -> None:
    member = add_member(site, "Curious Eve")
    with visit(key=member.key) as eve:
        for path in ("/admin", "/admin/teams", f"/admin/teams/{member.team}", "/admin/usage", "/admin/audit"):
            assert eve.page.goto(site.url + path).status == 403
        expect(eve.page.locator(".nav-admin")).to_have_count(0)

"""The pages in another language, with their scripts' texts, and the switch between them."""

from playwright.sync_api import Browser, expect

from browser.conftest import Visit
from server_process import ServerProcess


def test_the_switch_turns_a_page_where_it_is(visit: Visit) -> None:
    with visit(key=None) as visitor:
        page = visitor.open("/join#invite=a-secret")
        expect(page.locator("h1")).to_have_text("Join")
        page.get_by_role("button", name="Deutsch").click()
        expect(page.locator("h1")).to_have_text("Beitreten")
        # what stands behind `#` never reaches a server: only the page itself can keep it
        assert page.url.endswith("#invite=a-secret")
        expect(visitor.open("/sign-in").locator("h1")).to_have_text("Anmelden")
        page.get_by_role("button", name="English").click()
        expect(page.locator("h1")).to_have_text("Sign in")
        assert visitor.faults == []


def test_the_switch_works_without_scripts(browser: Browser, site: ServerProcess) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.url}/verify?x=1")
    page.get_by_role("button", name="Deutsch").click()
    expect(page.locator("h1")).to_have_text("Woher kommt ein Bild?")
    assert page.url == f"{site.url}/verify?x=1"
    context.close()


def test_scripts_speak_the_pages_language_with_the_right_form_for_a_number(visit: Visit) -> None:
    with visit(locale="de-DE") as visitor:
        page = visitor.open("/?prompt=zwei&num_outputs=2&megapixels=0.25")
        expect(page.locator(".quote")).to_contain_text("Credits")
        page.click("#run")
        expect(page.locator("#result-facts")).to_contain_text("Seed", timeout=40_000)
        page = visitor.open("/gallery")
        boxes = page.locator(".compare-box")
        boxes.nth(0).check(force=True)
        expect(page.locator("#compare-count")).to_have_text("Eines gewählt")
        boxes.nth(1).check(force=True)
        expect(page.locator("#compare-count")).to_have_text("2 gewählt")
        page.keyboard.press("?")
        expect(page.locator("#shortcut-sheet")).to_contain_text("Älteres Bild")
        assert visitor.faults == []

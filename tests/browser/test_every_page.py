from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser.conftest import Visit, Visitor
from counts import SOAK
from schnell.web.pages.documents import find_documents, load_documents

_PAGES = (
    "/?prompt=x",
    "/gallery",
    "/loras",
    "/train",
    "/verify",
    "/account",
    "/admin",
    "/admin/teams",
    "/admin/usage?by=user",
    "/admin/audit",
    "/admin/replicas",
    "/sign-in",
    "/join",
    "/docs",
    "/docs/nothing-here",
    "/docs/openapi",
    "/docs/search?q=LoRA",
)
_DOCUMENTS = tuple(f"/docs/{slug}" for slug in load_documents(find_documents()) if not slug.startswith("decisions/"))
_WIDTHS = (360, 560, 900, 901, 1180, 1440, 1920, 2560)
#: German texts are longer: they have to fit the narrow window.
_LOOKS = [
    ("light", 1280, "en"),
    ("dark", 360, "de"),
    *([("dark", 1280, "de"), ("light", 390, "en"), ("dark", 360, "en")] if SOAK else []),
]
_FEW_LOOKS = [("dark", 390), *([("light", 1280)] if SOAK else [])]
#: What the vendored viewer brings along; our own frame around it is checked.
_VENDORED = {"exclude": [["#openapi"]]}


def check_page(page: Page, name: str) -> None:
    """No problem of accessibility, and nothing that is wider than the window."""
    found = Axe().run(page, context=_VENDORED)
    assert found.violations_count == 0, f"{name}\n{found.generate_report()}"
    check_width(page, name)


def check_width(page: Page, name: str) -> None:
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, f"{name} is {overflow} px too wide"


@pytest.mark.parametrize(("color_scheme", "width"), _FEW_LOOKS)
def test_no_document_has_an_accessibility_or_console_problem(visit: Visit, color_scheme: str, width: int) -> None:
    with visit(color_scheme=color_scheme, width=width) as visitor:
        # they are of one template: some of them show what all have
        for path in _DOCUMENTS if SOAK else _DOCUMENTS[::6]:
            check_page(visitor.open(path), path)
        assert visitor.faults == []


@pytest.mark.parametrize(("color_scheme", "width", "locale"), _LOOKS)
def test_no_page_has_an_accessibility_or_console_problem_and_none_is_wider_than_its_window(
    visit: Visit, color_scheme: str, width: int, locale: str
) -> None:
    with visit(color_scheme=color_scheme, width=width, locale=locale) as visitor:
        for path in _PAGES:
            page = visitor.open(path)
            check_page(page, path)
            for each in (*_WIDTHS, width):
                page.set_viewport_size({"width": each, "height": 900})
                check_width(page, f"{path} at {each} px")
        assert visitor.faults == []


def _states(visitor: Visitor) -> Iterator[str]:
    """What pages turn into while they are used."""
    page = visitor.draw("a state", num_outputs=2, lora_weights="flat", extra_lora="line", megapixels="0.25")
    yield "a result"
    page.click(".more-settings summary")
    page.click("#lora_weights")
    yield "the picker and all settings"
    page.fill("#seed", "-1")
    page.keyboard.press("Tab")
    expect(page.locator("#seed-problem")).not_to_be_empty()
    page.click("#run")
    expect(page.locator(".frame-problem")).to_be_visible()
    yield "a refusal"
    visitor.open("/gallery")
    page.locator(".tile-open").first.click()
    page.click("[data-rating='3']")
    yield "a picture of the gallery"
    page.keyboard.press("Escape")
    for number in range(2):
        page.locator(".compare-box").nth(number).check(force=True)
    yield "two pictures chosen"
    page.click("#compare")
    yield "a comparison"
    visitor.open("/gallery?q=nobody+drew+this")
    yield "an empty gallery"
    visitor.open("/loras")
    page.click("#open-add")
    page.click("#add")
    yield "a LoRA to add"
    page.check("input[name=from][value=file]", force=True)
    yield "a LoRA to upload"
    page.keyboard.press("Escape")
    page.locator("[data-sweep]").first.click()
    expect(page.locator("#sweep img")).to_have_count(5)
    yield "a sweep"
    visitor.open("/account")
    page.locator("[data-do=revoke]").first.click()
    yield "a question"
    page.keyboard.press("Escape")
    visitor.open("/admin/teams")
    page.locator("td a").first.click()
    page.wait_for_selector("#keys-title")
    yield "a team"
    page.fill("#team-limit", "a lot")
    page.click("form:has(#team-limit) button")
    expect(page.locator("#problem")).not_to_be_empty()
    yield "a limit that is no number"


@pytest.mark.parametrize(("color_scheme", "width"), _FEW_LOOKS)
def test_no_state_has_an_accessibility_or_console_problem(visit: Visit, color_scheme: str, width: int) -> None:
    with visit(color_scheme=color_scheme, width=width) as visitor:
        for state in _states(visitor):
            check_page(visitor.page, state)
        assert visitor.faults == []


def test_the_openapi_viewer_runs_under_the_policy(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/docs/openapi")
        page.wait_for_selector(".opblock")
        assert visitor.complaints == []


@pytest.mark.parametrize(("signed_in", "locale"), [(False, "en"), (True, "de")])
def test_the_playground_is_light(visit: Visit, *, signed_in: bool, locale: str) -> None:
    with visit(locale=locale) as visitor:
        if not signed_in:
            visitor.page.context.clear_cookies()
        session = visitor.page.context.new_cdp_session(visitor.page)
        session.send("Network.enable")
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        pictures: set[str] = set()
        sizes: dict[str, float] = {}
        session.on(
            "Network.responseReceived",
            lambda event: pictures.add(event["requestId"]) if event["type"] == "Image" else None,
        )
        session.on(
            "Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]})
        )
        visitor.open("/")
        total = sum(size for request, size in sizes.items() if request not in pictures)
        print(f"transferred without pictures: {total:.0f} bytes")  # noqa: T201 - shown by pytest -s
        assert 0 < total <= 150_000


# German names are the longer ones
def test_a_phone_shows_every_page_in_the_navigation(visit: Visit) -> None:
    with visit(width=390, locale="de-DE") as visitor:
        boxes = [link.bounding_box() for link in visitor.open("/gallery").locator(".nav a").all()]
        assert len(boxes) == 6
        for box in boxes:
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390

import json
import time

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from browser.conftest import Visit, settle
from servers import KEY, body_with

_SHIFTS = """() => new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => { for (const each of list.getEntries()) sum += each.value; })
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 300);
})"""


def _draw(url: str, prompt: str, **settings: object) -> None:
    drawn = httpx.post(f"{url}/api/features", json=body_with(prompt=prompt, **settings), headers={"API-KEY": KEY})
    assert drawn.status_code == 200, drawn.text


@pytest.fixture(scope="module")
def drawn(site: object) -> None:
    """More pictures than the gallery's first page holds."""
    for number in range(30):
        _draw(site.url, f"walrus number {number}", num_inference_steps=1)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("drawn")
def test_scrolling_brings_older_pictures_until_there_are_no_more(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/gallery?q=walrus")
        expect(page.locator(".tile")).to_have_count(24)
        page.locator(".more").scroll_into_view_if_needed()
        expect(page.locator(".tile")).to_have_count(30)
        expect(page.locator(".more")).to_have_count(0)
        assert visitor.complaints == []


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("path", ["/gallery?q=walrus", "/loras", "/docs"])
def test_nothing_moves_while_pictures_load(visit: Visit, path: str, width: int) -> None:
    def late(route: Route) -> None:
        visitor.page.wait_for_timeout(150)
        route.continue_()

    with visit(width=width) as visitor:
        page = visitor.page
        page.route("**/*.webp*", late)
        page.route("**/preview", late)
        visitor.open(path)
        assert page.locator("img").count()
        assert page.evaluate(_SHIFTS) < 0.001


def test_a_picture_is_found_rated_and_recalled_then_deleted(visit: Visit) -> None:
    with visit() as visitor:
        visitor.draw("a very rare zebra", seed=77)
        page = visitor.open("/gallery")
        page.fill("#q", "ZEBRA rare")
        expect(page.locator(".tile")).to_have_count(1)
        page.click(".tile-open")
        page.click("[data-rating='4']")
        expect(page.locator("[data-rating='4']")).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".tile-rating")).to_contain_text("4")
        page.click("#viewer-recall")
        expect(page.locator("#prompt")).to_have_value("a very rare zebra")
        expect(page.locator("#seed")).to_have_value("77")
        visitor.open("/gallery?q=zebra")
        page.click(".tile-open")
        page.click("#viewer-delete")
        expect(page.locator(".tile")).to_have_count(0)
        visitor.open("/gallery?q=zebra")
        expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
        assert visitor.complaints == []


def test_everything_that_made_a_picture_is_recalled(visit: Visit) -> None:
    with visit() as visitor:
        _draw(
            visitor.url,
            "a recalled ibex",
            seed=9,
            aspect_ratio="4:5",
            num_inference_steps=2,
            go_fast=False,
            output_quality=33,
            lora_weights="flat",
            lora_scale=0,
            extra_lora="line",
            output_format="png",
        )
        page = visitor.open("/gallery?q=ibex")
        page.click(".tile-open")
        page.click("#viewer-recall")
        expect(page.locator("input[value='4:5']")).to_be_checked()
        expect(page.locator("input[name=megapixels][value='0.25']")).to_be_checked()
        expect(page.locator("input[name=steps][value='2']")).to_be_checked()
        expect(page.locator("input[name=format][value='png']")).to_be_checked()
        expect(page.locator("#lora_weights")).to_have_value("flat")
        expect(page.locator("#lora_scale")).to_have_value("0")
        expect(page.locator("#extra_lora")).to_have_value("line")
        expect(page.locator("#output_quality")).to_have_value("33")


def test_pictures_are_filtered_by_lora(visit: Visit) -> None:
    with visit() as visitor:
        _draw(visitor.url, "a filtered lynx", lora_weights="pixel")
        _draw(visitor.url, "a filtered lynx")
        page = visitor.open("/gallery?q=lynx")
        expect(page.locator(".tile")).to_have_count(2)
        page.select_option("#lora", "pixel")
        expect(page.locator(".tile")).to_have_count(1)
        expect(page.locator(".tile-meta")).to_contain_text("pixel")


def test_two_pictures_are_compared_and_what_differs_is_marked(visit: Visit) -> None:
    with visit() as visitor:
        # pictures of two minutes differ in their time, too
        if (left := 60 - time.time() % 60) < 10:
            time.sleep(left)
        _draw(visitor.url, "a compared stork", seed=1)
        _draw(visitor.url, "a compared stork", seed=2)
        page = visitor.open("/gallery?q=stork")
        for box in page.locator(".compare-box").all():
            box.check(force=True)
        page.click("#compare")
        expect(page.locator("#pair img")).to_have_count(2)
        assert page.locator("#pair .differs").all_inner_texts() == ["2", "1"]


def test_arrow_keys_turn_from_picture_to_picture(visit: Visit) -> None:
    with visit() as visitor:
        _draw(visitor.url, "a turned heron", seed=1)
        _draw(visitor.url, "a turned heron", seed=2)
        page = visitor.open("/gallery?q=heron")
        page.locator(".tile-open").first.click()
        expect(page.locator("#viewer-newer")).to_be_disabled()
        expect(page.locator("#viewer-facts")).to_contain_text("Seed2")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer-facts")).to_contain_text("Seed1")
        expect(page.locator("#viewer-older")).to_be_disabled()


def _variations(page: Page) -> None:
    page.click("#viewer-variations")
    settle(page)


def test_variations_are_drawn_at_once_with_the_next_seeds(visit: Visit) -> None:
    with visit() as visitor:
        _draw(visitor.url, "a varied otter", seed=5)
        page = visitor.open("/gallery?q=otter")
        page.click(".tile-open")
        _variations(page)
        expect(page.locator(".pictures:not(.previews) img")).to_have_count(4)
        expect(page.locator("#result-facts")).to_contain_text("seed 6 ")


def test_a_downloaded_picture_is_the_stored_one_under_its_own_name(visit: Visit) -> None:
    with visit() as visitor:
        _draw(visitor.url, "a downloaded crane", seed=5)
        page = visitor.open("/gallery?q=crane")
        source = json.loads(page.locator(".tile").get_attribute("data-picture") or "{}")["url"]
        page.click(".tile-open")
        with page.expect_download() as download:
            page.click("#viewer-download")
        assert download.value.suggested_filename == source.partition("?")[0].rpartition("/")[2]
        assert download.value.path().read_bytes() == httpx.get(visitor.url + source).content

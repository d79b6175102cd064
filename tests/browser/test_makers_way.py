"""A maker's day with the keyboard alone: draw, share, find, compare, delete and undo; and what the playground keeps."""

import io
import zipfile

import httpx
import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Visit, settle
from browser.test_every_page import check_page
from mini_loras import lora_bytes
from servers import KEY


def _focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.tagName"))


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(60):
        if page.evaluate("each => document.activeElement.matches(each)", selector):
            return
        page.keyboard.press("Tab")
        assert _focused(page) != "BODY" or page.evaluate("document.hasFocus()")
    raise AssertionError(f"Tab does not reach {selector}")


@pytest.mark.parametrize(("color_scheme", "width"), [("light", 1280), ("dark", 390)])
def test_from_a_batch_to_a_shared_picture_to_a_deletion_that_is_undone_by_keyboard_alone(
    visit: Visit, color_scheme: str, width: int
) -> None:
    prompt = f"keyboard newt {width}"
    with visit(color_scheme=color_scheme, width=width) as visitor:
        page = visitor.open("/?prompt=x&megapixels=0.25")
        page.keyboard.press("/")
        page.keyboard.press("Control+A")
        page.keyboard.type(prompt + " {one|two}")
        expect(page.locator("#batch")).to_contain_text("2 prompts")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".strip-item:not(.pending)")).to_have_count(2, timeout=40_000)
        visitor.open("/gallery")
        page.keyboard.press("/")
        page.keyboard.type(prompt)
        expect(page.locator(".tile")).to_have_count(2)
        _tab_to(page, ".tile-open")
        page.keyboard.press("Enter")
        _tab_to(page, "#viewer-share")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer-page")).to_be_visible()
        check_page(page, "a shared picture in the viewer")
        link = str(page.evaluate("navigator.clipboard.readText()"))
        assert httpx.get(link).status_code == 200
        page.keyboard.press("Escape")
        expect(page.locator(".tile-open").first).to_be_focused()
        page.keyboard.press("x")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("x")
        expect(page.locator("#compare-count")).to_have_text("2 chosen")
        page.keyboard.press("c")
        page.check("[name=way][value=slider]", force=True)
        expect(page.locator("#overlay-pictures img")).to_have_count(2)
        check_page(page, "a slider over two pictures")
        page.keyboard.press("Escape")
        page.keyboard.press("Delete")
        expect(page.locator(".tile")).to_have_count(0)
        expect(page.locator(".toast-action")).to_be_focused()
        assert httpx.get(link).status_code == 404
        page.keyboard.press("Enter")
        expect(page.locator(".tile")).to_have_count(2)
        assert _focused(page) == "BUTTON"
        assert httpx.get(link).status_code == 200
        page.goto(link)
        check_page(page, "a public page")
        assert visitor.faults == []


def test_the_playground_keeps_settings_queue_and_pictures(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=first+egret&megapixels=0.25")
        assert KEY not in page.inner_text(".snippet")
        page.click("#run")
        page.fill("#prompt", "second egret")
        page.click("#run")
        expect(page.locator(".strip-item.pending")).to_have_count(2)
        expect(page.locator(".strip-item:not(.pending)")).to_have_count(2, timeout=40_000)
        settle(page)
        page.get_by_role("link", name="Gallery").click()
        page.wait_for_url("**/gallery")
        page.get_by_role("link", name="Playground", exact=True).click()
        expect(page.locator("#prompt")).to_have_value("second egret")
        expect(page.locator(".strip-item")).to_have_count(2)
        expect(page.locator("#result-facts")).to_contain_text("seed")
        page.reload()
        expect(page.locator(".strip-item")).to_have_count(2)
        expect(page.locator("input[name=megapixels][value='0.25']")).to_be_checked()
        page.get_by_role("button", name="Earlier prompts").click()
        page.locator("#prompts button", has_text="first egret").click()
        expect(page.locator("#prompt")).to_have_value("first egret")
        page.get_by_role("button", name="Variations").click()
        expect(page.locator(".pictures:not(.previews) img")).to_have_count(4)
        # no trap: neither a locked seed nor four pictures are left in the form
        expect(page.locator("#seed")).to_have_value("")
        expect(page.locator("input[name=outputs][value='1']")).to_be_checked()
        page.get_by_role("button", name="Start over").click()
        page.locator(".examples button").nth(2).click()
        expect(page.locator("#prompt")).to_have_value("green frog, flat style")
        expect(page.locator("#lora_weights")).to_have_value("flat")
        expect(page.locator("#run")).to_be_focused()
        page.get_by_role("button", name="Compare LoRAs and scales").click()
        page.fill("#grid-scales", "0, 1")
        page.locator("#grid-loras input[value=pixel]").check()
        page.click("#grid-draw")
        expect(page.locator("#grid-table img")).to_have_count(4, timeout=40_000)
        page.get_by_role("button", name="pixel at 1").click()
        expect(page.locator("#lora_weights")).to_have_value("pixel")
        page.get_by_role("button", name="Keyboard shortcuts").click()
        check_page(page, "the sheet of shortcuts")
        page.keyboard.press("Escape")
        page.goto(f"{visitor.url}/account")
        page.click("#sign-out")
        page.wait_for_url(f"{visitor.url}/?*")
        assert page.evaluate("localStorage.getItem('schnell-playground')") is None
        assert visitor.faults == []


def test_chosen_pictures_are_collected_and_downloaded(visit: Visit) -> None:
    with visit() as visitor:
        visitor.draw("a collected stoat", num_outputs=2, megapixels="0.25")
        page = visitor.open("/gallery?q=stoat")
        page.locator(".compare-box").first.check(force=True)
        page.click("#choose-all")
        with page.expect_download() as download:
            page.click("#download-chosen")
        with zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes())) as archive:
            assert len(archive.namelist()) == 2
        page.click("#collect")
        check_page(page, "a collection to choose")
        page.fill("#collect-name", "Stoats")
        page.keyboard.press("Enter")
        expect(page.locator("#toast")).to_have_text("2 pictures added")
        visitor.open("/gallery")
        page.select_option("#collection", label="Stoats (2)")
        expect(page.locator(".tile")).to_have_count(2)
        assert visitor.faults == []


def test_a_lora_file_is_dropped_on_the_playground_and_drawn_with(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x&megapixels=0.25")
        page.focus("#lora_weights")
        expect(page.locator("#lora_weights-list")).to_be_hidden()
        page.keyboard.press("ArrowDown")
        expect(page.locator("#lora_weights-list li").first).to_be_focused()
        # it moves what comes after it, and covers nothing
        listed, after = page.locator("#lora_weights-list").bounding_box(), page.locator("#seed").bounding_box()
        assert listed is not None
        assert after is not None
        assert listed["y"] + listed["height"] <= after["y"]
        page.keyboard.press("Escape")
        data = page.evaluate_handle(
            """bytes => { const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "Dropped Glass.safetensors")); return data; }""",
            list(lora_bytes(21)),
        )
        page.dispatch_event("#snippet", "drop", {"dataTransfer": data})
        expect(page.locator("#file-name")).to_have_text("Dropped Glass.safetensors")
        page.fill("#lora-words", "DGLASS, shiny")
        page.fill("#lora-licence", "CC0-1.0")
        page.select_option("#lora-visibility", "public")
        check_page(page, "a LoRA that was dropped")
        page.click("#add")
        expect(page.locator("#lora_weights")).to_have_value("dropped-glass")
        expect(page.locator("#lora_weights")).to_be_focused()
        page.get_by_role("button", name="Add to prompt").click()
        expect(page.locator("#prompt")).to_have_value("x, DGLASS, shiny")
        added = httpx.get(f"{visitor.url}/api/loras/dropped-glass", headers={"API-KEY": KEY}).json()["lora"]
        assert (added["triggerWords"], added["licence"], added["public"]) == (["DGLASS", "shiny"], "CC0-1.0", True)
        page.click("#run")
        settle(page)
        assert visitor.faults == []

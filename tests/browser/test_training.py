"""A LoRA is trained in the browser by the real trainer, and drawn with."""

import io

from PIL import Image, ImageDraw
from playwright.sync_api import expect

from browser.conftest import Visit, settle
from browser.test_every_page import check_page


def _circle(colour: str) -> bytes:
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((24, 24, 104, 104), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_pictures_become_a_lora_that_draws(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/loras")
        page.get_by_role("link", name="Train one").click()
        page.click("#start")
        expect(page.locator("#pictures-problem")).to_have_text("Choose pictures first.")
        files = [
            {"name": f"{colour}.png", "mimeType": "image/png", "buffer": _circle(colour)}
            for colour in ("red", "green", "blue")
        ]
        page.set_input_files("#pictures", [*files, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"}])
        expect(page.locator("#chosen li")).to_have_count(3)
        page.get_by_role("button", name="Remove blue.png").click()
        page.get_by_label("What red.png shows").fill("red circle")
        page.fill("#trigger", "discs")
        check_page(page, "a training to start")
        # seconds: the slider offers whole minutes
        page.evaluate(
            """() => Object.assign(document.getElementById("minutes"), {min: 0.01, step: 0.01, value: 0.01})"""
        )
        page.click("#start")
        expect(page.locator("#stage")).to_have_text("Done: it is in the library", timeout=180_000)
        assert page.locator("#samples img").count() >= 2
        check_page(page, "a training that is done")
        page.get_by_role("link", name="Draw with it").click()
        expect(page.locator("#lora_weights")).to_have_value("discs")
        page.click("#run")
        settle(page)
        visitor.open("/loras")
        expect(page.locator("[data-name=discs]")).to_contain_text("discs")
        assert visitor.faults == []

"""The page on which anybody checks a picture."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser.conftest import Visit
from proof import proven


@pytest.mark.parametrize(("color_scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_dropped_picture_is_told_line_by_line(visit: Visit, color_scheme: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "ours.webp").write_bytes(proven())
    with visit(color_scheme=color_scheme, width=width) as visitor:
        page = visitor.open("/verify")
        page.set_input_files("#file", tmp_path / "ours.webp")
        expect(page.locator("#summary")).to_have_text(
            "Made by a model, according to signed credentials, the invisible mark and the metadata", timeout=60_000
        )
        facts = page.locator("#facts")
        expect(facts).to_contain_text("Valid, signed by Test Studio signer, who is unknown here")
        expect(facts).to_contain_text("it agrees with the mark")
        assert Axe().run(page).violations_count == 0
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert visitor.faults == []


def test_what_is_no_picture_is_told_beside_the_field(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("hello")
    with visit() as visitor:
        page = visitor.open("/verify")
        page.set_input_files("#file", tmp_path / "words.txt")
        expect(page.locator("#file-problem")).to_contain_text("this is not a PNG", timeout=60_000)
        expect(page.locator("#result")).to_be_hidden()

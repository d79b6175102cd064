"""A person's whole way, in a real browser."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Visit
from servers import KEY

_PROMPT = 'it\'s a "red" apple $HOME \\ `tick` 🍎\nsecond line'


def _settle(page: Page) -> None:
    expect(page.locator("#result-facts")).to_contain_text("seed", timeout=20_000)


def _picture(page: Page) -> bytes:
    source = page.locator(".pictures:not(.previews) img").first.get_attribute("src")
    return page.request.get(page.url.split("/?")[0] + (source or "")).body()


def _copied(page: Page, client: str) -> str:
    page.click(f"#tab-{client}")
    page.click("#copy-snippet")
    return str(page.evaluate("navigator.clipboard.readText()"))


def _draw(page: Page, seed: int = 42) -> None:
    page.fill("#prompt", _PROMPT)
    page.fill("#seed", str(seed))
    page.click("#run")
    _settle(page)


def test_a_drawn_picture_shows_steps_and_its_copied_curl_gives_the_same_one(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.fill("#prompt", _PROMPT)
        page.check("input[name=aspect_ratio][value='16:9']", force=True)
        page.click("#run")
        expect(page.locator("#progress")).to_contain_text("Step", timeout=20_000)
        _settle(page)
        expect(page.locator("#result-facts")).to_contain_text("1344 × 768")  # noqa: RUF001
        script = _copied(page, "curl")
        assert KEY in script
        answer = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60).stdout
        record = json.loads(answer)["aiRecord"]
        assert record["aiRecordDetail"]["promptObject"]["prompt"] == _PROMPT
        assert httpx.get(record["temporaryUrl"]).content == _picture(page)
        assert visitor.complaints == []


@pytest.mark.parametrize("client", ["python", "openai", "replicate"])
def test_copied_python_gives_the_same_picture(visit: Visit, client: str, tmp_path: Path) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        _draw(page)
        (tmp_path / "snippet.py").write_text(_copied(page, client), encoding="utf-8")
        subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, check=True, timeout=60)
        assert next(tmp_path.glob("picture*.webp")).read_bytes() == _picture(page)


def test_copied_javascript_gives_the_same_picture(visit: Visit, tmp_path: Path) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        _draw(page)
        # the browser runs it: only the file system of Node is taken out
        script = _copied(page, "javascript").split("\n", 1)[1].rsplit("const picture", 1)[0]
        url = page.evaluate(f"(async () => {{ {script} return aiRecord.temporaryUrl; }})()")
        assert httpx.get(str(url)).content == _picture(page)


def test_the_untouched_example_is_the_documents_own_curl(visit: Visit, site: object) -> None:
    with visit(signed_in=False) as visitor:
        page = visitor.open("/")
        expected = f"""curl -X POST "{visitor.url}/api/features" \\
-H "API-KEY: <your-api-key>" \\
-H "Content-Type: application/json" \\
-d '{{
"type": "IMAGE_GENERATOR",
"model": "black-forest-labs/flux-schnell-lora",
"promptObject": {{
"prompt": "Futuristic cityscape at night, neon lights, cyberpunk style",
"aspect_ratio": "1:1",
"num_inference_steps": 4,
"go_fast": true,
"lora_weights": "fofr/flux-black-light",
"lora_scale": 0.8,
"megapixels": "1"
}}
}}'"""
        assert _copied(page, "curl") == expected


def test_a_link_brings_back_the_settings(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=a+green+pear&aspect_ratio=9:16&seed=5&num_outputs=2")
        expect(page.locator("#prompt")).to_have_value("a green pear")
        expect(page.locator("#seed")).to_have_value("5")
        expect(page.locator("input[value='9:16']")).to_be_checked()


def test_a_wrong_seed_is_told_beside_its_field(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.fill("#seed", "99999999999")
        expect(page.locator("#seed-problem")).to_contain_text("4294967295")


def test_a_cancelled_run_says_so_and_costs_nothing(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.click("#run")
        page.click("#cancel")
        expect(page.locator(".frame-problem h2")).to_have_text("Cancelled")


def test_the_gallery_finds_a_picture_and_recalls_its_settings(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=a+very+rare+zebra&seed=77")
        page.click("#run")
        _settle(page)
        visitor.open("/gallery")
        page.fill("#q", "ZEBRA rare")
        expect(page.locator(".tile")).to_have_count(1)
        page.click(".tile-open")
        page.click("[data-rating='4']")
        expect(page.locator("[data-rating='4']")).to_have_attribute("aria-pressed", "true")
        page.click("#viewer-recall")
        expect(page.locator("#prompt")).to_have_value("a very rare zebra")
        expect(page.locator("#seed")).to_have_value("77")
        visitor.open("/gallery?q=zebra")
        page.click(".tile-open")
        page.click("#viewer-delete")
        page.click("#viewer-delete")
        expect(page.locator(".tile")).to_have_count(0)
        assert visitor.complaints == []


def test_a_made_key_works_until_it_is_revoked(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/account")
        page.fill("#key-name", "notebook")
        page.click("#new-key button[type=submit]")
        expect(page.locator("#made-key")).to_be_visible()
        key = page.inner_text("#secret")
        asked = {"headers": {"API-KEY": key}}
        assert httpx.get(f"{visitor.url}/api/session", **asked).status_code == 200  # type: ignore[arg-type]
        page.click("[data-revoke][data-name=notebook]")
        page.click("#question button[value=yes]")
        expect(page.locator("tr.gone", has_text="notebook")).to_be_visible()
        assert httpx.get(f"{visitor.url}/api/session", **asked).status_code == 401  # type: ignore[arg-type]

from pathlib import Path

from playwright.sync_api import expect

from browser.conftest import Visit
from mini_loras import lora_bytes
from tls_server import TlsServer


def _upload(name: str, data: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def test_an_uploaded_lora_becomes_a_card_with_its_preview_and_is_removed(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/loras")
        page.click("#open-add")
        page.check("input[name=from][value=file]", force=True)
        page.set_input_files("#file", _upload("Sea Glass.safetensors", lora_bytes(5, trigger_words="SGLASS")))
        page.click("#add")
        card = page.locator("[data-name='sea-glass']")
        expect(card.get_by_role("button", name="SGLASS")).to_be_visible()
        expect(card.locator("img")).to_be_visible()
        page.fill("#search", "sglass")
        expect(page.locator(".lora-card:visible")).to_have_count(1)
        page.fill("#search", "no such word")
        expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
        page.fill("#search", "")
        card.get_by_role("link", name="Try it").click()
        expect(page.locator("#lora_weights")).to_have_value("sea-glass")
        visitor.open("/loras")
        remove = page.locator("[data-name='sea-glass'] [data-remove]")
        remove.click()
        remove.click()
        expect(page.locator("[data-name='sea-glass']")).to_have_count(0)
        assert visitor.complaints == []


def test_a_refused_file_says_beside_it_what_is_wrong(visit: Visit, tmp_path: Path) -> None:
    with visit() as visitor:
        page = visitor.open("/loras")
        page.click("#open-add")
        page.click("#add")
        expect(page.locator("#source-problem")).to_have_text("Name a place first.")
        page.check("input[name=from][value=file]", force=True)
        page.set_input_files("#file", _upload("wide.safetensors", lora_bytes(width=3072)))
        page.click("#add")
        expect(page.locator("#file-problem")).to_contain_text("3072")
        expect(page.locator("#file-problem")).to_contain_text("256")
        expect(page.locator("#add")).to_be_enabled()
        page.set_input_files("#file", _upload("a.safetensors", lora_bytes(6)))
        page.fill("#lora-name", "Not A Name!")
        page.click("#add")
        expect(page.locator("#name-problem")).not_to_be_empty()
        assert visitor.faults == []


def test_a_lora_is_added_by_its_address(visit: Visit, outside: TlsServer) -> None:
    outside.serve("/files/amber.safetensors", lora_bytes(8, trigger_words="AMBR"))
    with visit() as visitor:
        page = visitor.open("/loras")
        page.click("#open-add")
        page.fill("#source", outside.url("/files/missing.safetensors"))
        page.click("#add")
        expect(page.locator("#source-problem")).not_to_be_empty()
        page.fill("#source", outside.url("/files/amber.safetensors"))
        page.click("#add")
        card = page.locator("[data-name='amber']")
        expect(card).to_be_visible()
        expect(card).to_contain_text(outside.url("/files/amber.safetensors"))
        expect(page.locator("#add-dialog")).to_be_hidden()
        assert visitor.faults == []


def test_one_click_draws_one_seed_at_five_scales(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/loras")
        bodies = []
        page.on("request", lambda asked: bodies.append(asked.post_data_json) if asked.method == "POST" else None)
        page.locator("[data-name='blueprint'] [data-sweep]").click()
        expect(page.locator("#sweep img")).to_have_count(5)
        asked = [body["promptObject"] for body in bodies]
        assert [each["lora_scale"] for each in asked] == [0, 0.4, 0.8, 1.2, 1.6]
        assert len({(each["seed"], each["prompt"], each["lora_weights"]) for each in asked}) == 1
        page.fill("#sweep-prompt", "a blue whale")
        page.get_by_role("button", name="Draw again").click()
        expect(page.locator("#sweep img[alt='a blue whale, scale 1.6']")).to_be_visible()
        page.locator("#sweep a").nth(3).click()
        expect(page.locator("#lora_scale")).to_have_value("1.2")
        expect(page.locator("#prompt")).to_have_value("a blue whale")
        assert visitor.complaints == []

"""The playground, setting by setting and error by error."""

import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Request, Route, expect

from browser.conftest import Visit, copied, settle
from schnell.provenance.image_file import encode_image
from schnell.provenance.receipt import AdapterReceipt, Receipt
from servers import KEY


def _admin(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    made = httpx.post(f"{url}/api/admin/{path}", json=body, headers={"API-KEY": KEY})
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def _team(url: str) -> str:
    return str(httpx.get(f"{url}/api/session", headers={"API-KEY": KEY}).json()["teamId"])


def _used(url: str) -> int:
    return int(httpx.get(f"{url}/api/session", headers={"API-KEY": KEY}).json()["usedCredit"])


def _failure(page: Page) -> Any:
    return page.locator(".frame-problem")


def test_a_link_brings_back_the_settings_and_a_run_shares_them(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open(
            "/?prompt=a+green+pear&aspect_ratio=9:16&seed=5&num_outputs=2&lora_weights=flat&lora_scale=1.2"
        )
        expect(page.locator("#prompt")).to_have_value("a green pear")
        expect(page.locator("#seed")).to_have_value("5")
        expect(page.locator("input[value='9:16']")).to_be_checked()
        expect(page.locator("#lora_scale")).to_have_value("1.2")
        page.click("#run")
        settle(page)
        expect(page.locator(".pictures:not(.previews) img")).to_have_count(2)
        page.get_by_role("button", name="Copy link").click()
        link = str(page.evaluate("navigator.clipboard.readText()"))
        page.goto("about:blank")
        page.goto(link)
        expect(page.locator("#prompt")).to_have_value("a green pear")
        expect(page.locator("#seed")).to_have_value("5")
        expect(page.locator("#lora_weights")).to_have_value("flat")


def test_every_ratio_shows_its_exact_pixels(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        expect(page.locator(".ratio", has_text="16:9")).to_contain_text("1344 × 768")  # noqa: RUF001
        page.check("input[name=megapixels][value='0.25']", force=True)
        expect(page.locator(".ratio", has_text="16:9")).to_contain_text("672 × 384")  # noqa: RUF001
        page.check("input[name=aspect_ratio][value='custom']", force=True)
        page.fill("#width", "512")
        page.fill("#height", "768")
        expect(page.locator("#pixels")).to_have_text("512 × 768")  # noqa: RUF001
        assert '"aspect_ratio": "custom",\n"width": 512,\n"height": 768' in copied(page, "curl")
        page.click("#run")
        settle(page)
        expect(page.locator("#result-facts")).to_contain_text("512 × 768")  # noqa: RUF001


def test_the_picker_offers_the_library_with_previews_and_trigger_words(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/")
        page.get_by_role("link", name="The reference example").click()
        expect(page.locator(".combo-preview").first).to_be_visible()
        page.get_by_role("button", name="Add to prompt").click()
        expect(page.locator("#prompt")).to_have_value(
            "Futuristic cityscape at night, neon lights, cyberpunk style, black light"
        )
        page.fill("#lora_weights", "blue")
        expect(page.locator("#lora_weights-list li")).to_have_count(1)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#lora_weights")).to_have_value("blueprint")
        page.fill("#lora_weights", "flat st")
        page.keyboard.press("Enter")
        expect(page.locator("#lora_weights")).to_have_value("flat")
        page.get_by_role("button", name="Add a second LoRA").click()
        page.fill("#extra_lora", "line")
        page.locator("#extra_lora_scale + input").fill("1.5")
        expect(page.locator("#extra_lora_scale")).to_have_value("1.5")
        code = copied(page, "curl")
        assert '"lora_weights": "flat"' in code
        assert '"extra_lora": "line",\n"extra_lora_scale": 1.5' in code
        page.click("#run")
        settle(page)
        assert visitor.complaints == []


def test_a_rolled_seed_is_kept_until_it_is_unlocked(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.get_by_role("button", name="Roll a seed").click()
        rolled = page.input_value("#seed")
        lock = page.get_by_role("button", name="Keep this seed")
        expect(lock).to_have_attribute("aria-pressed", "true")
        page.click("#run")
        settle(page)
        expect(page.locator("#result-facts")).to_contain_text(f"seed {rolled} ")
        lock.click()
        expect(page.locator("#seed")).to_have_value("")


def test_the_price_is_told_before_and_follows_the_settings(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x&megapixels=1")
        expect(page.locator(".quote")).to_contain_text("1,000 credits")
        expect(page.locator(".quote")).to_contain_text("about")
        page.check("input[name=megapixels][value='0.25']", force=True)
        expect(page.locator(".quote")).not_to_contain_text("1,000 credits")


def test_nothing_is_asked_about_a_value_that_is_half_typed(visit: Visit) -> None:
    with visit() as visitor:
        visitor.page.clock.install()
        page = visitor.open("/?prompt=x&aspect_ratio=custom&width=512&height=512")
        page.clock.run_for(1000)
        expect(page.locator(".quote")).to_contain_text("credit")
        asked: list[tuple[str | None, Any]] = []

        def note(request: Request) -> None:
            if request.url.endswith("/api/features"):
                given = (request.post_data_json or {})["promptObject"]
                asked.append((given.get("lora_weights"), given["width"]))

        page.on("request", note)
        page.fill("#lora_weights", "pix")
        page.clock.run_for(5000)
        assert asked == []
        with page.expect_response("**/api/features"):
            page.locator("#lora_weights-list li").click()
            page.clock.run_for(1000)
        page.fill("#width", "10")
        page.clock.run_for(5000)
        page.fill("#width", "1024")
        page.clock.run_for(5000)
        assert asked == [("pixel", 512)]
        with page.expect_response("**/api/features"):
            page.keyboard.press("Tab")
            page.clock.run_for(1000)
        assert asked == [("pixel", 512), ("pixel", 1024)]
        assert visitor.complaints == []


def test_the_keyboard_alone_draws(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.focus("#prompt")
        page.keyboard.press("Control+A")
        page.keyboard.type("a typed yak")
        page.keyboard.press("Control+Enter")
        settle(page)
        expect(page.locator(".pictures:not(.previews) img")).to_have_attribute("alt", "a typed yak")


def test_earlier_pictures_of_the_tab_come_back_with_their_settings(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.draw("first", seed=1)
        page.fill("#prompt", "second")
        page.click("#run")
        expect(page.locator(".strip-item")).to_have_count(2)
        page.locator(".strip-item").nth(1).click()
        expect(page.locator("#prompt")).to_have_value("first")
        expect(page.locator("#result-facts")).to_contain_text("seed 1 ")
        assert '"prompt": "first",\n"seed": 1' in copied(page, "curl")


def test_variations_are_the_next_seeds(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.draw("x", seed=4294967295)
        page.get_by_role("button", name="Variations").click()
        expect(page.locator(".pictures:not(.previews) img")).to_have_count(4)
        expect(page.locator("#result-facts")).to_contain_text("seed 0 ")


def test_a_cancelled_run_says_so_and_costs_nothing(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        before = _used(visitor.url)
        page.click("#run")
        page.click("#cancel")
        expect(_failure(page).locator("h2")).to_have_text("Cancelled")
        page.get_by_role("button", name="Try again").click()
        page.click("#cancel")
        expect(_failure(page).locator("h2")).to_have_text("Cancelled")
        # the server hears of it when the connection has closed
        for _ in range(100):
            if _used(visitor.url) == before:
                break
            page.wait_for_timeout(100)
        assert _used(visitor.url) == before


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", "", "required"),
        ("seed", "99999999999", "4294967295"),
        ("seed", "seven", "whole number"),
        ("lora_weights", "no-such-lora", "no LoRA is called"),
    ],
)
def test_a_wrong_value_is_told_beside_its_field(visit: Visit, field: str, value: str, told: str) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.fill(f"#{field}", value)
        page.keyboard.press("Tab")
        expect(page.locator(f"#{field}-problem")).to_contain_text(told)
        page.click("#run")
        expect(_failure(page)).to_contain_text("The fields say what")
        expect(page.locator(f"#{field}")).to_be_focused()
        expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
        page.fill(f"#{field}", "")
        expect(page.locator(f"#{field}-problem")).not_to_contain_text(value or "nothing")
        assert visitor.faults == []


def test_wrong_sides_and_scales_are_told_beside_their_fields(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x&aspect_ratio=custom&width=100&height=512&lora_weights=flat")
        expect(page.locator("#width-problem")).to_contain_text("256")
        page.fill("#width", "512")
        expect(page.locator("#width-problem")).to_be_empty()
        page.locator("#lora_scale + input").fill("9")
        page.keyboard.press("Tab")
        expect(page.locator("#lora_scale-problem")).to_contain_text("0-3")


def test_a_key_with_too_few_credits_and_one_that_asks_too_often_are_told(visit: Visit) -> None:
    with visit() as owner:
        team = _team(owner.url)
    _admin(owner.url, f"teams/{team}/users", {"name": "Poor", "creditLimit": 10})
    keys = f"teams/{team}/keys"
    broke = _admin(owner.url, keys, {"name": "broke", "user": "Poor", "scopes": ["generate", "read"]})
    with visit(key=broke["key"]) as visitor:
        page = visitor.open("/?prompt=x")
        page.click("#run")
        expect(_failure(page).locator("h2")).to_have_text("Not enough credits")
        expect(_failure(page)).to_contain_text("nothing was charged")
    slow = _admin(owner.url, keys, {"name": "slow", "scopes": ["generate", "read"], "rateLimit": "1/hour"})
    with visit(key=slow["key"]) as visitor:
        page = visitor.draw("x")
        page.click("#run")
        expect(_failure(page).locator("h2")).to_have_text("Too fast")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_key_that_may_only_look_is_offered_nothing_that_would_be_refused(visit: Visit) -> None:
    with visit() as owner:
        team = _team(owner.url)
    made = _admin(owner.url, f"teams/{team}/keys", {"name": "looker", "scopes": ["read"]})
    with visit(key=made["key"]) as visitor:
        page = visitor.open("/?prompt=x")
        expect(page.locator(".quote")).to_contain_text("not draw")
        expect(page.locator("#run")).to_have_count(0)
        page.keyboard.press("Control+Enter")
        page.wait_for_load_state("networkidle")
        assert visitor.complaints == []


def test_a_key_that_is_revoked_meanwhile_leads_to_the_sign_in_page_and_back(visit: Visit) -> None:
    with visit() as owner:
        team = _team(owner.url)
    made = _admin(owner.url, f"teams/{team}/keys", {"name": "gone", "scopes": ["generate", "read"]})
    with visit(key=made["key"]) as visitor:
        page = visitor.open("/?prompt=kept+words")
        revoked = httpx.delete(f"{owner.url}/api/admin/keys/{made['details']['id']}", headers={"API-KEY": KEY})
        assert revoked.status_code < 300
        page.click("#run")
        expect(_failure(page).locator("h2")).to_have_text("Not signed in")
        _failure(page).get_by_role("link", name="Sign in").click()
        page.fill("#key", "schnell_wrong")
        page.click("#sign-in button[type=submit]")
        expect(page.locator("#key-problem")).not_to_be_empty()
        page.fill("#key", KEY)
        page.click("#sign-in button[type=submit]")
        expect(page.locator("#prompt")).to_have_value("kept words")


@pytest.mark.parametrize(
    ("code", "title", "retry"),
    [
        ("NSFW_CONTENT", "Held back by the safety checker", False),
        ("QUEUE_FULL", "The queue is full", True),
        ("GENERATION_FAILED", "It did not work", True),
        ("INVALID_LORA", "This LoRA cannot be used", False),
    ],
)
def test_an_error_of_the_engine_says_what_to_do(visit: Visit, code: str, title: str, *, retry: bool) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(
            status=503, content_type="application/json", body=json.dumps({"errorCode": code, "message": "Why"})
        )

    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.route("**/api/features?isStreaming=true", refuse)
        page.click("#run")
        expect(_failure(page).locator("h2")).to_have_text(title)
        expect(_failure(page)).to_contain_text("Why")
        expect(page.get_by_role("button", name="Try again")).to_be_visible(visible=retry)


def test_a_server_that_is_gone_is_told(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.route("**/api/features?isStreaming=true", lambda route: route.abort())
        page.click("#run")
        expect(_failure(page)).to_contain_text("could not be reached")


@pytest.mark.parametrize("output_format", ["webp", "png", "jpeg"])
def test_a_dropped_picture_restores_its_settings(visit: Visit, output_format: Any) -> None:
    receipt = Receipt(
        engine="1",
        model="schnell-mini",
        model_sha256="0" * 64,
        precision="float32",
        prompt='a "quoted" {tulip} 🌷',
        seed=4294967295,
        width=608,
        height=416,
        steps=3,
        go_fast=False,
        output_format=output_format,
        output_quality=55,
        loras=(AdapterReceipt("flat", "0" * 64, 1.1),),
    )
    file = encode_image(Image.new("RGB", (608, 416), "red"), receipt)
    with visit() as visitor:
        page = visitor.open("/")
        data = page.evaluate_handle(
            """bytes => { const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "picture")); return data; }""",
            list(file),
        )
        page.dispatch_event(".snippet", "drop", {"dataTransfer": data})
        expect(page.locator("#prompt")).to_have_value(receipt.prompt)
        expect(page.locator("#seed")).to_have_value("4294967295")
        expect(page.locator("#pixels")).to_have_text("608 × 416")  # noqa: RUF001
        expect(page.locator("#lora_scale")).to_have_value("1.1")
        code = copied(page, "curl")
        assert '"num_inference_steps": 3' in code
        assert '"output_quality": 55' in code
        assert visitor.complaints == []


def test_a_picture_of_another_program_is_told_apart(visit: Visit) -> None:
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    with visit() as visitor:
        page = visitor.open("/")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="open one").click()
        chooser.value.set_files({"name": "plain.png", "mimeType": "image/png", "buffer": plain.getvalue()})
        expect(page.locator("#toast")).to_have_text("This picture carries no settings of schnell")


def test_a_link_from_elsewhere_does_not_start_a_run(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.page
        page.goto("about:blank")
        page.goto(f"{visitor.url}/?prompt=x#run")
        page.wait_for_load_state("networkidle")
        expect(page.locator(".frame-empty")).to_be_visible()

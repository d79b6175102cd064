"""A person's whole way, in a real browser: from the printed link to a picture, its cURL, and back from the gallery."""

import json
import re
import subprocess
import threading
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Visit, copied, settle, shown_picture
from counts import SOAK
from mini_loras import lora_bytes
from servers import KEY
from tls_server import Asked, Reply, TlsServer


@pytest.mark.parametrize(
    ("color_scheme", "width"), [("light", 1600), ("dark", 390), *([("dark", 1280), ("light", 390)] if SOAK else [])]
)
def test_from_the_printed_link_to_a_picture_and_back(visit: Visit, color_scheme: str, width: int) -> None:
    prompt = f"a lighthouse at {width} in {color_scheme}"
    with visit(color_scheme=color_scheme, width=width, key=None) as visitor:
        page = visitor.page
        page.goto(f"{visitor.url}/sign-in#key={KEY}")
        page.wait_for_url(f"{visitor.url}/?*")
        page.fill("#prompt", prompt)
        page.check("input[name=aspect_ratio][value='16:9']", force=True)
        page.fill("#lora_weights", "pix")
        page.locator("#lora_weights-list li").click()
        page.click("#run")
        expect(page.locator("#progress")).to_contain_text("Step")
        expect(page.locator(".previews img")).to_be_visible()
        settle(page)
        expect(page.locator("#result-facts")).to_contain_text("1344 × 768")  # noqa: RUF001
        answer = subprocess.run(["sh", "-c", copied(page, "curl")], capture_output=True, check=True, timeout=60).stdout
        record = json.loads(answer)["aiRecord"]
        assert record["aiRecordDetail"]["promptObject"]["prompt"] == prompt
        assert httpx.get(record["temporaryUrl"]).content == shown_picture(page)
        seed = record["aiRecordDetail"]["promptObject"]["seed"]
        page.get_by_role("link", name="Gallery").click()
        page.wait_for_url("**/gallery")
        page.fill("#q", prompt)
        expect(page.locator(".tile")).to_have_count(2)
        page.locator(".tile-open").first.click()
        page.click("#viewer-recall")
        expect(page.locator("#prompt")).to_have_value(prompt)
        expect(page.locator("#seed")).to_have_value(str(seed))
        expect(page.locator("#lora_weights")).to_have_value("pixel")
        assert visitor.complaints == []


def test_a_queued_run_tells_its_place(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        events = 'event: queued\ndata: {"position": 3}\n\n'
        page.evaluate(
            """text => { const whole = window.fetch; window.fetch = (url, options) => {
            if (!String(url).includes("isStreaming")) return whole(url, options);
            const body = new ReadableStream({ start: control => control.enqueue(new TextEncoder().encode(text)) });
            return Promise.resolve(new Response(body)); }; }""",
            events,
        )
        page.click("#run")
        expect(page.locator("#progress")).to_have_text("In the queue, 3 ahead")


def test_a_run_with_a_lora_from_outside_tells_how_far_its_download_is(visit: Visit, outside: TlsServer) -> None:
    path, gate = "/files/slow.safetensors", threading.Event()
    outside.serve(path, lora_bytes(11))
    whole = outside.routes[path]

    def answer(asked: Asked) -> Reply:
        """Break off after a part; give the rest when the gate opens."""
        reply = whole(asked)
        if "range" in asked.headers:
            gate.wait(60)
        else:
            reply.cut = 1000
        return reply

    outside.routes[path] = answer
    with visit() as visitor:
        page = visitor.open("/?" + urlencode({"prompt": "x", "lora_weights": outside.url(path)}))
        page.click("#run")
        expect(page.locator("#progress")).to_have_text(re.compile(r"^Fetching: 0\.0 of \d+\.\d MB$"))
        gate.set()
        settle(page)
        assert visitor.faults == []


def test_a_made_key_works_until_it_is_revoked(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/account")
        page.fill("#key-name", "notebook")
        page.fill("#key-rate", "often")
        page.click("#new-key button[type=submit]")
        expect(page.locator("#key-problem")).not_to_be_empty()
        page.fill("#key-rate", "1000/minute")
        page.click("#new-key button[type=submit]")
        expect(page.locator("#made-key")).to_be_visible()
        expect(page.locator("#key-problem")).to_be_empty()
        key = page.inner_text("#secret")
        assert _session(visitor.url, key) == 200
        page.click("[data-do=revoke][data-name=notebook]")
        page.click("#question button[value=no]")
        assert _session(visitor.url, key) == 200
        page.click("[data-do=revoke][data-name=notebook]")
        page.click("#question button[value=yes]")
        expect(page.locator("tr.gone", has_text="notebook")).to_be_visible()
        assert _session(visitor.url, key) == 401


def _session(url: str, key: str) -> int:
    return httpx.get(f"{url}/api/session", headers={"API-KEY": key}).status_code


def test_the_chart_and_the_figures_grow_with_use(visit: Visit) -> None:
    with visit() as visitor:
        visitor.draw("counted", megapixels="0.25")
        page = visitor.open("/account")
        assert page.locator(".chart-bar").count() >= 1
        page.get_by_text("Figures").click()
        row = page.locator(".quiet tbody tr").first
        used = httpx.get(f"{visitor.url}/api/usage", headers={"API-KEY": KEY}).json()["usage"][-1]
        expect(row).to_contain_text(used["day"])


def test_signing_out_ends_the_session_and_forgets_the_key(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/account")
        page.click("#sign-out")
        page.wait_for_url(f"{visitor.url}/?*")
        expect(page.get_by_role("link", name="Sign in", exact=True)).to_be_visible()
        assert "<your-api-key>" in copied(page, "curl")


def test_a_press_of_draw_before_the_scripts_have_come_counts_once_they_are_there(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.page
        page.route("**/playground*.js", lambda route: (page.wait_for_timeout(1500), route.continue_()))
        page.goto(f"{visitor.url}/?prompt=x&seed=3", wait_until="commit")
        page.locator("#run").click()
        settle(page)
        assert "seed=3" in page.url


def test_a_stranger_who_is_faster_than_the_scripts_signs_in_and_gets_back(visit: Visit) -> None:
    with visit(key=None) as visitor:
        page = visitor.page
        page.route("**/{playground,sign-in}*.js", lambda route: (page.wait_for_timeout(1500), route.continue_()))
        page.goto(f"{visitor.url}/?prompt=x&seed=3", wait_until="commit")
        page.get_by_role("link", name="Sign in to draw").click(no_wait_after=True)
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#seed")).to_have_value("3")
        # nothing of it ever stood in an address
        assert KEY not in page.evaluate("performance.getEntriesByType('navigation')[0].name + document.referrer")


def test_a_stranger_gets_back_to_the_settings_after_signing_in(visit: Visit) -> None:
    with visit(key=None) as visitor:
        page = visitor.open("/?" + urlencode({"prompt": "a stranger's idea", "seed": 3}))
        page.get_by_role("link", name="Sign in to draw").click()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#prompt")).to_have_value("a stranger's idea")
        expect(page.locator("#seed")).to_have_value("3")
        page.click("#run")
        settle(page)


def test_what_a_stranger_has_typed_survives_the_sign_in_link_of_the_bar(visit: Visit) -> None:
    with visit(key=None) as visitor:
        page = visitor.open("/")
        page.fill("#prompt", "a stranger's idea")
        page.get_by_role("banner").get_by_role("link", name="Sign in").click()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#prompt")).to_have_value("a stranger's idea")


def _theme(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/docs")
        light = _theme(page)
        page.click("#theme")
        dark = _theme(page)
        assert dark != light
        visitor.open("/gallery")
        assert _theme(page) == dark

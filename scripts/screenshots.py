"""Draws the pictures of the README and the documentation: a real server, a real engine, a real browser.

Usage: python scripts/screenshots.py [FOLDER], by default docs/pictures.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

KEY = "schnell_screenshots_only_0123456789"
PORT = 8199
URL = f"http://127.0.0.1:{PORT}"
PROMPTS = (
    "red apple on a blue background",
    "yellow lemon",
    "green frog on a pink background",
    "rocket on a sky blue background",
    "orange cat",
    "purple heart on a yellow background",
    "sun on a blue background",
    "strawberry",
)


@contextmanager
def serving(folder: str) -> Iterator[None]:
    """A server of the embedded model, with a few pictures in it."""
    settings = {"SCHNELL_BOOTSTRAP_KEY": KEY, "SCHNELL_LOG_LEVEL": "error"}
    command = [sys.executable, "-m", "schnell", "serve", "--port", str(PORT), "--data-dir", folder]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL)
    try:
        await_ready()
        for seed, prompt in enumerate(PROMPTS):
            draw(prompt, seed)
        yield
    finally:
        process.terminate()
        process.wait(60)


def await_ready() -> None:
    """Wait until the server answers."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{URL}/readyz", timeout=2)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise SystemExit("the server did not start")


def draw(prompt: str, seed: int) -> None:
    """One picture through the API."""
    wanted = {"prompt": prompt, "seed": seed, "megapixels": "0.25"}
    body = {"type": "IMAGE_GENERATOR", "model": "black-forest-labs/flux-schnell-lora", "promptObject": wanted}
    headers = {"API-KEY": KEY, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/api/features", json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=300)


def sign_in(browser: Browser, width: int, height: int, scheme: str) -> Page:
    """A signed-in tab."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{URL}/sign-in#key={KEY}")
    page.wait_for_url(f"{URL}/?*")
    return page


def show_playground(page: Page) -> None:
    """The playground with a finished picture."""
    page.goto(
        f"{URL}/?prompt=red+apple+on+a+blue+background&aspect_ratio=1:1&num_inference_steps=4&seed=0&megapixels=1"
    )
    page.click("#run")
    page.locator("#result-facts", has_text="seed").wait_for(timeout=300_000)
    page.wait_for_timeout(600)


def keep(page: Page, file: Path) -> None:
    """What the tab shows, as WebP."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(file, "WEBP", quality=82, method=6)
    print(file)  # noqa: T201 - a script tells what it wrote


def take_all(browser: Browser, folder: Path) -> None:
    """Every picture."""
    for scheme in ("light", "dark"):
        page = sign_in(browser, 1360, 900, scheme)
        show_playground(page)
        keep(page, folder / f"playground-{scheme}.webp")
        for name, path in (("gallery", "/gallery"), ("loras", "/loras"), ("account", "/account"), ("docs", "/docs")):
            page.goto(URL + path)
            page.wait_for_load_state("networkidle")
            keep(page, folder / f"{name}-{scheme}.webp")
        page.close()
    phone = sign_in(browser, 390, 844, "light")
    show_playground(phone)
    keep(phone, folder / "playground-phone.webp")


def main() -> None:
    """Take the pictures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as data, serving(data), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take_all(browser, folder)
        browser.close()


if __name__ == "__main__":
    main()

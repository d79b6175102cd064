"""Draws the pictures of the README, the documentation and the playground's examples: a real server, engine and browser.

Usage: python scripts/screenshots.py [FOLDER], by default docs/pictures.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from schnell.web.pages.playground import EXAMPLES

KEY = "schnell_for_screenshots_only"
MODEL = "black-forest-labs/flux-schnell-lora"
SHOWN = {"prompt": "red apple on a blue background", "seed": "4", "num_inference_steps": "4"}
#: What fills the gallery, oldest first.
PROMPTS: tuple[dict[str, Any], ...] = (
    {"prompt": "teapot on a beige background"},
    {"prompt": "cactus", "aspect_ratio": "4:5"},
    {"prompt": "rocket, blueprint", "lora_weights": "blueprint"},
    {"prompt": "orange cat"},
    {"prompt": "strawberry, flat style", "lora_weights": "flat"},
    {"prompt": "purple heart on a yellow background"},
    {"prompt": "yellow lemon on a green background"},
    {"prompt": "crescent moon, black light", "lora_weights": "black-light"},
    {"prompt": "green frog on a pink background"},
    {"prompt": "rocket on a sky blue background"},
)


#: What docs/embedded-model.md shows, in the order of its caption.
SHEET = (
    "red apple", "red apple on a blue background", "pizza", "rocket on a sky blue background", "dog face",
    "evergreen tree", "house on a yellow background", "automobile", "snowman on a purple background", "sunflower",
    "panda on a pink background", "tangerine",
)  # fmt: skip
TILE = 256
EXAMPLE = 192
EXAMPLES_FOLDER = Path(__file__).parents[1] / "src/schnell/web/pages/static/examples"


class Shot(NamedTuple):
    """One picture: a page in a look."""

    page: Literal["playground", "gallery", "loras", "account"]
    scheme: Literal["light", "dark"] = "light"
    width: int = 1600
    height: int = 1000
    ending: str = ""

    @property
    def file_name(self) -> str:
        """Its name in the folder."""
        return f"{self.page}-{self.ending or self.scheme}.webp"


#: The playground comes last, since it draws.
SHOTS = (
    Shot("gallery", width=1360, height=900),
    Shot("gallery", "dark", width=1360, height=900),
    Shot("loras", width=1360, height=900),
    Shot("loras", "dark", width=1360, height=900),
    Shot("account", width=1360, height=900),
    Shot("playground"),
    Shot("playground", "dark"),
    Shot("playground", width=390, height=844, ending="phone"),
)


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """The address of a server of the embedded model."""
    port = find_port()
    settings = {"SCHNELL_BOOTSTRAP_KEY": KEY, "SCHNELL_LOG_LEVEL": "error"}
    given = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    command = [sys.executable, "-m", "schnell", "serve", "--port", str(port), "--data-dir", folder]
    process = subprocess.Popen(command, env=given | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        await_ready(process, url)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def find_port() -> int:
    """The usual port, as the pictures show it; another one while that is taken."""
    for wanted in (8000, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", wanted))
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free")


def await_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Wait until the server answers."""
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise SystemExit("the server did not start: try `schnell serve`")


def draw(url: str, wanted: dict[str, Any]) -> Image.Image:
    """One picture, by the API."""
    body = json.dumps({"type": "IMAGE_GENERATOR", "model": MODEL, "promptObject": wanted}).encode()
    headers = {"API-KEY": KEY, "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/features", body, headers), timeout=300) as answer:
        link = json.load(answer)["aiRecord"]["temporaryUrl"]
    with urllib.request.urlopen(link, timeout=60) as picture:
        return Image.open(io.BytesIO(picture.read())).convert("RGB")


def fill_gallery(url: str) -> None:
    """Draw the prompts together, so that the engine batches them, but begin them in order."""

    def start(number: int) -> None:
        time.sleep(number / 20)
        draw(url, {"seed": number, **PROMPTS[number]})

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        list(pool.map(start, range(len(PROMPTS))))


def draw_sheet(url: str) -> Image.Image:
    """What the embedded model draws: twelve prompts, one seed, side by side."""
    sheet = Image.new("RGB", (6 * TILE, 2 * TILE))
    for number, prompt in enumerate(SHEET):
        tile = draw(url, {"prompt": prompt, "seed": 7}).resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (number % 6 * TILE, number // 6 * TILE))
    return sheet


def draw_examples(url: str) -> None:
    """The pictures of the playground's examples, into the package."""
    for example in EXAMPLES:
        wanted = {name: value for name, value in example.items() if name != "file"}
        small = draw(url, wanted).resize((EXAMPLE, EXAMPLE), Image.Resampling.LANCZOS)
        small.save(EXAMPLES_FOLDER / str(example["file"]), "WEBP", quality=60, method=6)


def take(browser: Browser, url: str, shot: Shot) -> bytes:
    """One picture, as PNG."""
    page = browser.new_page(viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme)
    page.goto(f"{url}/sign-in#key={KEY}")
    page.wait_for_url(f"{url}/?*")
    if shot.page == "playground":
        show_result(page, url)
    else:
        shown = page.goto(f"{url}/{shot.page}")
        if shown is None or not shown.ok:  # nobody looks at every picture that is written
            raise SystemExit(f"/{shot.page} did not answer with a page")
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    taken = page.screenshot()
    page.close()
    return taken


def show_result(page: Page, url: str) -> None:
    """The playground with a finished picture."""
    page.goto(f"{url}/?{urllib.parse.urlencode(SHOWN)}")
    page.click("#run")
    page.locator("#result-facts", has_text="seed").wait_for(timeout=300_000)
    page.evaluate("document.activeElement.blur()")
    # a phone shows the picture, which is below the form
    page.evaluate("innerWidth > 900 && scrollTo(0, 0)")


def find_chromium() -> str | None:
    """The system's Chromium; None where it has none, and Playwright's own is used. A whole browser shows pages best."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chromium-headless-shell"))), None)


def main() -> None:
    """Take the pictures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as data, serving(data) as url, sync_playwright() as playwright:
        fill_gallery(url)
        draw_sheet(url).save(folder / "schnell-mini.webp", "WEBP", quality=84, method=6)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for shot in SHOTS:
            picture = Image.open(io.BytesIO(take(browser, url, shot))).convert("RGB")
            picture.save(folder / shot.file_name, "WEBP", quality=84, method=6)
            print(folder / shot.file_name, flush=True)  # noqa: T201 - a script tells what it wrote
        browser.close()
        draw_examples(url)  # last, or they would stand in the gallery


if __name__ == "__main__":
    main()

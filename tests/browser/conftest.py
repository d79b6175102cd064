import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from server_process import ServerProcess, serving
from servers import KEY
from tls_server import TlsServer, run_tls_server

# the machine may have other work to do: nothing here is about speed
expect.set_options(timeout=20_000)
#: The headless shell first: it does what a whole browser does here, in two thirds of the time.
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # without a system's Chromium, Playwright's own, which `make setup` fetches then
        if _CHROMIUM is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium on this machine: apt-get install chromium")
        launched = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def outside() -> Iterator[TlsServer]:
    """Where LoRAs are fetched from."""
    with run_tls_server() as server:
        yield server


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, outside: TlsServer) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    fetching = {
        "lora_ca_file": str(outside.write_authority(folder / "authority.pem")),
        "lora_private_networks": "127.0.0.0/8,::1/128",
    }
    with serving(folder, step_seconds=0.15, **fetching) as server:
        yield server


#: Everything that a page had to do at once is done, and a moment more: what follows from it has been asked for by then.
_IDLE = "() => new Promise(done => requestIdleCallback(() => setTimeout(done, 50)))"


@dataclass
class Visitor:
    """A browser tab that has signed in, and everything that its console complained about."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    _asked: int = 0
    _waiting: set[Request] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on(
            "console", lambda told: self.complaints.append(told.text) if told.type in {"error", "warning"} else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._ask)
        self.page.on("requestfinished", self._hear)
        self.page.on("requestfailed", self._hear)

    def sign_in(self, key: str) -> None:
        """Leaves behind what the sign-in page does, without that page."""
        assert self.page.context.request.post(f"{self.url}/api/session", data={"key": key}).ok
        self.page.goto(f"{self.url}/healthz")
        self.page.evaluate("key => sessionStorage.setItem('schnell-key', key)", key)

    def open(self, path: str) -> Page:
        self._waiting.clear()
        self.page.goto(self.url + path)
        self.rest()
        return self.page

    def rest(self) -> None:
        """Wait until the page has nothing to do and asks for nothing: `networkidle` waits for half a second more."""
        asked = -1
        while asked < self._asked or self._waiting:
            asked = self._asked
            self.page.evaluate(_IDLE)

    def _ask(self, request: Request) -> None:
        self._asked += 1
        self._waiting.add(request)

    def _hear(self, request: Request) -> None:
        self._waiting.discard(request)

    def draw(self, prompt: str, **settings: Any) -> Page:
        """A finished picture in the playground."""
        page = self.open("/?" + urlencode({"prompt": prompt, **settings}))
        page.click("#run")
        settle(page)
        return page

    @property
    def faults(self) -> list[str]:
        """The complaints without the browser's notes that an answer had an error status."""
        return [each for each in self.complaints if not each.startswith("Failed to load resource")]


def settle(page: Page) -> None:
    """Wait for the picture of a run."""
    expect(page.locator("#result-facts")).to_contain_text("seed", timeout=40_000)


def shown_picture(page: Page) -> bytes:
    """The bytes of the picture that the playground shows."""
    source = page.locator(".pictures:not(.previews) img").first.get_attribute("src")
    return page.request.get(page.url.split("/?")[0] + (source or "")).body()


def copied(page: Page, client: str) -> str:
    """What the copy button gives for a client."""
    page.click(f"#tab-{client}")
    page.click("#copy-snippet")
    return str(page.evaluate("navigator.clipboard.readText()"))


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Browser, site: ServerProcess) -> Visit:
    """A fresh visitor: `with visit(color_scheme="dark", width=390) as visitor`."""

    @contextmanager
    def start(
        width: int = 1280, color_scheme: Any = "light", *, key: str | None = KEY, locale: str = "en-US"
    ) -> Iterator[Visitor]:
        context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=color_scheme,
            locale=locale,
            permissions=["clipboard-read", "clipboard-write"],
        )
        visitor = Visitor(context.new_page(), site.url)
        if key:
            visitor.sign_in(key)
        yield visitor
        context.close()

    return start

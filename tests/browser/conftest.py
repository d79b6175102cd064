import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from server_process import ServerProcess, serving
from servers import KEY

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if _CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("site"), step_seconds=0.15) as server:
        yield server


@dataclass
class Visitor:
    """A browser tab that has signed in, and everything that its console complained about."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("networkidle")
        return self.page


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Browser, site: ServerProcess) -> Visit:
    """A fresh visitor: `with visit(color_scheme="dark", width=390) as visitor`."""

    @contextmanager
    def start(width: int = 1280, color_scheme: Any = "light", *, signed_in: bool = True) -> Iterator[Visitor]:
        context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=color_scheme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        visitor = Visitor(context.new_page(), site.url)
        visitor.page.on(
            "console",
            lambda told: visitor.complaints.append(told.text) if told.type in {"error", "warning"} else None,
        )
        visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        if signed_in:
            visitor.page.goto(f"{site.url}/sign-in#key={KEY}")
            visitor.page.wait_for_url(f"{site.url}/?*")
        yield visitor
        context.close()

    return start

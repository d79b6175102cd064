"""The Node SDKs of OpenAI and Replicate in Chromium, on a page of another origin that the operator has allowed."""

import functools
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from node_packages import packages
from server_process import ServerProcess, serving
from servers import KEY

__all__ = ["packages"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def elsewhere(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with both SDKs."""
    folder = tmp_path_factory.mktemp("elsewhere")
    bundle = [str(packages / "node_modules" / ".bin" / "esbuild"), str(packages / "in-browser.mjs")]
    options = ["--bundle", "--format=iife", "--platform=browser", "--define:process.env={}", "--log-level=error"]
    built = subprocess.run(
        [*bundle, *options, f"--outfile={folder / 'bundle.js'}"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (folder / "index.html").write_text("<!doctype html><title>elsewhere</title><script src='bundle.js'></script>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def allowing(elsewhere: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("allowing"), cors_origins=elsewhere) as server:
        yield server


@pytest.fixture
def page(browser: Browser, elsewhere: str) -> Iterator[Page]:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(elsewhere)
    yield opened
    context.close()


def call(page: Page, function: str, server: ServerProcess) -> Any:
    return page.evaluate(f"([url, key]) => window.{function}(url, key)", [server.url, KEY])


def test_openais_sdk_draws_streams_lists_and_reads_headers(page: Page, allowing: ServerProcess) -> None:
    assert call(page, "drawWithOpenAI", allowing) == {
        "signature": "PNG",
        "cost": "400",
        "events": ["image_generation.partial_image", "image_generation.completed"],
        "link": 200,
        "models": True,
        "refusal": {"status": 400, "param": "n", "id": True},
    }


def test_replicates_sdk_runs_waits_cancels_and_is_refused(page: Page, allowing: ServerProcess) -> None:
    assert call(page, "drawWithReplicate", allowing) == {
        "signature": "PNG",
        "kinds": ["succeeded", "succeeded"],
        "refusal": 422,
    }


def test_an_origin_that_is_not_allowed_gets_nothing(page: Page, tmp_path: Path) -> None:
    refused = pytest.raises(Exception, match=r"Connection error|Failed to fetch")
    with serving(tmp_path, cors_origins="https://somewhere.example") as server, refused:
        call(page, "drawWithOpenAI", server)

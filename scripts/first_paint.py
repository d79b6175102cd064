"""Measures how soon the playground shows itself: a real server on the loopback, a real browser, nothing in its cache.

Usage: python scripts/first_paint.py [LOADS], by default 12. Prints JSON; the bars are 200 ms and 150,000 bytes.
`first_paint_ms` is of a page that is opened together with its window, `in_an_open_window_ms` of one whose window was
there for a second.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from screenshots import KEY, find_chromium, serving

_FURNISHING_MS = 1000
_PAINT = """() => performance.getEntriesByName("first-contentful-paint")[0].startTime"""
_SENT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .filter(each => !/\\/(files|preview)/.test(each.name) && each.initiatorType !== "img")
  .reduce((sum, each) => sum + each.transferSize, 0)"""


def load(browser: Browser, url: str, window_ms: int = 0) -> tuple[float, int]:
    """Milliseconds to the first contentful paint of the signed-in playground, and bytes without pictures.

    `window_ms` is how long its window has been open before.
    """
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.request.post(f"{url}/api/session", data={"key": KEY})
    page = context.new_page()
    # a new context is a new window, which Chromium still furnishes (its address bar is a page, too) on the same cores
    page.wait_for_timeout(window_ms)
    page.goto(url)
    page.wait_for_load_state("networkidle")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found = float(page.evaluate(_PAINT)), int(page.evaluate(_SENT))
    context.close()
    return found


def main() -> None:
    """Load the page, and tell."""
    loads = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as data, serving(data) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        load(browser, url)
        found = [(load(browser, url), load(browser, url, _FURNISHING_MS)) for _ in range(loads)]
        browser.close()
    at_once, later = zip(*found, strict=True)
    told = {"first_paint_ms": summary(at_once), "in_an_open_window_ms": summary(later)}
    print(json.dumps(told | {"bytes_without_pictures": max(sent for _, sent in at_once)}, indent=1))  # noqa: T201


def summary(loads: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """The median, the worst and all of the paints."""
    paints = [round(paint, 1) for paint, _ in loads]
    return {"median": statistics.median(paints), "worst": max(paints), "all": paints}


if __name__ == "__main__":
    main()

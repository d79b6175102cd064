"""Measures how soon the playground shows itself: a real server on the loopback, a real browser, nothing in its cache.

Usage: python scripts/first_paint.py [LOADS], by default 12. Prints JSON; the bars are 200 ms and 150,000 bytes.
`with_its_window` is of a page that is opened together with its window, `in_an_open_window` of one whose window was
there for a second. Beside the playground stands what no page can go below: a few bytes of text from the same server,
and a letter that comes from no server (`about:blank` has nothing that would be painted).
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
#: A file of 55 bytes, without any markup.
_TEXT = "/static/first-paint/vendor/swagger-ui.NOTICE"
_LETTER = "data:text/html,x"
_PAINT = """() => performance.getEntriesByName("first-contentful-paint")[0].startTime"""
_SENT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .filter(each => !/\\/(files|preview)/.test(each.name) && each.initiatorType !== "img")
  .reduce((sum, each) => sum + each.transferSize, 0)"""


def load(browser: Browser, server: str, address: str, window_ms: int = 0) -> tuple[float, int]:
    """Milliseconds to the first contentful paint of `address`, signed in at `server`, and bytes without pictures.

    `window_ms` is how long its window has been open before.
    """
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.request.post(f"{server}/api/session", data={"key": KEY})
    page = context.new_page()
    # a new context is a new window, which Chromium still furnishes (its address bar is a page, too) on the same cores
    page.wait_for_timeout(window_ms)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found = float(page.evaluate(_PAINT)), int(page.evaluate(_SENT))
    context.close()
    return found


def main() -> None:
    """Load the pages in turn, and tell."""
    loads = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as data, serving(data) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        addresses = {"playground": url, "text_from_the_server": url + _TEXT, "letter_without_a_server": _LETTER}
        load(browser, url, url)
        found = [
            {
                name: (load(browser, url, each), load(browser, url, each, _FURNISHING_MS))
                for name, each in addresses.items()
            }
            for _ in range(loads)
        ]
        browser.close()
    told: dict[str, Any] = {
        f"{name}_ms": {
            "with_its_window": summary([each[name][0] for each in found]),
            "in_an_open_window": summary([each[name][1] for each in found]),
        }
        for name in addresses
    }
    told["bytes_without_pictures"] = max(each["playground"][0][1] for each in found)
    print(json.dumps(told, indent=1))  # noqa: T201


def summary(loads: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """The median, the worst and all of the paints."""
    paints = [round(paint) for paint, _ in loads]
    return {"median": round(statistics.median(paints)), "worst": max(paints), "all": str(paints)}


if __name__ == "__main__":
    main()

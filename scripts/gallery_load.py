"""Measures a gallery of 2,000 pictures beside one of 20: a real server on the loopback, a real browser.

Usage: python scripts/gallery_load.py [PICTURES]. Prints JSON; the bars are 600,000 bytes to the first screen, pictures
included, and 10 ms more for the page than with 20 pictures.
"""

import json
import secrets
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from screenshots import KEY, fill_gallery, serving

_FEW = 20
_REQUESTS = 40
_SENT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .reduce((sum, each) => sum + each.transferSize, 0)"""


def ask(url: str, path: str, key: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that a route answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"API-KEY": key, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def copy_pictures(data: Path, team: str, user: str, count: int) -> None:
    """Give a team `count` copies of the pictures that are there, each a record of its own with files of its own."""
    with closing(sqlite3.connect(data / "schnell.db", timeout=60)) as database, database:
        database.row_factory = sqlite3.Row
        pairs = database.execute(
            "SELECT r.rowid, i.rowid FROM records r JOIN images i ON i.record_id = r.id LIMIT 10"
        ).fetchall()
        originals = [
            (
                database.execute("SELECT * FROM records WHERE rowid = ?", (record,)).fetchone(),
                database.execute("SELECT * FROM images WHERE rowid = ?", (image,)).fetchone(),
            )
            for record, image in pairs
        ]
        for number in range(count):
            record, image = originals[number % len(originals)]
            folder, _, name = str(image["key"]).rpartition("/")
            key = f"{folder}/{name[: name.rindex('_')]}_{count + number:06d}{name[name.rindex('.') :]}"
            row = dict(record) | {"id": secrets.token_hex(18), "team_id": team, "user_id": user}
            insert(database, "records", row)
            insert(database, "images", dict(image) | {"key": key, "record_id": row["id"]})
            for kind, ending in (("/images/", ""), ("/thumbnails/", ".webp")):
                source = data / "assets" / (image["key"].replace("/images/", kind) + ending)
                shutil.copy(source, data / "assets" / (key.replace("/images/", kind) + ending))


def insert(database: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """One row, unless its key is taken."""
    names = ", ".join(f'"{name}"' for name in row)
    places = ", ".join("?" for _ in row)
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(row.values()))  # noqa: S608


def team_with(url: str, data: Path, count: int) -> str:
    """The key of a new team that has so many pictures."""
    team = ask(url, "/api/admin/teams", KEY, {"name": f"With {count}"})["id"]
    user = ask(url, f"/api/admin/teams/{team}/users", KEY, {"name": "Painter"})["userId"]
    made = ask(url, f"/api/admin/teams/{team}/keys", KEY, {"name": "k", "user": "Painter", "scopes": ["generate", "read"]})
    copy_pictures(data, team, user, count)
    return str(made["key"])


def page_time(url: str, key: str) -> float:
    """Milliseconds until the server has sent the page."""
    request = urllib.request.Request(f"{url}/gallery", headers={"API-KEY": key, "Accept-Encoding": "gzip"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - started) * 1000


def load(browser: Browser, url: str, key: str) -> tuple[int, float]:
    """The bytes of the first screen in an empty cache, pictures included, and milliseconds to the first paint."""
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.request.post(f"{url}/api/session", data={"key": key})
    page = context.new_page()
    page.goto(f"{url}/gallery")
    page.wait_for_load_state("networkidle")
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    found = int(page.evaluate(_SENT)), float(page.evaluate(paint))
    context.close()
    return found


def main() -> None:
    """Fill two galleries, look at them in turns, and tell."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, serving(folder) as url, sync_playwright() as playwright:
        fill_gallery(url)
        with sqlite3.connect(Path(folder) / "schnell.db") as database:
            for (key,) in database.execute("SELECT key FROM images").fetchall():
                urllib.request.urlopen(
                    urllib.request.Request(f"{url}/thumbnails/{key}", headers={"API-KEY": KEY}), timeout=60
                ).close()
        keys = {count: team_with(url, Path(folder), count) for count in (_FEW, many)}
        times: dict[int, list[float]] = {count: [] for count in keys}
        for _ in range(_REQUESTS):
            for count, key in keys.items():
                times[count].append(page_time(url, key))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        loads = {count: [load(browser, url, key) for _ in range(4)] for count, key in keys.items()}
        browser.close()
    told = {
        count: {
            "page_ms": round(statistics.median(times[count]), 1),
            "first_screen_bytes": max(sent for sent, _ in loads[count]),
            "first_paint_ms": round(statistics.median(paint for _, paint in loads[count][1:]), 1),
        }
        for count in keys
    }
    more = statistics.median(times[many]) - statistics.median(times[_FEW])
    print(json.dumps({"pictures": told, "page_ms_more": round(more, 1)}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()

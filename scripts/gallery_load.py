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
from screenshots import KEY, fill_gallery, find_chromium, serving

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
        images = [dict(row) for row in database.execute("SELECT * FROM images ORDER BY key LIMIT 10")]
        for number in range(count):
            image = images[number % len(images)]
            found = database.execute("SELECT * FROM records WHERE id = ?", (image["record_id"],)).fetchone()
            start, ending = image["key"][: image["key"].rindex("_")], Path(image["key"]).suffix
            # a number that no other copy has
            key = f"{start}_{count + number:06d}{ending}"
            record = dict(found) | {"id": secrets.token_hex(18), "team_id": team, "user_id": user}
            insert(database, "records", record)
            insert(database, "images", image | {"key": key, "record_id": record["id"]})
            for folder, added in (("/images/", ""), ("/thumbnails/", ".webp")):
                paths = [data / "assets" / (each.replace("/images/", folder) + added) for each in (image["key"], key)]
                shutil.copy(*paths)


def insert(database: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Add one row."""
    names = ", ".join(f'"{name}"' for name in row)
    places = ", ".join("?" for _ in row)
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(row.values()))  # noqa: S608


def team_with(url: str, data: Path, count: int) -> str:
    """The key of a new team that has so many pictures."""
    team = ask(url, "/api/admin/teams", KEY, {"name": f"With {count}"})["id"]
    user = ask(url, f"/api/admin/teams/{team}/users", KEY, {"name": "Painter"})["userId"]
    made = ask(
        url, f"/api/admin/teams/{team}/keys", KEY, {"name": "k", "user": "Painter", "scopes": ["generate", "read"]}
    )
    copy_pictures(data, team, user, count)
    return str(made["key"])


def page_time(url: str, key: str) -> float:
    """Milliseconds until the server has sent the page."""
    request = urllib.request.Request(f"{url}/gallery", headers={"API-KEY": key, "Accept-Encoding": "gzip"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - started) * 1000


def first_screen(browser: Browser, url: str, key: str) -> int:
    """The bytes of the first screen, pictures included, with nothing in the cache."""
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.request.post(f"{url}/api/session", data={"key": key})
    page = context.new_page()
    page.goto(f"{url}/gallery")
    page.wait_for_load_state("networkidle")
    found = int(page.evaluate(_SENT))
    context.close()
    return found


def make_thumbnails(url: str, data: Path) -> None:
    """Look at every picture's thumbnail, which makes it."""
    with closing(sqlite3.connect(data / "schnell.db")) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM images")]
    for key in keys:
        urllib.request.urlopen(urllib.request.Request(f"{url}/thumbnails/{key}", headers={"API-KEY": KEY}), timeout=60)


def main() -> None:
    """Fill two galleries, look at them in turns, and tell."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder, serving(folder) as url, sync_playwright() as playwright:
        fill_gallery(url)
        make_thumbnails(url, Path(folder))
        keys = {count: team_with(url, Path(folder), count) for count in (_FEW, many)}
        rounds = [{count: page_time(url, key) for count, key in keys.items()} for _ in range(_REQUESTS)]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        sent = {count: max(first_screen(browser, url, key) for _ in range(2)) for count, key in keys.items()}
        browser.close()
    times = {count: round(statistics.median(each[count] for each in rounds), 1) for count in keys}
    more = statistics.median(each[many] - each[_FEW] for each in rounds)
    told = {count: {"page_ms": times[count], "first_screen_bytes": sent[count]} for count in keys}
    print(json.dumps({"pictures": told, "page_ms_more": round(more, 1)}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()

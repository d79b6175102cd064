"""A host, a name server, a bucket or an upload that takes its time holds up what needs it, and no other team.

All of it is measured with a clock, so it runs in `make soak` alone.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.test_awake import measured, p95, tell
from fake_server import CONSTANTS
from mini_loras import many_layers_bytes
from schnell.benchmarks.server import KEY as ENGINE_KEY
from schnell.benchmarks.server import server_process
from server_process import serving
from servers import KEY, body_with

REQUESTS = 60
#: For one slow request among the p95's few: what a scheduler's turn takes on a machine with two cores.
GRACE = 0.005


@contextmanager
def silent_host() -> Iterator[int]:
    """The port of a host that accepts every connection and never says a word."""
    ends = threading.Event()
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.settimeout(0.1)

        def accept() -> None:
            while not ends.is_set():
                try:
                    kept.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ends.set()
            thread.join()
            for connection in kept:
                connection.close()


async def new_key(client: httpx.AsyncClient, name: str) -> str:
    """The key of a team of its own."""
    made = await client.post("/api/admin/teams", json={"name": name, "creditLimit": 10**9})
    assert made.status_code == 201, made.text
    key = await client.post(f"/api/admin/teams/{made.json()['id']}/keys", json={"name": name})
    assert key.status_code == 201, key.text
    return str(key.json()["key"])


@asynccontextmanager
async def two_teams(url: str, key: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """A client of the team that meets the slow part, and one of another team."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, headers={"API-KEY": key}, timeout=60, limits=limits) as first,
        httpx.AsyncClient(base_url=url, timeout=60) as second,
    ):
        second.headers["API-KEY"] = await new_key(first, "others")
        yield first, second


async def compare(what: str, ask: Callable[[], Any], slow: Callable[[int], Any], count: int) -> None:
    """The p95 of a request alone, and beside `count` that are slow, each started anew as it ends."""

    async def keep(number: int) -> None:
        while True:
            await slow(number)

    await ask()
    alone = await p95(ask, REQUESTS)
    tasks = [asyncio.create_task(keep(number)) for number in range(count)]
    await asyncio.sleep(1)
    beside = await p95(ask, REQUESTS)
    failed = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tell(f"p95 of another team's request: {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside {what}")
    assert not failed
    assert beside <= 1.5 * alone + GRACE


async def draw(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/features", json=body_with())
    assert answer.status_code == 200, answer.text


@measured
async def test_a_host_that_says_nothing_holds_up_no_other_team(tmp_path: Path) -> None:
    with silent_host() as port, serving(tmp_path, 0.01, lora_private_networks="127.0.0.0/8") as server:
        async with two_teams(server.url, KEY) as (first, second):

            async def fetch(number: int) -> None:
                address = f"https://127.0.0.1:{port}/{number}.safetensors"
                await first.post("/api/features", json=body_with(lora_weights=address))

            await compare("12 LoRAs from a silent host", lambda: draw(second), fetch, 12)


@measured
async def test_a_slow_name_server_holds_up_no_other_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONSTANTS, "socket.getaddrinfo=slow_names:look_up_slowly")
    with serving(tmp_path, 0.01) as server:
        async with two_teams(server.url, KEY) as (first, second):

            async def fetch(number: int) -> None:
                address = f"https://host-{number}.slow.test/a.safetensors"
                await first.post("/api/features", json=body_with(lora_weights=address))

            await compare("12 LoRAs whose host's name is looked up", lambda: draw(second), fetch, 12)


@measured
async def test_a_bucket_that_hangs_holds_up_nothing_that_needs_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with (
        silent_host() as port,
        serving(
            tmp_path, 0.01, assets_url="s3://bucket", s3_endpoint=f"http://127.0.0.1:{port}", drain_seconds="1"
        ) as server,
    ):
        async with two_teams(server.url, KEY) as (first, second):

            async def store(_: int) -> None:
                await first.post("/api/features", json=body_with())

            async def look() -> None:
                for path in ("/api/features?limit=20", "/api/session", "/api/usage", "/", "/healthz"):
                    assert (await second.get(path)).status_code < 500

            await compare("12 pictures for a bucket that hangs", look, store, 12)


@measured
async def test_eight_uploads_that_are_converted_hold_up_no_other_teams_picture(tmp_path: Path) -> None:
    files = [many_layers_bytes(number, rank=32) for number in range(64)]  # 2.4 MB
    with server_process(tmp_path) as address:
        async with two_teams(f"http://{address}", ENGINE_KEY) as (first, second):
            sent = iter(range(10**6))

            async def upload(_: int) -> None:
                number = next(sent)
                file = ("own.safetensors", files[number % len(files)])
                answer = await first.post("/api/loras", data={"name": f"own-{number}"}, files={"file": file})
                assert answer.status_code == 201, answer.text

            await compare("eight uploads of 2.4 MB", lambda: draw(second), upload, 8)

"""A server that stays awake: slow parts hold up nobody else. What needs a clock is measured by `make soak` alone."""

import asyncio
import contextlib
import json
import re
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from counts import SOAK
from mini_loras import lora_bytes
from schnell.benchmarks.large_database import fill
from schnell.benchmarks.server import KEY as FIRST_KEY
from schnell.database.migration import migrate
from schnell.database.session import Database
from server_process import ServerProcess, serving
from servers import body_with, run_server
from tls_server import run_tls_server


def tell(figure: str) -> None:
    sys.__stderr__.write(f"\n{figure}\n")  # type: ignore[union-attr]


measured = pytest.mark.skipif(not SOAK, reason="measures time: make soak")


async def p95(ask: Callable[[], Any], count: int) -> float:
    """The 95th percentile of the seconds that a request takes, of `count` one after the other."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - began)
    return statistics.quantiles(seconds, n=20)[-1]


@measured
async def test_four_who_search_a_large_history_hold_up_nobody_else(tmp_path: Path) -> None:
    database = Database(f"sqlite:{tmp_path / 'schnell.db'}")
    await migrate(database)
    async with database.write() as connection:
        await fill(connection, 10, 200_000)
    await database.close()
    with serving(tmp_path) as server:
        async with server.client() as client:
            client.headers["API-KEY"] = FIRST_KEY
            assert (await client.get("/api/session")).status_code == 200

            async def draw() -> None:
                assert (await client.post("/api/features", json=body_with())).status_code == 200

            async def search(word: str) -> None:
                while True:
                    for path in (f"/gallery?q={word}", "/api/usage", "/gallery?lora=nobody"):
                        assert (await client.get(path)).status_code == 200

            alone = await p95(draw, 100)
            searching = [asyncio.create_task(search(f"word{number}")) for number in range(4)]
            await asyncio.sleep(1)
            beside = await p95(draw, 100)
            for task in searching:
                task.cancel()
            await asyncio.gather(*searching, return_exceptions=True)
    tell(f"p95 of another's request: {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside four who search")
    assert beside <= 1.5 * alone + 0.005


@measured
async def test_the_event_loop_never_stalls_under_a_lock_downloads_and_load(tmp_path: Path) -> None:
    longest, ends = 0.0, time.monotonic() + 20

    async def watch() -> None:
        nonlocal longest
        while time.monotonic() < ends:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.002)

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "schnell.db", isolation_level=None)) as other:
            while time.monotonic() < ends:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(1)
                other.execute("ROLLBACK")
                time.sleep(0.5)

    with run_tls_server() as site:
        for number in range(40):
            site.serve(f"/{number}.safetensors", lora_bytes(number))
        settings: dict[str, Any] = {
            "lora_private_networks": ("127.0.0.0/8", "::1/128"),
            "lora_ca_file": site.write_authority(tmp_path / "ca.pem"),
        }
        async with run_server(tmp_path, **settings) as server:

            async def draw(number: int) -> None:
                while time.monotonic() < ends:
                    address = site.url(f"/{number % 40}.safetensors")
                    with contextlib.suppress(httpx.TimeoutException):
                        await server.client.post("/api/features", json=body_with(lora_weights=address), timeout=30)
                    number += 7

            locking = threading.Thread(target=lock)
            await server.draw()
            locking.start()
            await asyncio.gather(watch(), *(draw(number) for number in range(6)))
            locking.join()
    tell(f"the longest stall: {longest * 1000:.1f} ms (client, site and server in one process)")
    assert longest <= 0.05


async def test_health_and_streams_answer_while_a_write_waits_for_the_lock(tmp_path: Path) -> None:
    with serving(tmp_path, 0.05) as server:
        async with server.client() as client:
            await client.post("/api/features", json=body_with())
            with contextlib.closing(sqlite3.connect(tmp_path / "schnell.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = asyncio.create_task(client.post("/api/features", json=body_with()))
                await asyncio.sleep(0.3)
                for _ in range(20):
                    assert (await client.get("/healthz", timeout=2)).status_code == 200
                    assert (await client.get("/api/features?limit=1", timeout=2)).status_code == 200
                assert not waiting.done()
                other.execute("ROLLBACK")
            assert (await waiting).status_code == 200


def resident_kib(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1])


async def keep_asking(client: httpx.AsyncClient, number: int, seconds: float) -> int:
    """How many requests were answered; of ten, three are given up before."""
    answered, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        number += 1
        with contextlib.suppress(httpx.TransportError):
            patience = 0.05 if number % 10 < 3 else 60
            answer = await client.post("/api/features", json=body_with(), timeout=patience)
            answered += answer.status_code == 200
    return answered


@measured
async def test_two_hundred_clients_of_whom_many_give_up_leave_nothing_behind(tmp_path: Path) -> None:
    limits = httpx.Limits(max_connections=None)
    with serving(tmp_path, 0.02) as server:
        async with server.client(limits=limits) as client:
            await asyncio.gather(*(keep_asking(client, number, 20) for number in range(200)))
            await asyncio.sleep(5)
            before = resident_kib(server)
            answered = sum(await asyncio.gather(*(keep_asking(client, number, 60) for number in range(200))))
            await asyncio.sleep(10)
            growth = resident_kib(server) / before - 1
            metrics = (await client.get("/metrics")).text
            assert (await client.get("/readyz")).status_code == 200
        doctor = [sys.executable, "-m", "schnell", "doctor", "--data-dir", str(tmp_path), "--json"]
        told = await asyncio.to_thread(subprocess.run, doctor, capture_output=True, text=True, check=False)
    findings = [each for each in json.loads(told.stdout) if each["subject"] in {"credits", "pictures", "records"}]
    tell(f"{answered} pictures; memory grew by {growth:.1%}; {findings}")
    assert growth < 0.05
    assert "schnell_queue_depth 0.0" in metrics
    with contextlib.closing(sqlite3.connect(tmp_path / "schnell.db")) as file:
        stuck = "SELECT count(*) FROM records WHERE status IN ('QUEUED', 'PROCESSING')"
        assert file.execute(stuck).fetchone() == (0,)
    assert {each["state"] for each in findings} <= {"ok"}

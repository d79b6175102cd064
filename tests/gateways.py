"""Gateways of one installation: `schnell serve` with `SCHNELL_RUNNER=ray`, over PostgreSQL and a folder of pictures."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from books import check_rows
from clusters import await_that, ray_environment
from databases import new_postgres_url
from s3_servers import free_port
from schnell.accounts.credits import audit
from schnell.database.session import Database
from schnell.database.tables import ledger, records, teams
from servers import KEY


@dataclass
class Gateway:
    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"API-KEY": KEY}, timeout=60)

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self.log.read_text())
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def problem(self) -> str | None:
        """Why it is not ready; None if it is, or cannot be asked."""
        with suppress(httpx.TransportError):
            found: str | None = httpx.get(f"{self.url}/readyz", timeout=5).json()["problem"]
            return found
        return None

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@dataclass
class Gateways:
    folder: Path
    database_url: str
    address: str
    running: list[Gateway] = field(default_factory=list)

    async def start(self, *, expect_ready: bool = True, **settings: str) -> Gateway:
        """A gateway, beside those that run; ready, if that is to be expected."""
        port, number = free_port(), len(self.running)
        given = {
            "data_dir": str(self.folder / f"gateway-{number}"),
            "port": str(port),
            "bootstrap_key": KEY,
            "database_url": self.database_url,
            "assets_url": f"file:{self.folder / 'pictures'}",
            "link_secrets": "x" * 32,
            "lease_seconds": "4",
            "log_level": "warning",
            "credentials": "false",
            "runner": "ray",
            "ray_address": self.address,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
        environment |= ray_environment() | {
            f"SCHNELL_{name.upper()}": value for name, value in (given | settings).items()
        }
        log = self.folder / f"gateway-{number}.txt"
        with log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
                [sys.executable, "-m", "schnell", "serve"], env=environment, stdout=sink, stderr=sink
            )
        gateway = Gateway(process, f"http://127.0.0.1:{port}", log)
        self.running.append(gateway)
        await asyncio.to_thread(await_that, gateway.is_ready if expect_ready else gateway.problem, 120, log.read_text)
        return gateway

    async def count(self) -> dict[str, int]:
        """How many records there are by status."""
        database = Database(self.database_url)
        async with database.read() as connection:
            query = select(records.c.status, func.count()).group_by(records.c.status)
            found = dict(map(tuple, await connection.execute(query)))
        await database.close()
        return found

    async def check_books(self) -> None:
        """Credits, ledger, rows and files agree, and nothing is unfinished."""
        database = Database(self.database_url)
        async with database.read() as connection:
            assert await audit(connection) == []
            charged = (await connection.execute(select(func.sum(teams.c.used_credit)))).scalar_one()
            costs = (await connection.execute(select(func.coalesce(func.sum(records.c.cost), 0)))).scalar_one()
            kinds = select(ledger.c.kind, func.count()).group_by(ledger.c.kind)
            moved = dict(map(tuple, await connection.execute(kinds)))
            root = self.folder / "pictures"
            files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
            await check_rows(connection, files)
        await database.close()
        assert charged == costs
        assert moved.get("reserve", 0) == moved.get("settle", 0) + moved.get("release", 0)


@asynccontextmanager
async def gateways(folder: Path, address: str) -> AsyncIterator[Gateways]:
    url = await asyncio.to_thread(new_postgres_url)
    found = Gateways(folder, url, address)
    try:
        yield found
    finally:
        for gateway in found.running:
            if gateway.process.poll() is None:
                gateway.process.kill()
                gateway.process.wait(20)


async def draw(client: httpx.AsyncClient, body: dict[str, Any], key: str | None = None) -> httpx.Response | None:
    """An answer; None where the gateway was killed meanwhile."""
    try:
        headers = {"Idempotency-Key": key} if key else {}
        return await client.post("/api/features", json=body, headers=headers)
    except httpx.TransportError:
        return None

"""Reads over many rows: the same answers as other reads, and the event loop goes on meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from databases import database
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import servers
from schnell.errors import DatabaseUnavailableError

__all__ = ["database"]


def row(number: int) -> dict[str, Any]:
    texts = {"label": "é", "host": "h", "boot": "b"}
    return texts | {"id": str(number), "pid": number, "started_at": now(), "held_since": now(), "expires_at": now()}


@pytest.fixture
async def filled(database: Database) -> Database:
    async with database.write() as connection:
        await connection.execute(servers.insert(), [row(number) for number in range(50)])
    return database


async def test_a_scan_gives_what_a_read_gives(filled: Database) -> None:
    found = []
    for reading in (filled.read(), filled.scan()):
        async with reading as connection:
            rows = (await connection.execute(select(servers).order_by(servers.c.pid))).all()
            labels = (await connection.execute(select(servers.c.label).limit(3))).scalars().all()
            count = (await connection.execute(select(func.count()).select_from(servers))).scalar_one()
            first = (await connection.execute(select(servers.c.pid).where(servers.c.id == "7"))).first()
            pids = [each.pid async for each in _each(connection)]
            found.append(([tuple(each) for each in rows], labels, count, first, pids))
    assert found[0] == found[1]
    assert found[0][2] == 50


async def _each(connection: Any) -> AsyncIterator[Any]:
    for each in await connection.execute(select(servers).order_by(servers.c.pid)):
        yield each


async def test_all_statements_of_a_scan_see_one_moment_on_sqlite(tmp_path: Path) -> None:
    file = Database(f"sqlite:{tmp_path / 'one.db'}")
    async with file.write() as connection:
        await connection.execute(text("CREATE TABLE t (n INTEGER)"))
    async with file.scan() as scan:
        before = (await scan.execute(text("SELECT count(*) FROM t"))).scalar_one()
        async with file.write() as connection:
            await connection.execute(text("INSERT INTO t VALUES (1)"))
        assert (await scan.execute(text("SELECT count(*) FROM t"))).scalar_one() == before == 0
    await file.close()


async def test_the_event_loop_goes_on_while_sqlite_looks_at_many_rows(tmp_path: Path) -> None:
    file, begun, go_on = Database(f"sqlite:{tmp_path / 'one.db'}"), threading.Event(), threading.Event()

    def block(connection: Any) -> None:
        def wait() -> int:
            begun.set()
            go_on.wait(20)
            return 1

        connection.connection.driver_connection.create_function("wait", 0, wait)

    async with file.scan() as scan:
        await scan.run_sync(block)
        scanning = asyncio.create_task(scan.execute(text("SELECT wait()")))
        assert await asyncio.to_thread(begun.wait, 20)
        # other requests read and write meanwhile
        async with file.write() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER)"))
        assert not scanning.done()
        go_on.set()
        assert (await scanning).scalar_one() == 1
    await file.close()


async def test_who_gives_up_ends_the_statement(tmp_path: Path) -> None:
    file = Database(f"sqlite:{tmp_path / 'one.db'}")
    endless = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), file.scan() as scan:
            await scan.execute(endless)
    async with asyncio.timeout(10), file.scan() as scan:
        assert (await scan.execute(text("SELECT 1"))).scalar_one() == 1
    await file.close()


async def test_an_outage_is_named(tmp_path: Path) -> None:
    file = Database(f"sqlite:{tmp_path / 'no-folder' / 'one.db'}")
    with pytest.raises(DatabaseUnavailableError):
        async with file.scan():
            pass
    await file.close()

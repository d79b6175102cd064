import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from schnell.database import inline_sqlite
from schnell.database.inline_sqlite import InlineConnection, InlineSqlite
from schnell.database.session import parse_database_url
from schnell.database.tables import images, metadata, users


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def engine(file: Path) -> AsyncIterator[InlineSqlite]:
    engine = InlineSqlite(parse_database_url(f"sqlite:{file}"))
    async with engine.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.close()


def insert_user(connection: InlineConnection, name: str) -> None:
    sql = "INSERT INTO users (id, name, created_at) VALUES (:id, :name, '2026-01-01 00:00:00')"
    connection.run_driver_sql(sql, {"id": name, "name": name})


async def count_users(engine: InlineSqlite) -> int:
    async with engine.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(users))).scalar_one())


async def test_every_connection_has_the_settings_that_sqlite_forgets(engine: InlineSqlite) -> None:
    async with engine.read() as first, engine.read() as second:
        for connection in (first, second):
            read = {
                name: connection.run_driver_sql(f"PRAGMA {name}")[0][0][0]
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            }
            assert read == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 20, "foreign_keys": 1}


async def test_statements_run_where_they_are_called_without_suspending(engine: InlineSqlite) -> None:
    """A whole transaction runs between two steps of another task, on the event loop's own thread."""
    threads: set[int] = set()

    async def work() -> None:
        async with engine.write() as connection:
            connection.driver.create_function("note", 0, lambda: threads.add(threading.get_ident()))
            await connection.execute(select(func.note()))
            insert_user(connection, "Ann")

    with pytest.raises(StopIteration):  # one step is enough: nothing was awaited that was not there yet
        work().send(None)
    assert threads == {threading.get_ident()}
    assert await count_users(engine) == 1


async def test_a_second_writer_waits_until_the_first_block_has_ended(engine: InlineSqlite) -> None:
    order: list[str] = []
    go_on = asyncio.Event()

    async def first() -> None:
        async with engine.write() as connection:
            insert_user(connection, "first")
            await go_on.wait()
            order.append("first")

    async def second() -> None:
        async with engine.write() as connection:
            insert_user(connection, "second")
            order.append("second")

    tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == []
    assert await count_users(engine) == 0  # who reads does not wait
    go_on.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "second"]
    assert await count_users(engine) == 2


async def test_a_reader_sees_one_moment_while_others_write(engine: InlineSqlite) -> None:
    query = select(func.count()).select_from(users)
    async with engine.read() as reading:
        assert (await reading.execute(query)).scalar_one() == 0
        async with engine.write() as connection:
            insert_user(connection, "Ann")
        assert (await reading.execute(query)).scalar_one() == 0
    assert await count_users(engine) == 1


async def test_connections_are_kept_open_and_used_again(engine: InlineSqlite) -> None:
    async with engine.read() as first:
        pass
    async with engine.write() as second:
        pass
    assert first is second
    async with engine.read() as one, engine.read() as other:
        assert one is not other
    await engine.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.driver.execute("SELECT 1")


async def test_a_file_that_another_process_writes_is_an_operational_error_and_free_again_later(
    file: Path, engine: InlineSqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.close()
    monkeypatch.setattr(inline_sqlite, "_BUSY_SECONDS", 0.01)
    impatient = InlineSqlite(parse_database_url(f"sqlite:{file}"))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="database is locked"):
        async with impatient.write():
            pytest.fail("two write at once")
    other.execute("ROLLBACK")
    other.close()
    async with impatient.write() as connection:
        insert_user(connection, "Ann")
    assert await count_users(impatient) == 1
    await impatient.close()


async def test_a_commit_that_is_refused_is_its_error_and_undoes_the_block(engine: InlineSqlite) -> None:
    async def insert_orphan() -> None:
        async with engine.write() as connection:
            connection.run_driver_sql("PRAGMA defer_foreign_keys=ON")  # until this transaction ends
            orphan = "INSERT INTO images VALUES ('k', 'none', 0, 'STORED', 'a/b', 1, '2026-01-01 00:00:00', NULL, NULL)"
            connection.run_driver_sql(orphan)

    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        await insert_orphan()
    async with engine.read() as connection:
        assert (await connection.execute(select(images))).all() == []


async def test_a_transaction_that_sqlite_has_ended_itself_can_be_given_back(engine: InlineSqlite) -> None:
    async def meet_a_full_disk() -> None:
        async with engine.write() as connection:
            insert_user(connection, "Ann")
            connection.driver.execute("ROLLBACK")  # as SQLite does by itself
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await meet_a_full_disk()
    assert await count_users(engine) == 0


async def test_what_runs_through_sqlalchemy_and_past_it_is_one_transaction(engine: InlineSqlite) -> None:
    async def write_both_ways(*, well: bool) -> None:
        async with engine.write() as connection:
            insert_user(connection, "Ann")
            await connection.run_sync(lambda sync: sync.exec_driver_sql("UPDATE users SET name = 'Bob'"))
            assert connection.run_driver_sql("SELECT name FROM users")[0] == [("Bob",)]
            if not well:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_both_ways(well=False)
    assert await count_users(engine) == 0
    await write_both_ways(well=True)
    async with engine.read() as connection:
        assert connection.run_driver_sql("SELECT name FROM users")[0] == [("Bob",)]

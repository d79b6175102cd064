import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from commit_faults import commit_faults
from databases import new_postgres_url, postgres_socket
from gates import gate_to, to_unix_socket
from schnell.clock import now
from schnell.database.migration import migrate
from schnell.database.session import Database
from schnell.database.tables import new_id, users
from schnell.errors import CommitUnknownError, DatabaseUnavailableError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def test_the_event_loop_goes_on_while_a_write_waits_for_a_lock(file: Path) -> None:
    database = Database(f"sqlite:{file}")
    await migrate(database)
    with locked(file) as connection:
        writes = [asyncio.create_task(add_user(database)) for _ in range(3)]
        for _ in range(20):  # nothing of this would run if SQLite waited by itself
            await asyncio.sleep(0.01)
            assert await count_users(database) == 0
        assert not any(write.done() for write in writes)
        connection.execute("ROLLBACK")
    await asyncio.gather(*writes)
    assert await count_users(database) == 3
    await database.close()


async def test_a_lock_that_lasts_is_an_outage_for_everyone_who_waits(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schnell.database.inline_sqlite._BUSY_SECONDS", 0.1)
    database = Database(f"sqlite:{file}")
    await migrate(database)
    with locked(file):
        found = await asyncio.gather(*(add_user(database) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in found] == [DatabaseUnavailableError] * 5
        assert await count_users(database) == 0
    await add_user(database)
    await database.close()


async def test_a_write_that_is_given_up_while_it_waits_leaves_no_lock(file: Path) -> None:
    database = Database(f"sqlite:{file}")
    await migrate(database)
    with locked(file):
        writes = [asyncio.create_task(add_user(database)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for write in writes:
            write.cancel()
        await asyncio.gather(*writes, return_exceptions=True)
    await add_user(database)
    assert await count_users(database) == 1
    await database.close()


async def test_a_server_that_cannot_be_reached_is_an_outage_and_names_no_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Database("postgresql://someone:secret@127.0.0.1:1/nothing")
    for transaction in (database.read, database.write):
        with pytest.raises(DatabaseUnavailableError) as found:
            async with transaction():
                pass
        assert "127.0.0.1" not in found.value.message
    assert "Connection refused" in caplog.text
    assert "secret" not in caplog.text
    await database.close()


async def test_a_connection_that_is_cut_within_a_transaction_is_an_outage() -> None:
    url = new_postgres_url()
    name = url.partition("?")[0].rpartition("/")[2]
    with gate_to(to_unix_socket(postgres_socket())) as gate:
        database = Database(f"postgresql://postgres@127.0.0.1:{gate.port}/{name}?sslmode=disable")
        await migrate(database)

        async def cut() -> None:
            async with database.write() as connection:
                await connection.execute(insert(users).values(new_user()))
                gate.shut()
                await connection.execute(select(users))

        with pytest.raises(DatabaseUnavailableError) as found:
            await cut()
        assert not isinstance(found.value, CommitUnknownError)
        gate.open()
        assert await count_users(database) == 0
        await database.close()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_only_a_commit_that_fails_leaves_its_outcome_open(
    file: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:{file}" if dialect == "sqlite" else new_postgres_url()
    with commit_faults(url, monkeypatch) as faults:
        database = Database(faults.url)
        await migrate(database)
        for when, written in (("before", 0), ("after", 1)):
            faults.lose("accept", when)  # type: ignore[arg-type]
            with pytest.raises(CommitUnknownError):
                async with database.write() as connection:
                    await connection.execute(insert(users).values(new_user(name="reserve")))
            assert await count_users(database) == written
        await database.close()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_a_wrong_statement_is_no_outage(file: Path, dialect: str) -> None:
    database = Database(f"sqlite:{file}" if dialect == "sqlite" else new_postgres_url())
    await migrate(database)
    for wrong in ("SELECT nothing FROM nowhere", "INSERT INTO users (id) VALUES (NULL)"):
        with pytest.raises(SQLAlchemyError):
            async with database.write() as connection:
                await connection.execute(text(wrong))

    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(insert(users).values(new_user()))
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await fail()
    assert await count_users(database) == 0
    await database.close()


async def test_a_transaction_that_rests_is_ended_by_the_server() -> None:
    """One server that is paused must not keep the others from the rows that it has locked."""
    url = new_postgres_url()
    database = Database(url)
    async with database.read() as connection:
        rest = (await connection.execute(text("SHOW idle_in_transaction_session_timeout"))).scalar()
    assert rest == "15s"
    await database.close()
    with psycopg.connect(url) as plain:  # a setting of ours, not of the server
        assert plain.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)


def new_user(name: str = "Ann") -> dict[str, object]:
    return {"id": new_id(), "name": name, "created_at": now()}


async def add_user(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert(users).values(new_user()))


async def count_users(database: Database) -> int:
    async with database.read() as connection:
        return len((await connection.execute(select(users))).all())

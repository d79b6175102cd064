import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from schnell.clock import now
from schnell.database.session import Database, parse_database_url
from schnell.database.tables import new_id, users
from schnell.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "driver", "database"),
    [
        ("sqlite:schnell.db", "sqlite+pysqlite", "schnell.db"),
        ("sqlite:/data/schnell.db", "sqlite+pysqlite", "/data/schnell.db"),
        ("sqlite:///schnell.db", "sqlite+pysqlite", "schnell.db"),
        ("sqlite:////data/schnell.db", "sqlite+pysqlite", "/data/schnell.db"),
        ("postgresql://me:secret@db.test:5432/schnell", "postgresql+psycopg", "schnell"),
        ("postgres://me:secret@db.test/schnell", "postgresql+psycopg", "schnell"),
        ("postgresql+asyncpg://me:secret@db.test/schnell", "postgresql+psycopg", "schnell"),
    ],
)
def test_every_documented_form_is_read_with_our_drivers(text: str, driver: str, database: str) -> None:
    url = parse_database_url(text)
    assert (url.drivername, url.database) == (driver, database)


@pytest.mark.parametrize("text", ["", "schnell.db", "mysql://me@db.test/schnell", "postgresql:", "://"])
def test_any_other_form_is_refused_naming_the_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match="SCHNELL_DATABASE_URL must be sqlite:PATH or postgresql://"):
        parse_database_url(text)


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_path_is_taken_as_it_stands(path: str) -> None:
    if not path.startswith("//"):
        assert parse_database_url(f"sqlite:{path}").database == path


async def test_the_location_hides_the_password() -> None:
    database = Database("postgresql://me:secret@db.test/schnell")
    assert database.dialect == "postgresql"
    assert "secret" not in database.location
    assert "db.test/schnell" in database.location
    await database.close()


async def insert_user(database: Database, error: BaseException | None = None) -> None:
    async with database.write() as connection:
        await connection.execute(users.insert().values(id=new_id(), name="Ann", created_at=now()))
        if error is not None:
            raise error


async def count_users(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(users))).scalar_one())


async def test_what_a_block_writes_is_seen_when_it_has_ended_well(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(users.insert().values(id=new_id(), name="Ann", created_at=now()))
        assert await count_users(database) == 0
    assert await count_users(database) == 1


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_block_that_raises_writes_nothing(database: Database, error: type[BaseException]) -> None:
    with pytest.raises(error):
        await insert_user(database, error())
    assert await count_users(database) == 0
    await insert_user(database)
    assert await count_users(database) == 1


async def test_nothing_written_in_a_block_that_reads_is_kept(database: Database) -> None:
    async with database.read() as connection:
        await connection.execute(users.insert().values(id=new_id(), name="Ann", created_at=now()))
    assert await count_users(database) == 0


async def test_a_database_that_was_closed_can_be_used_again(database: Database) -> None:
    await insert_user(database)
    await database.close()
    assert await count_users(database) == 1

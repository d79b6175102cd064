"""The database, SQLite or PostgreSQL, as short transactions that read or write."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from schnell.database.connection import Connection
from schnell.database.inline_sqlite import InlineSqlite
from schnell.errors import ConfigurationError

_DRIVERS: Final = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def parse_database_url(text: str) -> URL:
    """The SQLAlchemy URL, with our driver, for `sqlite:PATH`, `sqlite:///PATH` or `postgresql://…`.

    Raises:
        ConfigurationError: `text` has another form.
    """
    if text.startswith("sqlite:") and not text.startswith("sqlite://"):
        return URL.create(_DRIVERS["sqlite"], database=text.removeprefix("sqlite:"))
    try:
        url = make_url(text)
        return url.set(drivername=_DRIVERS[url.drivername.partition("+")[0]])
    except (ArgumentError, KeyError) as cause:
        raise ConfigurationError(
            "SCHNELL_DATABASE_URL must be sqlite:PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from cause


class Database:
    """A database. `dialect` is `sqlite` or `postgresql`; `location` its URL without the password.

    A block of `write` or `read` awaits nothing but its own statements. A picture takes seconds: a transaction that
    waited for one would keep its locks, and the one writer that SQLite has, from every other request.

    Raises:
        ConfigurationError: `url` is not one that `parse_database_url` reads.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.dialect = parsed.get_backend_name()
        self.location = parsed.render_as_string(hide_password=True)
        self._engine = InlineSqlite(parsed) if self.dialect == "sqlite" else _PooledPostgres(parsed)

    def write(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that may write: committed when its block ends, rolled back when it raises."""
        return self._engine.write()

    def read(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that only reads.

        On SQLite all its statements see the database at one moment. On PostgreSQL (READ COMMITTED, its default) each
        sees what was committed before it.
        """
        return self._engine.read()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.close()


class _PooledPostgres:
    def __init__(self, url: URL) -> None:
        # the pool asks a connection for a sign of life before it lends it: after a restart of the database server, the
        # connections that are left are dead, and each would fail a request
        self._engine = create_async_engine(url, pool_size=10, max_overflow=10, pool_pre_ping=True)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self._engine.dispose()

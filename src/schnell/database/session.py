"""One door to the database: short read and write transactions on SQLite or PostgreSQL."""

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
    """The SQLAlchemy URL for `sqlite:PATH`, `sqlite:///PATH` or `postgresql://…`.

    Raises:
        ConfigurationError: any other form.
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
    """Opens transactions. `write` commits when its block ends well and rolls back when it raises.

    No block may await anything but its own statements: nobody draws a picture while holding a transaction.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.dialect = parsed.get_backend_name()
        self.location = parsed.render_as_string(hide_password=True)
        self._engine = InlineSqlite(parsed) if self.dialect == "sqlite" else _PooledPostgres(parsed)

    def write(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that may write."""
        return self._engine.write()

    def read(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that only reads."""
        return self._engine.read()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.close()


class _PooledPostgres:
    def __init__(self, url: URL) -> None:
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

"""One door to the database: short read and write transactions on SQLite or PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from schnell.database.inline_sqlite import connect_inline
from schnell.errors import ConfigurationError

_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA busy_timeout=10000",
    "PRAGMA foreign_keys=ON",
)


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
        self._engine: AsyncEngine = _build_engine(parsed)
        # SQLite has one writer: waiting here costs nothing, its own busy handler sleeps
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.dialect == "sqlite" else nullcontext()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write."""
        async with self._turn, self._engine.connect() as connection:
            await connection.execution_options(schnell_write=True)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with self._engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _build_engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=10, max_overflow=10, pool_pre_ping=True)
    engine = create_async_engine(url, pool_size=5, max_overflow=15, connect_args={"async_creator_fn": connect_inline})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # the driver's own transactions start late; `_begin_sqlite` starts them where SQLAlchemy says
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("schnell_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

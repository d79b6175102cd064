"""The database, SQLite or PostgreSQL, as short transactions that read or write."""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from schnell.database.bounded_postgres import connect_bounded, waiting_without_end
from schnell.database.connection import Connection
from schnell.database.inline_sqlite import InlineSqlite
from schnell.database.outages import is_outage, reason_of
from schnell.errors import CommitUnknownError, ConfigurationError, DatabaseUnavailableError

_log = logging.getLogger(__name__)
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
        DatabaseUnavailableError: from a block, when the database is away, locked or full; nothing of it holds.
        CommitUnknownError: from a block of `write`, when the database was lost while it committed.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.dialect = parsed.get_backend_name()
        self.location = parsed.render_as_string(hide_password=True)
        self._engine = InlineSqlite(parsed) if self.dialect == "sqlite" else _PooledPostgres(parsed)

    def write(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that may write: committed when its block ends, rolled back when it raises."""
        return _Transaction(self._engine.write(), commits=True)

    def migrate(self) -> AbstractAsyncContextManager[Connection]:
        """As `write`, for statements that take as long as they need: changes of large tables, and turns at them."""
        return _Transaction(self._engine.migrate(), commits=True)

    def read(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that only reads.

        On SQLite all its statements see the database at one moment. On PostgreSQL (READ COMMITTED, its default) each
        sees what was committed before it.
        """
        return _Transaction(self._engine.read(), commits=False)

    def scan(self) -> AbstractAsyncContextManager[Connection]:
        """As `read`, for statements that may look at many rows: no other request waits for them.

        On SQLite they run in a thread, some at a time; a `read` of few rows is done sooner on the event loop itself.
        """
        return _Transaction(self._engine.scan(), commits=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.close()


class _Transaction(AbstractAsyncContextManager[Connection]):
    """Gives outages of either database one error of our own, wherever in the transaction they come up."""

    def __init__(self, inner: AbstractAsyncContextManager[Connection], *, commits: bool) -> None:
        self._inner = inner
        self._commits = commits

    async def __aenter__(self) -> Connection:
        try:
            return await self._inner.__aenter__()
        except Exception as cause:
            if is_outage(cause):
                raise _unavailable(DatabaseUnavailableError, cause) from cause
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._inner.__aexit__(kind, error, traceback)
        except Exception as cause:
            if not is_outage(cause):
                raise
            # where the block did not raise, the commit did: the answer to it may be all that was lost
            failed = CommitUnknownError if self._commits and error is None else DatabaseUnavailableError
            raise _unavailable(failed, cause) from cause
        if error is not None and is_outage(error):
            raise _unavailable(DatabaseUnavailableError, error) from error


def _unavailable(kind: type[DatabaseUnavailableError], cause: BaseException) -> DatabaseUnavailableError:
    # the driver's words may name hosts and users: they are for the log alone
    _log.warning("the database does not answer: %s", reason_of(cause))
    return kind("the database does not answer; try again in a moment")


#: No transaction of ours rests between two statements. One that does belongs to a server that was paused or cut off,
#: and its row locks would keep the other servers waiting.
_REST: Final = "SET idle_in_transaction_session_timeout = '15s'"


class _PooledPostgres:
    def __init__(self, url: URL) -> None:
        # the pool asks a connection for a sign of life before it lends it: after a restart of the database server, the
        # connections that are left are dead, and each would fail a request
        self._engine = create_async_engine(
            url,
            pool_size=10,
            max_overflow=10,
            pool_pre_ping=True,
            pool_timeout=10,
            async_creator=partial(connect_bounded, url),
            hide_parameters=True,
        )
        event.listen(self._engine.sync_engine, "connect", _limit_rest)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def migrate(self) -> AsyncIterator[AsyncConnection]:
        async with self.write() as connection:
            with waiting_without_end((await connection.get_raw_connection()).driver_connection):
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection

    def scan(self) -> AbstractAsyncContextManager[AsyncConnection]:
        # psycopg waits for the server without the event loop
        return self.read()

    async def close(self) -> None:
        await self._engine.dispose()


def _limit_rest(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(_REST)
    cursor.close()
    connection.commit()

"""SQLite on the event loop's own thread.

aiosqlite hands every call to a thread: some fifty hand-overs a generation, each of which waits for its turn on a busy
processor. A statement of ours takes some microseconds, so it runs where it is, on connections that stay open. See
docs/decisions/0013 and 0032.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from sqlalchemy import URL, CursorResult, Dialect, Executable, NullPool, create_engine, event
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import OperationalError

_Result = TypeVar("_Result")
_BUSY_SECONDS: Final = 10
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}",
    "PRAGMA foreign_keys=ON",
)


class InlineConnection:
    """A `Connection` whose coroutines are done when they are called. Its transactions are its own, not SQLAlchemy's."""

    def __init__(self, connection: SyncConnection) -> None:
        self._connection = connection
        self.driver = cast("sqlite3.Connection", connection.connection.driver_connection)

    @property
    def dialect(self) -> Dialect:
        """SQLite's."""
        return self._connection.dialect

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement; with a list of parameters, once for each."""
        return self._connection.execute(statement, parameters)

    async def run_sync(self, function: Callable[[SyncConnection], _Result], /) -> _Result:
        """Run a function that speaks to SQLAlchemy without `await`."""
        if not self._connection.in_transaction():
            self._connection.begin()  # or it would commit for itself
        return function(self._connection)

    def begin(self, statement: str) -> None:
        """Start a transaction."""
        try:
            self.driver.execute(statement)
        except sqlite3.Error as cause:
            raise OperationalError(statement, None, cause) from cause

    def commit(self) -> None:
        """Keep what was done."""
        try:
            self.driver.execute("COMMIT")
        except sqlite3.Error as cause:
            raise OperationalError("COMMIT", None, cause) from cause
        if self._connection.in_transaction():
            self._connection.commit()

    def rollback(self) -> None:
        """Undo what was done."""
        if self.driver.in_transaction:
            self.driver.execute("ROLLBACK")
        if self._connection.in_transaction():
            self._connection.rollback()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class InlineSqlite:
    """A SQLite file, opened by as many connections as read at once, written by one at a time."""

    def __init__(self, url: URL) -> None:
        options = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
        self._engine = create_engine(url, poolclass=NullPool, connect_args=options)
        # SQLite has one writer: waiting here costs nothing, its own busy handler sleeps
        self._turn = asyncio.Lock()
        self._idle: list[InlineConnection] = []
        event.listen(self._engine, "connect", _prepare)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[InlineConnection]:
        """A transaction that may write."""
        async with self._turn:
            connection = self._take("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            finally:
                self._give_back(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[InlineConnection]:
        """A transaction that only reads."""
        connection = self._take("BEGIN")
        try:
            yield connection
        finally:
            self._give_back(connection)

    async def close(self) -> None:
        """Close every connection."""
        while self._idle:
            self._idle.pop().close()

    def _take(self, begin: str) -> InlineConnection:
        connection = self._idle.pop() if self._idle else InlineConnection(self._engine.connect())
        try:
            connection.begin(begin)
        except OperationalError:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: InlineConnection) -> None:
        try:
            connection.rollback()
        except Exception:
            connection.close()
            raise
        self._idle.append(connection)


def _prepare(connection: Any, _record: Any) -> None:
    # the driver's own transactions start late; ours start where `InlineConnection.begin` says
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()

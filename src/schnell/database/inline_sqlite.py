"""SQLite on the event loop's own thread.

aiosqlite hands every call to a thread: some fifty hand-overs a generation, each of which waits for its turn on a busy
processor. A statement of ours takes some microseconds, so it runs where it is, on connections that stay open. See
docs/decisions/0013 and 0032.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from sqlalchemy import URL, CursorResult, Dialect, Executable, NullPool, create_engine, event
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import OperationalError

from schnell.database.outages import is_busy
from schnell.errors import DatabaseUnavailableError

_Result = TypeVar("_Result")
#: How long a write waits for its turn and for SQLite's lock, which another process may hold.
_BUSY_SECONDS: Final = 10.0
#: SQLite's own busy handler sleeps on this thread and stops the whole server: it gets the rare short waits of
#: readers only. Writers wait in `_begin_to_write`.
_BUSY_MILLISECONDS: Final = 20
_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.05
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    # last: turning a new file into WAL may wait for another process that does the same
    f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}",
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
        # SQLite has one writer: of this process's writes, one at a time asks for its lock
        self._turn = asyncio.Lock()
        self._idle: list[InlineConnection] = []
        event.listen(self._engine, "connect", _prepare)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[InlineConnection]:
        """A transaction that may write."""
        deadline = time.monotonic() + _BUSY_SECONDS
        await self._take_turn()
        try:
            connection = await self._begin_to_write(deadline)
            try:
                yield connection
                connection.commit()
            finally:
                self._give_back(connection)
        finally:
            self._turn.release()

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

    async def _take_turn(self) -> None:
        if not self._turn.locked():
            await self._turn.acquire()
            return
        try:
            async with asyncio.timeout(_BUSY_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseUnavailableError(f"the database was locked for {_BUSY_SECONDS:g} s; try again") from None

    async def _begin_to_write(self, deadline: float) -> InlineConnection:
        """A connection with SQLite's write lock. While another process holds it, the event loop goes on."""
        delay = _FIRST_DELAY
        while True:
            try:
                return self._take("BEGIN IMMEDIATE")
            except OperationalError as cause:
                if not is_busy(cause) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _take(self, begin: str) -> InlineConnection:
        connection = self._idle.pop() if self._idle else InlineConnection(self._engine.connect())
        try:
            connection.begin(begin)
        except OperationalError as cause:
            if is_busy(cause):
                self._idle.append(connection)
            else:
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

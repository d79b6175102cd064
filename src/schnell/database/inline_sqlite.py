"""SQLite whose statements run on the event loop's own thread, in the order in which they are called.

An asynchronous driver (aiosqlite) hands every call to a worker thread: some fifty hand-overs a generation, each of
which waits for its turn on a busy processor. Our statements take microseconds, so they run where they are called, on
connections that stay open. See docs/decisions/0013 and 0032.

What it costs: while a statement runs, the event loop does nothing else, and so does every other request. That is wrong
for statements over very large tables and for a database file on a network disk: such installations use PostgreSQL.
Waiting for the lock of another process that writes is no such cost, it happens between tries (`_begin_to_write`).
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar, cast

from sqlalchemy import URL, CursorResult, Dialect, Executable, NullPool, create_engine, event
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import DBAPIError

from schnell.database.outages import is_busy
from schnell.database.threaded_reads import ThreadedConnection, ThreadedReads
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
    # readers and the writer do not wait for each other, and a commit appends to one file
    "PRAGMA journal_mode=WAL",
    # with WAL, a power cut may undo the last commits but not damage the file; FULL would sync the disk at each commit
    "PRAGMA synchronous=NORMAL",
    # SQLite checks foreign keys only on connections that ask for it
    "PRAGMA foreign_keys=ON",
    # last: turning a new file into WAL may wait for another process that does the same
    f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}",
)


class InlineConnection:
    """One open connection, as a `Connection`: its coroutines never suspend, they have finished when they are awaited.

    It begins and ends its transactions itself, in SQL, which costs every request less than SQLAlchemy's own ones.
    """

    def __init__(self, connection: SyncConnection) -> None:
        self._connection = connection
        self.driver = cast("sqlite3.Connection", connection.connection.driver_connection)

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect for SQLite."""
        return self._connection.dialect

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement through SQLAlchemy; with a list of parameters, once for each. Raises SQLAlchemyError."""
        return self._connection.execute(statement, parameters)

    async def run_sync(self, function: Callable[[SyncConnection], _Result], /) -> _Result:
        """Call a function with SQLAlchemy's synchronous connection, inside this transaction."""
        if not self._connection.in_transaction():
            # Alembic commits by itself unless SQLAlchemy says that a transaction is open, and it cannot see ours
            self._connection.begin()
        return function(self._connection)

    def run_driver_sql(self, sql: str, values: Mapping[str, Any] | None = None) -> tuple[list[Any], int]:
        """Run SQL in the driver itself, past SQLAlchemy: its rows, and how many rows an update changed.

        Raises:
            DBAPIError: of the class that SQLAlchemy raises for the same error, such as `IntegrityError`.
        """
        try:
            cursor = self.driver.execute(sql, values or {})
            # fetched first: the driver counts the rows of an UPDATE … RETURNING only while they are fetched
            return cursor.fetchall(), cursor.rowcount
        except sqlite3.Error as cause:
            raise self._error(sql, cause) from cause

    def _run_command(self, sql: str) -> None:
        try:
            self.driver.execute(sql)
        except sqlite3.Error as cause:
            raise self._error(sql, cause) from cause

    def _error(self, sql: str, cause: sqlite3.Error) -> Exception:
        # without the values, which the message would show: they may be prompts
        return DBAPIError.instance(sql, None, cause, sqlite3.Error, dialect=self.dialect)

    def begin(self, statement: str) -> None:
        """Start a transaction with `BEGIN` or one of its variants. Raises DBAPIError."""
        self._run_command(statement)

    def commit(self) -> None:
        """Commit the transaction. Raises DBAPIError; the transaction is then still open."""
        self._run_command("COMMIT")
        if self._connection.in_transaction():
            # only SQLAlchemy's book-keeping ends here: the driver has no transaction left to commit
            self._connection.commit()

    def rollback(self) -> None:
        """Undo the transaction, if one is open. Raises DBAPIError."""
        # SQLite ends a transaction by itself on some errors (a full disk), and refuses a second ROLLBACK
        if self.driver.in_transaction:
            self._run_command("ROLLBACK")
        if self._connection.in_transaction():
            self._connection.rollback()

    def close(self) -> None:
        """Close the connection and its file."""
        self._connection.close()


class _End(Protocol):
    def __call__(self, connection: InlineConnection, /, *, is_good: bool) -> None: ...


class _Transaction(AbstractAsyncContextManager[InlineConnection]):
    """A block between a begin and an end, which is told whether the block was left without an exception.

    Not an `@asynccontextmanager`: each of these is a generator that the event loop keeps books of, and a request has
    five transactions.
    """

    __slots__ = ("_begin", "_connection", "_end")

    def __init__(self, begin: Callable[[], Awaitable[InlineConnection]], end: _End) -> None:
        self._begin, self._end = begin, end

    async def __aenter__(self) -> InlineConnection:
        self._connection = await self._begin()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(self._connection, is_good=kind is None)


class InlineSqlite:
    """A SQLite file with a connection for each transaction that is open at once; only one of them writes."""

    def __init__(self, url: URL) -> None:
        # the thread may change from one event loop to the next; within a transaction it cannot
        options = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
        # connections are kept in `_idle`, set up once; SQLAlchemy's pool would check and reset them for every request
        self._engine = create_engine(url, poolclass=NullPool, connect_args=options, hide_parameters=True)
        # SQLite has one writer, so one block of this process at a time asks for its lock: waiting for SQLite itself
        # sleeps on this thread, where the block that holds the lock could then never go on
        self._turn = asyncio.Lock()
        self._idle: list[InlineConnection] = []
        event.listen(self._engine, "connect", _set_up)
        self._scans = ThreadedReads(self._engine)
        self._file = None if url.database in {None, "", ":memory:"} else Path(str(url.database))

    def write(self) -> AbstractAsyncContextManager[InlineConnection]:
        """A transaction that may write: committed when its block ends, rolled back when it raises."""
        return _Transaction(self._begin_write, self._end_write)

    def read(self) -> AbstractAsyncContextManager[InlineConnection]:
        """A transaction that only reads; all its statements see the database as its first one found it."""
        return _Transaction(self._begin_read, self._end_read)

    async def close(self) -> None:
        """Close every connection that no block uses."""
        self._scans.close()
        while self._idle:
            self._idle.pop().close()

    def migrate(self) -> AbstractAsyncContextManager[InlineConnection]:
        """As `write`: nobody waits for a server here."""
        return self.write()

    @asynccontextmanager
    async def scan(self) -> AsyncIterator[ThreadedConnection | InlineConnection]:
        """As `read`, with its statements in a thread. A database in memory is seen by its one connection only."""
        if self._file is None:
            async with self.read() as inline:
                yield inline
            return
        async with self._scans.take() as connection:
            yield connection

    async def _begin_read(self) -> InlineConnection:
        return self._take("BEGIN")

    def _end_read(self, connection: InlineConnection, *, is_good: bool) -> None:  # noqa: ARG002 - as of a write
        self._give_back(connection)

    async def _begin_write(self) -> InlineConnection:
        deadline = time.monotonic() + _BUSY_SECONDS
        if self._turn.locked():
            await self._wait_for_turn()
        else:
            await self._turn.acquire()
        try:
            return await self._begin_to_write(deadline)
        except BaseException:
            self._turn.release()
            raise

    def _end_write(self, connection: InlineConnection, *, is_good: bool) -> None:
        try:
            try:
                if is_good:
                    connection.commit()
            finally:
                self._give_back(connection)
        finally:
            self._turn.release()

    async def _wait_for_turn(self) -> None:
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
                # IMMEDIATE takes the file's write lock now: taken at the first UPDATE instead, it is refused without
                # any waiting when another process has written since this transaction's first SELECT
                return self._take("BEGIN IMMEDIATE")
            except DBAPIError as cause:
                if not is_busy(cause) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _take(self, begin: str) -> InlineConnection:
        connection = self._idle.pop() if self._idle else self._open()
        try:
            connection.begin(begin)
        except DBAPIError as cause:
            if is_busy(cause):
                self._idle.append(connection)
            else:
                connection.close()
            raise
        return connection

    def _open(self) -> InlineConnection:
        if self._file is not None:
            _close_to_others(self._file)
        return InlineConnection(self._engine.connect())

    def _give_back(self, connection: InlineConnection) -> None:
        try:
            # nothing is open after a commit; after a read or an exception this ends the transaction
            connection.rollback()
        except Exception:
            # a connection that cannot even roll back is not used again
            connection.close()
            raise
        self._idle.append(connection)


def _close_to_others(file: Path) -> None:
    """Let nobody but the file's owner read it: it holds prompts, and the hashes of keys. SQLite copies its mode."""
    with suppress(OSError):  # no folder yet, or another user's file: opening it says what is wrong
        if not file.exists():
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # by its name: to open and close a file that SQLite has open would drop SQLite's locks on it (POSIX)
        elif file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _set_up(connection: Any, _record: Any) -> None:
    # None: the driver begins no transaction by itself, which it does before a write only, and then without IMMEDIATE
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()

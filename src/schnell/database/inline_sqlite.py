"""SQLite on the event loop's own thread.

aiosqlite hands every call to a thread: some fifty hand-overs a generation, each of which waits for its turn on a busy
processor. A statement of ours takes some microseconds, so it runs where it is. See docs/decisions/0013.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import URL, CursorResult, Dialect, Executable, create_engine, event
from sqlalchemy import Connection as SyncConnection

_Result = TypeVar("_Result")
_BUSY_SECONDS: Final = 10
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}",
    "PRAGMA foreign_keys=ON",
)


class InlineConnection:
    """A `Connection` whose coroutines are done when they are called."""

    def __init__(self, connection: SyncConnection) -> None:
        self._connection = connection

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
        return function(self._connection)


class InlineSqlite:
    """A SQLite file, opened by as many connections as read at once, written by one at a time."""

    def __init__(self, url: URL) -> None:
        options = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
        # without a bound: waiting for a connection would hold up the thread that has to give one back
        self._engine = create_engine(url, pool_size=5, max_overflow=-1, connect_args=options)
        # SQLite has one writer: waiting here costs nothing, its own busy handler sleeps
        self._turn = asyncio.Lock()
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[InlineConnection]:
        """A transaction that may write."""
        async with self._turn:
            with self._engine.connect().execution_options(schnell_write=True) as connection, connection.begin():
                yield InlineConnection(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[InlineConnection]:
        """A transaction that only reads."""
        with self._engine.connect() as connection:
            yield InlineConnection(connection)

    async def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare(connection: Any, _record: Any) -> None:
    # the driver's own transactions start late; `_begin` starts them where SQLAlchemy says
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Any) -> None:
    writes = connection.get_execution_options().get("schnell_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

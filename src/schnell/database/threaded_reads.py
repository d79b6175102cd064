"""Reads of a SQLite file in threads: for statements over many rows, which must not keep the event loop.

SQLite lets Python's lock go while it steps through rows, so the event loop goes on meanwhile. Each read has its thread
and its connection for itself until its end.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import CursorResult, Dialect, Engine, Executable

_Answer = TypeVar("_Answer")
#: At once: they take processors that the engine needs, and further ones wait.
_THREADS: Final = 1


class ThreadedConnection:
    """One open connection, as a `Connection`: its statements run in a thread."""

    def __init__(self, connection: SyncConnection, threads: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._threads = threads

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect for SQLite."""
        return self._connection.dialect

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a SELECT, and fetch its rows. Raises SQLAlchemyError."""

        def run() -> Any:
            # fetched and converted in the thread, too: that is where the time goes
            return self._connection.execute(statement, parameters).freeze()

        frozen = await self._in_thread(run)
        return cast("CursorResult[*tuple[Any, ...]]", frozen())

    async def run_sync(self, function: Callable[[SyncConnection], _Answer], /) -> _Answer:
        """Call a function with SQLAlchemy's synchronous connection, in the thread."""
        return await self._in_thread(function, self._connection)

    async def _in_thread(self, work: Callable[..., _Answer], *arguments: Any) -> _Answer:
        running = self._threads.submit(work, *arguments)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            # nobody waits for the rest of the rows
            driver = self._connection.connection.driver_connection
            if driver is not None:
                driver.interrupt()
            with suppress(Exception):
                await asyncio.shield(asyncio.wrap_future(running))
            raise


class ThreadedReads:
    """Opens connections of `engine` for reads in threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = asyncio.Semaphore(_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, "scan")

    @asynccontextmanager
    async def take(self) -> AsyncIterator[ThreadedConnection]:
        """A transaction that only reads; all its statements see the database as its first one found it."""
        async with self._turns:
            loop = asyncio.get_running_loop()
            connection = await loop.run_in_executor(self._threads, self._open)
            try:
                yield ThreadedConnection(connection, self._threads)
            finally:
                await loop.run_in_executor(self._threads, connection.close)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> SyncConnection:
        connection = self._engine.connect()
        connection.exec_driver_sql("BEGIN")
        return connection

"""SQLite on the event loop's own thread, in the form that SQLAlchemy's aiosqlite dialect speaks to.

aiosqlite hands every call to a thread: some fifty hand-overs a generation, each of which waits for its turn on a busy
processor. A statement of ours takes some microseconds, so it runs where it is. See docs/decisions/0013.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

_BUSY_SECONDS: Final = 10.0


class InlineCursor:
    """A cursor whose coroutines are done when they are called."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:
        """The columns of the result."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        """The id of the row that was inserted."""
        return self._cursor.lastrowid

    @property
    def arraysize(self) -> int:
        """How many rows `fetchmany` gives."""
        return self._cursor.arraysize

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._cursor.arraysize = value

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Self:
        """Run a statement."""
        self._cursor.execute(statement, parameters)
        return self

    async def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> Self:
        """Run a statement for each row of parameters."""
        self._cursor.executemany(statement, parameters)
        return self

    async def fetchone(self) -> Any:
        """The next row."""
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        return self._cursor.fetchmany(size or self._cursor.arraysize)

    async def fetchall(self) -> list[Any]:
        """All rows that are left."""
        return self._cursor.fetchall()

    async def close(self) -> None:
        """Close the cursor."""
        self._cursor.close()


class _Inbox:
    """Where the dialect leaves a function for aiosqlite's thread: here it runs at once."""

    def put_nowait(self, letter: "tuple[Any, Callable[[], Any]]") -> None:
        future, function = letter
        future.set_result(function())


class InlineConnection:
    """A connection whose coroutines are done when they are called."""

    def __init__(self, path: str, timeout: float) -> None:
        self._conn = sqlite3.connect(path, timeout=timeout, isolation_level=None)
        self._connection: sqlite3.Connection | None = self._conn
        self._tx = _Inbox()

    @property
    def isolation_level(self) -> str | None:
        """None: transactions begin and end where SQLAlchemy says."""
        return self._conn.isolation_level

    def cursor(self) -> InlineCursor:
        """A new cursor."""
        return InlineCursor(self._conn.cursor())

    async def create_function(self, *arguments: Any, **options: Any) -> None:
        """Make a Python function callable from SQL."""
        self._conn.create_function(*arguments, **options)

    async def commit(self) -> None:
        """Commit."""
        self._conn.commit()

    async def rollback(self) -> None:
        """Roll back."""
        self._conn.rollback()

    async def close(self) -> None:
        """Close the connection."""
        self.stop()

    def stop(self) -> None:
        """Close the connection at once."""
        self._connection = None
        self._conn.close()


async def connect_inline(path: str, **_options: Any) -> InlineConnection:
    """Open a database; what SQLAlchemy calls instead of `aiosqlite.connect`."""
    return InlineConnection(path, _BUSY_SECONDS)

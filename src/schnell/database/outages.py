"""Which errors of a database say that it is away for now, and not that a statement is wrong."""

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: SQLite's primary result codes (https://www.sqlite.org/rescode.html). `SQLITE_ERROR`, which is also an
#: OperationalError in Python, is a wrong statement and no outage.
_SQLITE: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
_PRIMARY_CODE: Final = 0xFF
#: PostgreSQL's `read_only_sql_transaction`: the server has become a standby.
_READ_ONLY: Final = "25006"


def is_outage(error: BaseException | None) -> bool:
    """Whether the same transaction may succeed later: the database was unreachable, locked, full or restarting."""
    if isinstance(error, sqlite3.Error):
        return _primary_code(error) in _SQLITE
    if isinstance(error, DBAPIError):
        if isinstance(error.orig, sqlite3.Error):
            return is_outage(error.orig)
        # psycopg's OperationalError: lost connections, restarts, full disks, deadlocks, too many connections
        lost = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
        return lost or getattr(error.orig, "sqlstate", None) == _READ_ONLY
    return isinstance(error, PoolTimeoutError | OSError)


def is_busy(error: DBAPIError) -> bool:
    """Whether another connection to the SQLite file holds its lock."""
    return isinstance(error.orig, sqlite3.Error) and _primary_code(error.orig) == sqlite3.SQLITE_BUSY


def reason_of(error: BaseException) -> str:
    """The driver's own words, on one line."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _primary_code(error: sqlite3.Error) -> int:
    # errors that the sqlite3 module itself raises carry no code
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE

"""Connections to PostgreSQL that wait for an answer so long and no longer.

A server that was stopped (SIGSTOP, a hung disk, a frozen virtual machine) keeps its connections open and takes bytes,
so neither TCP nor libpq's settings ever give up on it.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from psycopg import AsyncConnection
from sqlalchemy.engine import URL

#: Seconds for one statement. Longer than a transaction may rest (`session._REST`): whoever waits for the row locks of a
#: server that was paused still gets them.
_LONGEST_WAIT: Final = 20.0
#: libpq's settings: a server that is unreachable, or cut off without a word, is an error within seconds.
_PATIENCE: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


class BoundedConnection(AsyncConnection[Any]):
    """A connection that is cut where a statement is not answered in time: psycopg's OperationalError, as any lost one.

    `is_bounded` false: for now, it waits for as long as it takes.
    """

    is_bounded = True

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for the server; every statement, commit and rollback comes through here."""
        bound = asyncio.get_running_loop().call_later(_LONGEST_WAIT, self._cut_off)
        try:
            return await super().wait(*arguments, **options)
        finally:
            bound.cancel()

    def _cut_off(self) -> None:
        if not self.is_bounded:
            return
        # psycopg reads the end of the stream and knows what to do; cancelled, it would ask the server first
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as stream:
            stream.shutdown(socket.SHUT_RDWR)


async def connect_bounded(url: URL) -> BoundedConnection:
    """Connect to the server of a SQLAlchemy URL.

    Raises:
        psycopg.OperationalError: it is not there, or refuses.
    """
    arguments, options = url.get_dialect()().create_connect_args(url)
    return await BoundedConnection.connect(*arguments, **{**_PATIENCE, **options})


@contextmanager
def waiting_without_end(connection: Any) -> Iterator[None]:
    """Let a `BoundedConnection` wait for as long as it takes while the block runs."""
    connection.is_bounded = False
    try:
        yield
    finally:
        connection.is_bounded = True

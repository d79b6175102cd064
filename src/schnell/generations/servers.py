"""The servers that share a database: each holds a lease, and others put right what a dead one was drawing.

A lease is a row of `servers` that its server renews every few seconds (a heartbeat). It has run out when it was not
renewed for `seconds`: by the database's clock, since servers' own clocks differ. A server that is paused for less loses
nothing.

Two proofs of death need no waiting. On SQLite the lock of the data folder leaves room for one server, so every other is
dead. On PostgreSQL each server also holds the lock of a file in its data folder, which ends with its process: whoever
finds that lock free, on the same boot of the same machine, need not wait for the lease to run out.
"""

import logging
import os
import socket
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Row, delete, func, select, update

from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import new_id, servers
from schnell.errors import ConfigurationError
from schnell.file_locks import LockedFiles

LEASE_SECONDS: Final = 120.0
_log = logging.getLogger(__name__)
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class ServerLease:
    """This server's lease, and what it can tell of the other servers.

    `label` is for people. `alone` says that no other server can live on this database: then nothing is written.
    """

    def __init__(
        self,
        database: Database,
        files: LockedFiles,
        *,
        label: str = "main",
        seconds: float = LEASE_SECONDS,
        alone: bool = False,
    ) -> None:
        self.id = new_id()
        self.alone = alone
        self.seconds = seconds
        self._database = database
        self._files = files
        self.label = label
        self._started_at = now()

    async def start(self) -> None:
        """Take the lease. To be called before the first record names this server."""
        try:
            self._files.claim(self.id)
        except ConfigurationError as error:
            # only the quick proof of death is missing: the lease itself works without
            _log.warning("%s; if this server is killed, others wait until its lease has run out", error.message)
        await self.renew()

    async def renew(self) -> None:
        """Renew the lease, or take it anew where it ran out. Raises DatabaseUnavailableError."""
        if self.alone:
            return
        async with self._database.write() as connection:
            moment = await _database_time(connection)
            own = (await connection.execute(select(servers).where(servers.c.id == self.id))).first()
            held_since = own.held_since if own is not None and own.expires_at >= moment else moment
            values = {"held_since": held_since, "expires_at": moment + timedelta(seconds=self.seconds)}
            renewed = await connection.execute(update(servers).where(servers.c.id == self.id).values(values))
            # at the start, and where another server has removed the row of a lease that had run out
            if renewed.rowcount == 0:
                await connection.execute(servers.insert().values(self._describe() | values))

    async def end(self) -> None:
        """Give the lease back: what this server has left behind is anyone's from now on."""
        try:
            if not self.alone:
                async with self._database.write() as connection:
                    await connection.execute(delete(servers).where(servers.c.id == self.id))
        finally:
            self._files.release()

    async def find_dead(self, connection: Connection, owners: Collection[str]) -> frozenset[str]:
        """Those of `owners` (ids of servers, as records name them) that live no more.

        To be called in the transaction that has read `owners`, afterwards: a server's row comes before its records.
        """
        others = frozenset(owners) - {self.id}
        if self.alone or not others:
            return others
        return others - await self.list_live(connection)

    async def list_live(self, connection: Connection) -> frozenset[str]:
        """The ids of the servers that live, this one included."""
        if self.alone:
            return frozenset({self.id})
        rows, dead = await self._look(connection)
        return frozenset({self.id, *(row.id for row in rows)}) - dead

    async def remove_dead(self) -> None:
        """Remove the rows of dead servers. What they were drawing is to be put right before."""
        if self.alone:
            return
        async with self._database.read() as connection:
            _, dead = await self._look(connection)
        if dead:
            async with self._database.write() as connection:
                # unless it has renewed its lease meanwhile
                _, dead = await self._look(connection)
                await connection.execute(delete(servers).where(servers.c.id.in_(dead)))
        self._files.remove(dead)

    async def _look(self, connection: Connection) -> tuple[list[Row[Any]], frozenset[str]]:
        """Every row, and the ids of the dead ones."""
        moment = await _database_time(connection)
        rows = list(await connection.execute(select(servers)))
        judges = self._may_judge(rows, moment)
        dead = (row.id for row in rows if (judges and row.expires_at < moment) or self._has_died(row))
        return rows, frozenset(dead) - {self.id}

    def _may_judge(self, rows: list[Row[Any]], moment: datetime) -> bool:
        """Whether this server may say that another's lease has run out: once it has held its own for a while.

        When the database comes back after an outage, every lease has run out, and each server needs a moment to renew.
        """
        own = next((row for row in rows if row.id == self.id), None)
        if own is None or own.expires_at < moment:
            return False
        return bool(moment - own.held_since >= timedelta(seconds=self.seconds / 4))

    def _has_died(self, row: Row[Any]) -> bool:
        # a copy of a data folder on another machine holds lock files, too, and nobody holds their locks there
        return row.boot == _name_boot() and self._files.has_died(row.id)

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "label": self.label,
            "host": socket.gethostname()[:255],
            "boot": _name_boot(),
            "pid": os.getpid(),
            "started_at": self._started_at,
        }


async def _database_time(connection: Connection) -> datetime:
    """The present by the clock that all servers share. SQLite's is this machine's own."""
    if connection.dialect.name != "postgresql":
        return now()
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment


def _name_boot() -> str:
    """What tells this run of this machine's kernel from every other; the host's name where the system does not say."""
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()[:100]

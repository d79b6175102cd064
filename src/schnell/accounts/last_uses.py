"""When each API key was last used: kept in memory, and written every few seconds in one transaction.

A write with every request would make each of them wait for the database's one writer, for a time that is read by people
in minutes.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, or_, update

from schnell.clock import now
from schnell.database.connection import Prepared
from schnell.database.session import Database
from schnell.database.tables import api_keys

#: Seconds between two writes.
PERIOD: Final = 15.0
_WRITE: Final = Prepared(
    update(api_keys)
    .where(api_keys.c.id == bindparam("of_key"))
    # another server may have seen a later use
    .where(or_(api_keys.c.used_at.is_(None), api_keys.c.used_at < bindparam("moment", type_=api_keys.c.used_at.type)))
    .values(used_at=bindparam("moment", type_=api_keys.c.used_at.type))
)


class LastUses:
    """The last uses that this server has seen and not written yet."""

    def __init__(self) -> None:
        self._seen: dict[str, datetime] = {}

    def note(self, key_id: str) -> None:
        """A key was used now."""
        self._seen[key_id] = now()

    async def write(self, database: Database) -> None:
        """Write what was seen. What could not be written is kept for the next time."""
        if not self._seen:
            return
        seen, self._seen = self._seen, {}
        try:
            async with database.write() as connection:
                for key_id, moment in seen.items():
                    await _WRITE.run(connection, {"of_key": key_id, "moment": moment})
        except BaseException:
            self._seen = seen | self._seen
            raise

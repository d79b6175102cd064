"""Deleting that can be undone: records are hidden at once, and removed for good when the time to undo is over."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, bindparam, delete, insert, select

from schnell.accounts.identity import Caller
from schnell.assets.store import AssetStore
from schnell.clock import now
from schnell.database.connection import Connection, Prepared
from schnell.database.session import Database
from schnell.database.tables import images, records, trash
from schnell.generations.history import History, check_may_delete, record_foreign
from schnell.generations.records import IS_VISIBLE, hide_record
from schnell.generations.recovery import remove_marked

#: How long what was deleted can be restored.
UNDO_FOR: Final = timedelta(minutes=10)
# two rows, each found by its primary key: every picture that a link opens waits for this
_IN_TRASH: Final = Prepared(
    select(trash.c.record_id)
    .join(images, images.c.record_id == trash.c.record_id)
    .where(images.c.key == bindparam("of_key"))
)


async def throw_away(database: Database, history: History, caller: Caller, record_ids: Sequence[str]) -> list[str]:
    """Hide records until they are restored or removed. What is under way is cancelled. Returns those that were found.

    Raises:
        ForbiddenError: some are another member's, and the caller is no administrator. Nothing is deleted then.
    """
    async with database.read() as connection:
        query = select(records.c.id, records.c.user_id).where(_of_team(caller, record_ids), IS_VISIBLE)
        found = (await connection.execute(query)).all()
    check_may_delete(caller, (row.user_id for row in found))
    for row in found:
        await history.cancel(caller, row.id)
    moment = now()
    async with database.write() as connection:
        # looked up again: somebody else may have deleted one meanwhile
        left = list((await connection.execute(query.with_only_columns(records.c.id))).scalars())
        rows = [
            {"record_id": each, "team_id": caller.team_id, "deleted_by": caller.user_id, "deleted_at": moment}
            for each in left
        ]
        if rows:
            await connection.execute(insert(trash), rows)
            authors = {row.id: row.user_id for row in found if row.id in left}
            await record_foreign(connection, caller, "generation.deleted", authors)
    return left


async def restore(database: Database, caller: Caller, record_ids: Sequence[str]) -> int:
    """Show again what was deleted: one's own deletions, an administrator also others'. Returns how many."""
    theirs = (trash.c.team_id == caller.team_id) & trash.c.record_id.in_(record_ids)
    if "admin" not in caller.scopes:
        theirs &= trash.c.deleted_by == caller.user_id
    async with database.write() as connection:
        shown = list((await connection.execute(delete(trash).where(theirs).returning(trash.c.record_id))).scalars())
        query = select(records.c.id, records.c.user_id).where(records.c.id.in_(shown))
        authors = {row.id: row.user_id for row in await connection.execute(query)}
        await record_foreign(connection, caller, "generation.restored", authors)
    return len(shown)


async def is_thrown_away(connection: Connection, key: str) -> bool:
    """Whether the picture under this key was deleted, and may still be restored: its file is there."""
    return (await _IN_TRASH.run(connection, {"of_key": key})).first is not None


async def empty_trash(database: Database, store: AssetStore, before: datetime | None = None) -> int:
    """Remove for good what was deleted before a moment, by default as long ago as `UNDO_FOR`. Returns how many."""
    old = trash.c.deleted_at < (before or now() - UNDO_FOR)
    async with database.read() as connection:
        # most rounds find nothing, and must not take SQLite's lock for it
        if (await connection.execute(select(trash.c.record_id).where(old).limit(1))).first() is None:
            return 0
    async with database.write() as connection:
        gone = list((await connection.execute(delete(trash).where(old).returning(trash.c.record_id))).scalars())
        for record_id in gone:
            await hide_record(connection, record_id)
    await remove_marked(database, store)
    return len(gone)


def _of_team(caller: Caller, record_ids: Sequence[str]) -> ColumnElement[bool]:
    return (records.c.team_id == caller.team_id) & records.c.id.in_(record_ids)

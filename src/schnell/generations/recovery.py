"""Recovery: ending what dead servers have left unfinished, and removing pictures that are no longer kept.

Everything here may run at any time, on several servers at once, and again: whether a record has ended is decided by one
conditional update, and credits move in the same transaction.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import func, select, update

from schnell.accounts.credits import find_reservation, release
from schnell.assets.store import AssetStore
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import images, webhooks
from schnell.errors import AssetError, InterruptedServerError, SchnellError
from schnell.generations.idempotency import forget_old_claims
from schnell.generations.records import (
    Record,
    expire_images,
    finish_record,
    forget_images,
    has_hidden_records,
    list_abandoned_pictures,
    list_ended,
    list_image_keys,
    list_owners,
    list_removable,
    list_unfinished,
    mark_for_removal,
    without_picture,
)
from schnell.generations.running import Admission
from schnell.generations.servers import ServerLease
from schnell.generations.webhooks import Subscription

_log = logging.getLogger(__name__)
#: A record younger than this may belong to a request that is just about to start it.
_ABANDONED_AFTER: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How many unfinished records failed, and how many pictures were removed.

    `adopted` are the webhooks that dead servers had still to deliver: this server has to deliver them now.
    """

    failed: int
    removed: int
    adopted: tuple[Subscription, ...] = ()


async def reconcile(
    database: Database, store: AssetStore, lease: ServerLease, is_under_way: Callable[[str], bool]
) -> Recovery:
    """End the unfinished records that no living server works on, and remove what is marked for removal.

    Records of dead servers fail, and so do old ones of this server that are no longer under way here (`is_under_way`,
    by the record's id): their credits are released, their files removed. To be called at the start, before anything
    is accepted, and every minute.

    Raises:
        DatabaseUnavailableError: the database is away. What is done by then stays done.
    """
    async with database.read() as connection:
        owners = await list_owners(connection) | await _list_webhook_owners(connection)
        dead = await lease.find_dead(connection, owners)
        left = await list_unfinished(connection, dead)
        own = await list_unfinished(connection, {lease.id}, now() - _ABANDONED_AFTER)
    left += [record for record in own if not is_under_way(record.id)]
    error = InterruptedServerError("the server stopped while this was drawn; nothing was charged")
    failed = 0
    for record in left:
        async with database.write() as connection:
            failed += await fail_record(connection, record, error)
    await _give_up_pictures(database, {*dead, lease.id}, is_under_way)
    removed = await _try_to_remove_marked(database, store)
    await lease.remove_dead()
    if failed or removed:
        _log.warning("recovered: %d unfinished records, %d pictures removed", failed, removed)
    # last: if anything before fails, the subscriptions still have a dead owner, and the next run finds them
    return Recovery(failed, removed, await _adopt_webhooks(database, dead, lease.id))


async def heartbeat(database: Database, lease: ServerLease, admission: Admission) -> None:
    """Renew the lease, and stop drawing what has been ended elsewhere: deleted or cancelled through another server, or
    failed by one that took this server for dead.

    To be called every few seconds, often enough that some calls may fail before the lease runs out.

    Raises:
        DatabaseUnavailableError: the database is away; the next call tries again.
    """
    await lease.renew()
    under_way = [running.record.id for running in admission.all()]
    if lease.alone or not under_way:
        return
    async with database.read() as connection:
        ended = await list_ended(connection, under_way)
    for record_id in ended:
        running = admission.find(record_id)
        if running is not None:
            running.cancel()


async def fail_record(
    connection: Connection, record: Record, error: SchnellError, *, drawn_elsewhere: bool = False
) -> bool:
    """End an unfinished record as a failure and give its credits back. False where it has ended before.

    `drawn_elsewhere`: see `finish_record`.
    """
    if not await finish_record(connection, without_picture(record, error), drawn_elsewhere=drawn_elsewhere):
        return False
    reservation = await find_reservation(connection, record.id)
    if reservation is not None:
        await release(connection, reservation)
    return True


async def _list_webhook_owners(connection: Connection) -> set[str]:
    return set((await connection.execute(select(webhooks.c.instance).distinct())).scalars())


async def _adopt_webhooks(database: Database, dead: frozenset[str], new_owner: str) -> tuple[Subscription, ...]:
    """Make dead servers' subscriptions this server's. Of two servers that try at once, one gets each."""
    if not dead:
        return ()
    theirs = update(webhooks).where(webhooks.c.instance.in_(dead)).values(instance=new_owner)
    columns = [webhooks.c[name] for name in Subscription.__slots__]
    async with database.write() as connection:
        rows = (await connection.execute(theirs.returning(*columns))).all()
    return tuple(Subscription(*row) for row in rows)


async def _give_up_pictures(database: Database, owners: set[str], is_under_way: Callable[[str], bool]) -> None:
    """Mark the pictures for removal that ended records were to get from servers that draw them no more."""
    async with database.read() as connection:
        found = await list_abandoned_pictures(connection, owners)
    keys = [key for record_id, key in found if not is_under_way(record_id)]
    if keys:
        async with database.write() as connection:
            await mark_for_removal(connection, keys)


async def remove_marked(database: Database, store: AssetStore) -> int:
    """Remove the pictures that are marked for removal, then their rows. Returns how many."""
    async with database.read() as connection:
        keys = await list_removable(connection)
        hidden = await has_hidden_records(connection)
    # a minute without work writes nothing: on SQLite a write may have to wait for another process's lock
    if keys or hidden:
        await remove_images(database, store, keys)
    return len(keys)


async def _try_to_remove_marked(database: Database, store: AssetStore) -> int:
    try:
        return await remove_marked(database, store)
    except AssetError as error:
        # a store that is away keeps nobody from starting: the pictures stay marked
        _log.warning("pictures are removed later: %s", error.message)
        return 0


async def remove_images(database: Database, store: AssetStore, keys: Sequence[str]) -> None:
    """Remove pictures that are marked for it: the files first, so that a crash leaves rows and no stray files."""
    await store.delete(keys)
    async with database.write() as connection:
        await forget_images(connection, keys)


async def apply_retention(database: Database, store: AssetStore, days: float | None) -> int:
    """Remove pictures older than `days` (None: none is), and forget old idempotency keys. Returns how many."""
    async with database.write() as connection:
        await forget_old_claims(connection)
        if days is not None:
            await expire_images(connection, now() - timedelta(days=days))
    return await remove_marked(database, store)


async def count_expired(database: Database, days: float | None) -> int:
    """How many pictures `apply_retention` would remove now."""
    async with database.read() as connection:
        marked = len(await list_removable(connection))
        if days is None:
            return marked
        old = select(func.count()).where(images.c.state == "STORED", images.c.created_at < now() - timedelta(days=days))
        return marked + int((await connection.execute(old)).scalar_one())


async def find_orphans(database: Database, store: AssetStore) -> list[str]:
    """Stored files that no row knows. The store is listed first: a file that comes meanwhile has its row already."""
    stored = await store.list_keys()
    async with database.read() as connection:
        known = await list_image_keys(connection)
    return [key for key in stored if key not in known]

"""Putting right what a killed server has left, and removing what is no longer kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from schnell.accounts.credits import find_reservation, release
from schnell.assets.store import AssetStore
from schnell.clock import now
from schnell.database.session import Database
from schnell.errors import InterruptedServerError
from schnell.generations.idempotency import forget_old_claims
from schnell.generations.records import (
    expire_images,
    finish_record,
    forget_images,
    list_image_keys,
    list_removable,
    list_unfinished,
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was put right: records that were in between, pictures that were on their way out."""

    failed: int
    removed: int


async def recover(database: Database, store: AssetStore, instance: str) -> Recovery:
    """Leave no record of this instance in between: fail it, release its credits, remove its files."""
    async with database.read() as connection:
        unfinished = await list_unfinished(connection, instance)
    message = InterruptedServerError.code, "the server stopped while this was drawn; nothing was charged"
    for record in unfinished:
        failed = replace(
            record,
            status="FAILURE",
            images=(),
            cost=0,
            error_code=message[0],
            error_message=message[1],
            response_object={"error": {"errorCode": message[0], "message": message[1]}},
            finished_at=now(),
        )
        async with database.write() as connection:
            if await finish_record(connection, failed):
                reservation = await find_reservation(connection, record.id)
                if reservation is not None:
                    await release(connection, reservation)
    return Recovery(len(unfinished), await remove_marked(database, store))


async def remove_marked(database: Database, store: AssetStore) -> int:
    """Remove the pictures that are marked for removal, then their rows. Returns how many."""
    async with database.read() as connection:
        keys = await list_removable(connection)
    await remove_images(database, store, keys)
    return len(keys)


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


async def find_orphans(database: Database, store: AssetStore) -> list[str]:
    """Stored files that no row knows. The store is listed first: a file that comes meanwhile has its row already."""
    stored = await store.list_keys()
    async with database.read() as connection:
        known = await list_image_keys(connection)
    return [key for key in stored if key not in known]

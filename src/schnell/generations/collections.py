"""Collections: a team's pictures under a name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from schnell.accounts.identity import Caller
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import collection_pictures, collections, images, new_id, records
from schnell.errors import ConflictError, FieldProblem, InvalidFieldError, NotFoundError
from schnell.generations.records import IS_VISIBLE

LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, and how many of its pictures are kept."""

    id: str
    name: str
    pictures: int


async def list_collections(connection: Connection, team_id: str) -> list[Collection]:
    """A team's collections by name."""
    held = (
        select(func.count())
        .select_from(collection_pictures)
        .join(images, (images.c.key == collection_pictures.c.image_key) & (images.c.state == "STORED"))
        .where(collection_pictures.c.collection_id == collections.c.id)
        .correlate(collections)
        .scalar_subquery()
    )
    query = select(collections.c.id, collections.c.name, held).where(collections.c.team_id == team_id)
    return [Collection(*row) for row in await connection.execute(query.order_by(func.lower(collections.c.name)))]


async def make_collection(connection: Connection, caller: Caller, name: str) -> Collection:
    """A new, empty collection.

    Raises:
        InvalidFieldError: the name is empty, too long or not printable.
        ConflictError: the team has one of this name.
    """
    name = name.strip()
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidFieldError(FieldProblem("name", f"must have 1-{LONGEST_NAME} printable characters"))
    row = {"id": new_id(), "team_id": caller.team_id, "name": name, "created_by": caller.user_id, "created_at": now()}
    try:
        await connection.execute(insert(collections), row)
    except IntegrityError as cause:
        raise ConflictError(f"the team has a collection called {name!r}") from cause
    return Collection(str(row["id"]), name, 0)


async def remove_collection(connection: Connection, team_id: str, collection_id: str) -> None:
    """Remove a collection; its pictures stay. Raises NotFoundError."""
    await _find(connection, team_id, collection_id)
    await connection.execute(delete(collection_pictures).where(collection_pictures.c.collection_id == collection_id))
    await connection.execute(delete(collections).where(collections.c.id == collection_id))


async def add_pictures(connection: Connection, team_id: str, collection_id: str, keys: Sequence[str]) -> int:
    """Put the team's pictures of these keys into a collection. Returns how many are new to it. Raises NotFoundError."""
    await _find(connection, team_id, collection_id)
    own = (
        select(images.c.key)
        .join(records, records.c.id == images.c.record_id)
        .where(images.c.key.in_(keys), images.c.state == "STORED", records.c.team_id == team_id, IS_VISIBLE)
    )
    held = select(collection_pictures.c.image_key).where(collection_pictures.c.collection_id == collection_id)
    new = list((await connection.execute(own.where(images.c.key.not_in(held)))).scalars())
    moment = now()
    rows = [{"collection_id": collection_id, "image_key": key, "added_at": moment} for key in new]
    if rows:
        await connection.execute(insert(collection_pictures), rows)
    return len(rows)


async def take_out_pictures(connection: Connection, team_id: str, collection_id: str, keys: Sequence[str]) -> int:
    """Take pictures out of a collection. Returns how many were in it. Raises NotFoundError."""
    await _find(connection, team_id, collection_id)
    these = (collection_pictures.c.collection_id == collection_id) & collection_pictures.c.image_key.in_(keys)
    return (await connection.execute(delete(collection_pictures).where(these))).rowcount


async def list_picture_keys(connection: Connection, collection_id: str) -> frozenset[str]:
    """The keys of the pictures in a collection."""
    query = select(collection_pictures.c.image_key).where(collection_pictures.c.collection_id == collection_id)
    return frozenset((await connection.execute(query)).scalars())


async def _find(connection: Connection, team_id: str, collection_id: str) -> None:
    query = select(collections.c.id).where(collections.c.id == collection_id, collections.c.team_id == team_id)
    if (await connection.execute(query)).first() is None:
        raise NotFoundError("the team has no such collection")

"""Shared pictures: a link that opens one picture with its receipt for whoever has it, until it is revoked."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from schnell.accounts.audit import actor_of, record
from schnell.accounts.identity import Caller
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import images, records, shares, teams
from schnell.errors import NotFoundError
from schnell.generations.records import IS_VISIBLE, Record, StoredImage, find_record

_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True)
class SharedPicture:
    """What a link opens."""

    record: Record
    image: StoredImage


async def share_picture(connection: Connection, caller: Caller, key: str) -> str:
    """The secret of the link to a team's picture: a new one, or the one that it has. Raises NotFoundError."""
    query = (
        select(images.c.record_id, shares.c.id)
        .join(records, records.c.id == images.c.record_id)
        .outerjoin(shares, shares.c.image_key == images.c.key)
        .where(images.c.key == key, images.c.state == "STORED", records.c.team_id == caller.team_id, IS_VISIBLE)
    )
    found = (await connection.execute(query)).first()
    if found is None:
        raise NotFoundError("the team has no such picture")
    if found.id is not None:
        return str(found.id)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    row = {
        "id": secret,
        "team_id": caller.team_id,
        "record_id": found.record_id,
        "image_key": key,
        "created_by": caller.user_id,
        "created_at": now(),
    }
    made = postgresql.insert(shares) if connection.dialect.name == "postgresql" else sqlite.insert(shares)
    done = await connection.execute(made.values(row).on_conflict_do_nothing(index_elements=["image_key"]))
    if not done.rowcount:  # somebody else has made one in the same moment
        return str((await connection.execute(select(shares.c.id).where(shares.c.image_key == key))).scalar_one())
    await record(connection, actor_of(caller), "share.made", key, target_id=found.record_id, team_id=caller.team_id)
    return secret


async def revoke_share(connection: Connection, caller: Caller, key: str) -> None:
    """Make a picture's link open nothing from now on. Without a link nothing happens."""
    theirs = (shares.c.team_id == caller.team_id) & (shares.c.image_key == key)
    gone = (await connection.execute(delete(shares).where(theirs).returning(shares.c.record_id))).first()
    if gone is not None:
        await record(connection, actor_of(caller), "share.revoked", key, target_id=gone[0], team_id=caller.team_id)


async def find_shared(connection: Connection, secret: str) -> SharedPicture:
    """What a link opens. Raises NotFoundError where it was revoked, its team is inactive, or its picture is gone."""
    opens = (shares.c.id == secret) & (teams.c.status == "ACTIVE")
    query = select(shares).join(teams, teams.c.id == shares.c.team_id).where(opens)
    found = (await connection.execute(query)).first()
    if found is not None:
        shown = await find_record(connection, found.team_id, found.record_id)
        for image in shown.images:
            if image.key == found.image_key:
                return SharedPicture(shown, image)
    raise NotFoundError("this link opens nothing: it was revoked, or its picture is no longer kept")


async def list_shared(connection: Connection, keys: Sequence[str]) -> dict[str, str]:
    """The secrets of the links that these pictures have, by their keys."""
    query = select(shares.c.image_key, shares.c.id).where(shares.c.image_key.in_(keys))
    return {row.image_key: row.id for row in await connection.execute(query)}

"""Which record a client's `Idempotency-Key` stands for."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import idempotency_keys, records
from schnell.errors import FieldProblem, IdempotencyConflictError, InvalidFieldError

KEPT_FOR: Final = timedelta(hours=24)
_LONGEST: Final = 255


async def claim(connection: Connection, team_id: str, key: str, body_sha256: str, record_id: str) -> str:
    """The record that answers a request with `key`: `record_id`, which the key is bound to now, or the one before.

    A key is free again when its generation has failed, was deleted, or is older than a day. To be called in the
    transaction that writes the record, so that either both hold or neither.

    Raises:
        IdempotencyConflictError: the key belongs to another body.
        InvalidFieldError: the key is too long.
    """
    if not 0 < len(key) <= _LONGEST or not key.isprintable():
        raise InvalidFieldError(FieldProblem("Idempotency-Key", f"must be 1-{_LONGEST} printable characters"))
    fresh = {
        "team_id": team_id,
        "key": key,
        "body_sha256": body_sha256,
        "record_id": record_id,
        "created_at": now(),
    }
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(idempotency_keys)
    # SQLAlchemy gives the number of rows of updates and deletes only: what was inserted is asked for
    added = insert.values(fresh).on_conflict_do_nothing().returning(idempotency_keys.c.key)
    if (await connection.execute(added)).first() is not None:
        return record_id
    whose = (idempotency_keys.c.team_id == team_id) & (idempotency_keys.c.key == key)
    # of several requests that find the key at once, the lock lets one after the other look; and the record is asked for
    # in a statement of its own, since one that had to wait would still show the record of before
    held = (await connection.execute(select(idempotency_keys).where(whose).with_for_update())).first()
    if held is None:  # it was a day old, and has just been deleted
        return await claim(connection, team_id, key, body_sha256, record_id)
    status = (await connection.execute(select(records.c.status).where(records.c.id == held.record_id))).scalar()
    if held.created_at > now() - KEPT_FOR and status not in {None, "FAILURE", "DELETED"}:
        if held.body_sha256 != body_sha256:
            raise IdempotencyConflictError("this Idempotency-Key came with another body before; use a new one")
        return str(held.record_id)
    await connection.execute(update(idempotency_keys).where(whose).values(fresh))
    return record_id


async def forget_old_claims(connection: Connection) -> None:
    """Delete the keys that are older than a day."""
    await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < now() - KEPT_FOR))

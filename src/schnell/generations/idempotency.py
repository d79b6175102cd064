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
    """Bind `key` to the record that shall answer it: `record_id`, or the one it already belongs to.

    A key is free again when its generation failed, was deleted, or is older than a day.

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
    if (await connection.execute(insert.values(fresh).on_conflict_do_nothing())).rowcount == 1:
        return record_id
    whose = (idempotency_keys.c.team_id == team_id) & (idempotency_keys.c.key == key)
    query = (
        select(idempotency_keys, records.c.status)
        .join(records, records.c.id == idempotency_keys.c.record_id, isouter=True)
        .where(whose)
        .with_for_update(of=idempotency_keys)
    )
    held = (await connection.execute(query)).one()
    if held.created_at > now() - KEPT_FOR and held.status not in {None, "FAILURE", "DELETED"}:
        if held.body_sha256 != body_sha256:
            raise IdempotencyConflictError("this Idempotency-Key came with another body before; use a new one")
        return str(held.record_id)
    await connection.execute(update(idempotency_keys).where(whose).values(fresh))
    return record_id


async def forget_old_claims(connection: Connection) -> None:
    """Drop keys older than a day."""
    await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < now() - KEPT_FOR))

"""The same request again: one that comes with an `Idempotency-Key`, or whose first answer did not arrive."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from schnell.accounts.identity import Caller
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import idempotency_keys, records
from schnell.errors import FieldProblem, IdempotencyConflictError, InvalidFieldError
from schnell.generations.request import GenerationRequest

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


_SECONDS: Final = 60.0
_MOST: Final = 1024


@dataclass(frozen=True, slots=True)
class _Unanswered:
    whose: tuple[str, ...]
    record_id: str
    until: float


class Unanswered:
    """The last records that were drawn, perhaps charged, and not answered: each answers one repeated request.

    Clients send a request again when its answer was an error or was lost, most without an `Idempotency-Key`. The same
    key, user, dialect and body within a minute is taken for that: it gets the record that is there and is not charged
    a second time. The memory of this server is enough, since a retry that goes elsewhere is only an ordinary request;
    of more than 1024 records the oldest are forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: deque[_Unanswered] = deque(maxlen=_MOST)

    def note(self, caller: Caller, request: GenerationRequest, record_id: str) -> None:
        """Keep a record for the retry of its request."""
        self._records.append(_Unanswered(_whose(caller, request), record_id, self._clock() + _SECONDS))

    def take(self, caller: Caller, request: GenerationRequest) -> str | None:
        """The oldest record that the same request has left; nobody else gets it."""
        if not self._records:
            return None  # the usual case, which shall not hash the body
        moment = self._clock()
        while self._records and self._records[0].until < moment:
            self._records.popleft()
        whose = _whose(caller, request)
        found = next((each for each in self._records if each.whose == whose), None)
        if found is None:
            return None
        self._records.remove(found)
        return found.record_id

    def __len__(self) -> int:
        return len(self._records)


def _whose(caller: Caller, request: GenerationRequest) -> tuple[str, ...]:
    return caller.team_id, caller.user_id, caller.key_id or "", request.body_sha256

"""The end of a generation in the database: written once, tried again until it is known to hold.

A transaction that fails may still have taken effect: the answer to its commit can be lost with the connection. So a
failure is never taken for "not done". The same transaction runs again, and its first statement, an update of a record
that is unfinished, finds out: either it writes the end, or the record has ended already, and whose end that is can be
read from it. No picture is removed before that is known.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlalchemy import and_, or_, select

from schnell.accounts.credits import Reservation, release, settle
from schnell.assets.store import AssetStore
from schnell.clock import Backoff, retry
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import images, ledger, records
from schnell.errors import (
    DatabaseUnavailableError,
    GenerationCancelledError,
    GenerationFailedError,
    NotFoundError,
    SchnellError,
    UnsafeContentError,
)
from schnell.generations.history import failure_of
from schnell.generations.records import (
    UNFINISHED,
    Record,
    find_record,
    finish_record,
    was_never_written,
    without_picture,
)
from schnell.generations.recovery import fail_record, remove_images

_log = logging.getLogger(__name__)
_BACKOFF = Backoff()
#: A closing that takes this many seconds is reported as overdue. Healthy ones take milliseconds.
_OVERDUE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a generation ended: its record as it shall be, and the error of a failure."""

    record: Record
    error: SchnellError | None = None


@dataclass(frozen=True, slots=True)
class Overdue:
    """Closings that the database has not taken yet, and for how many seconds the oldest is tried."""

    count: int
    seconds: float


def failed(record: Record, error: SchnellError) -> Ending:
    """The end of a generation that gives no picture and costs nothing."""
    ended = without_picture(record, error)
    if isinstance(error, UnsafeContentError):
        flagged = list(range(record.settings["num_outputs"]))
        ended = replace(ended, response_object={**ended.response_object, "flagged": flagged})
    return Ending(ended, error)


class Closings:
    """Writes the ends of this server's generations. Each waits in the memory of the task that it belongs to."""

    def __init__(self, database: Database, store: AssetStore, backoff: Backoff = _BACKOFF) -> None:
        self._database = database
        self._store = store
        self._backoff = backoff
        self._open: dict[str, float] = {}
        self._leftovers: set[str] = set()
        self.retries = 0

    async def close(self, ending: Ending, reservation: Reservation) -> Ending:
        """Write an end and settle or release its credits. Returns the end that holds.

        That is another one where somebody else, such as another server's recovery, has ended the record before: then
        this generation's pictures are not kept and nothing is charged for them. Returns only once the database has
        answered, however long that takes.
        """
        tried = [ending]

        async def write() -> Ending:
            async with self._database.write() as connection:
                return await _write(connection, tried, reservation)

        def note(error: Exception) -> None:
            self._note_failure(ending.record, error)
            if not isinstance(error, DatabaseUnavailableError):
                # the fault is in what is written, not in the database: a plain failure has nothing that can be refused
                tried[1:] = [_plain_failure(ending)]

        with self._tracking(ending.record):
            return await retry(write, note, self._backoff)

    async def abandon(self, draft: Record, error: SchnellError) -> None:
        """End a generation whose accepting transaction may have been committed, and which nobody carries out."""

        async def write() -> None:
            async with self._database.write() as connection:
                if not await was_never_written(connection, draft):
                    await fail_record(connection, draft, error)

        with self._tracking(draft):
            await retry(write, lambda cause: self._note_failure(draft, cause), self._backoff)
        await self._try_to_remove([image.key for image in draft.images])

    async def remove_unused(self, draft: Record, ended: Record) -> None:
        """Remove the pictures that were allocated in `draft` and that the end of the record does not name."""
        kept = {image.key for image in ended.images}
        unused = [image.key for image in draft.images if image.key not in kept]
        if unused:
            await self._try_to_remove(unused)

    async def remove_leftovers(self) -> None:
        """Try again to remove pictures that could not be removed, because the store or the database was away."""
        if self._leftovers:
            await self._try_to_remove(sorted(self._leftovers))

    def overdue(self) -> Overdue:
        """What is not closed although its generation is over."""
        moment = time.monotonic()
        ages = [moment - since for since in self._open.values()]
        late = [age for age in ages if age >= _OVERDUE_SECONDS]
        return Overdue(len(late), max(late, default=0.0))

    @contextmanager
    def _tracking(self, record: Record) -> Iterator[None]:
        self._open[record.id] = time.monotonic()
        try:
            yield
        finally:
            self._open.pop(record.id, None)

    def _note_failure(self, record: Record, error: Exception) -> None:
        self.retries += 1
        if isinstance(error, DatabaseUnavailableError):
            _log.warning("the end of record %s is written later: %s", record.id, error.message)
        else:
            _log.error("the end of record %s cannot be written", record.id, exc_info=error)

    async def _try_to_remove(self, keys: Sequence[str]) -> None:
        try:
            async with self._database.read() as connection:
                named = await _keys_in_use(connection, keys)
            if unnamed := [key for key in keys if key not in named]:
                await remove_images(self._database, self._store, unnamed)
        except SchnellError as error:
            _log.warning("%d pictures are removed later: %s", len(keys), error.message)
            self._leftovers.update(keys)
        else:
            self._leftovers.difference_update(keys)


async def _write(connection: Connection, tried: Sequence[Ending], reservation: Reservation) -> Ending:
    """Write the last of `tried`, unless the record has ended: with one of them, or otherwise."""
    ending = tried[-1]
    record = ending.record
    # while a lost connection's commit is still under way in the database, this waits for it
    if await finish_record(connection, record):
        if ending.error is None:
            await settle(connection, reservation, record.cost, len(record.images))
        else:
            await release(connection, reservation)
        return ending
    query = select(records.c.status, records.c.finished_at).where(records.c.id == record.id)
    found = (await connection.execute(query)).first()
    for each in tried:
        if found is not None and (found.status, found.finished_at) == (each.record.status, each.record.finished_at):
            return each
    return await _accept_other_end(connection, ending, reservation)


async def _accept_other_end(connection: Connection, ending: Ending, reservation: Reservation) -> Ending:
    await _release_if_open(connection, reservation)
    try:
        record = await find_record(connection, ending.record.team_id, ending.record.id)
    except NotFoundError:
        return failed(ending.record, GenerationCancelledError("the record was deleted meanwhile"))
    if record.status != "FAILURE":
        return Ending(record)
    # its pictures were announced and are of no use now; left in the record, they would count as kept
    return Ending(replace(record, images=()), failure_of(record))


async def _release_if_open(connection: Connection, reservation: Reservation) -> None:
    """Release a reservation that whoever ended the record has left open."""
    booked = ledger.c.record_id == reservation.record_id
    # the lock on the first entry keeps two servers from releasing it twice
    first = select(ledger.c.id).where(booked, ledger.c.kind == "reserve").with_for_update()
    await connection.execute(first)
    ends = select(ledger.c.id).where(booked, ledger.c.kind != "reserve")
    if (await connection.execute(ends)).first() is None:
        await release(connection, reservation)


async def _keys_in_use(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Those of `keys` that a record names, or that one which has not ended may still name."""
    may_be_named = or_(
        images.c.state == "STORED", and_(images.c.state == "ALLOCATED", records.c.status.in_(UNFINISHED))
    )
    query = select(images.c.key).join(records).where(images.c.key.in_(keys), may_be_named)
    return set((await connection.execute(query)).scalars())


def _plain_failure(ending: Ending) -> Ending:
    error = GenerationFailedError("the picture's record could not be written; nothing was charged. Try again")
    return failed(ending.record, error)

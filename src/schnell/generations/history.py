"""What can be done with a record after it was made: look, wait, cancel, rate, delete."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from schnell.accounts import audit
from schnell.accounts.identity import Caller
from schnell.assets.store import AssetStore
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.errors import (
    AdapterError,
    AssetError,
    ClosingError,
    DatabaseUnavailableError,
    DiskError,
    ForbiddenError,
    GenerationCancelledError,
    GenerationFailedError,
    InterruptedServerError,
    LoraDownloadError,
    LoraSourceError,
    ModelBusyError,
    PictureTooLargeError,
    SchnellError,
    UnsafeContentError,
)
from schnell.generations.records import (
    UNFINISHED,
    Record,
    RecordPage,
    change_record,
    find_picture,
    find_record,
    hide_record,
    list_records,
)
from schnell.generations.recovery import fail_record, remove_marked
from schnell.generations.running import Admission
from schnell.generations.searches import RecordSearch, list_used_loras

_POLL_SECONDS: Final = 0.5
_CANCELLED: Final = GenerationCancelledError("the generation was cancelled; nothing was charged")
_FAILURES: Final[dict[str, type[SchnellError]]] = {
    kind.code: kind
    for kind in (
        AdapterError,
        AssetError,
        DatabaseUnavailableError,
        DiskError,
        GenerationCancelledError,
        InterruptedServerError,
        ModelBusyError,
        PictureTooLargeError,
        LoraDownloadError,
        LoraSourceError,
        UnsafeContentError,
    )
}


class History:
    """A team's records. Another team's are as if they did not exist."""

    def __init__(self, database: Database, store: AssetStore, admission: Admission) -> None:
        self._database = database
        self._store = store
        self._admission = admission

    async def find(self, caller: Caller, record_id: str) -> Record:
        """One record. Raises NotFoundError."""
        async with self._database.read() as connection:
            return await find_record(connection, caller.team_id, record_id)

    async def find_picture(self, caller: Caller, key: str) -> None:
        """Check that the team has a stored picture under this key. Raises NotFoundError."""
        async with self._database.read() as connection:
            await find_picture(connection, caller.team_id, key)

    async def page(
        self, caller: Caller, limit: int, cursor: str | None, search: RecordSearch | None = None
    ) -> RecordPage:
        """Records, newest first. Raises InvalidFieldError for a cursor that is none."""
        # a page without a search is found by its index; a search may look at every record of the team
        reading = self._database.scan() if search else self._database.read()
        async with reading as connection:
            return await list_records(connection, caller.team_id, limit, cursor, search.conditions() if search else ())

    async def used_loras(self, caller: Caller) -> list[str]:
        """The names of the LoRAs that the team's pictures were made with."""
        async with self._database.scan() as connection:
            return await list_used_loras(connection, caller.team_id)

    async def wait(self, caller: Caller, record_id: str) -> Record:
        """A record once it has ended, wherever it runs. Raises NotFoundError, or the error of its failure."""
        running = self._admission.find(record_id)
        if running is not None:
            # whoever waits keeps it running: the last one who leaves cancels it
            with running.attended():
                return await running.ended()
        record = await self.find(caller, record_id)
        # another server draws it: the database is all that this one sees of it
        while record.status in UNFINISHED:
            await asyncio.sleep(_POLL_SECONDS)
            record = await self.find(caller, record_id)
        if record.status == "FAILURE":
            raise failure_of(record)
        return record

    async def cancel(self, caller: Caller, record_id: str) -> Record:
        """Stop a generation, wherever it runs; one that has ended stays as it is. Raises NotFoundError.

        Another server that draws it finds at its next heartbeat that the record has ended, and stops.
        """
        record = await self.find(caller, record_id)
        running = self._admission.find(record_id)
        if running is None:
            if record.status not in UNFINISHED:
                return record
            async with self._database.write() as connection:
                await fail_record(connection, record, _CANCELLED, drawn_elsewhere=True)
            return await self.find(caller, record_id)
        running.cancel()
        try:
            return await running.ended()
        except ClosingError:
            raise  # it has not ended in the database yet
        except SchnellError:
            return running.record

    async def rate(self, caller: Caller, record_id: str, rating: int | None) -> Record:
        """Keep a rating. Raises NotFoundError."""
        async with self._database.write() as connection:
            return await change_record(connection, caller.team_id, record_id, rating=rating)

    async def comment(self, caller: Caller, record_id: str, feedback: str | None) -> Record:
        """Keep feedback. Raises NotFoundError."""
        async with self._database.write() as connection:
            return await change_record(connection, caller.team_id, record_id, feedback=feedback)

    async def delete(self, caller: Caller, record_id: str) -> None:
        """Remove a record and its pictures; one under way is cancelled first.

        Raises:
            NotFoundError, AssetError: there is none, or its pictures cannot be removed.
            ForbiddenError: it is another member's, and the caller is no administrator.
        """
        check_may_delete(caller, [(await self.find(caller, record_id)).user_id])
        record = await self.cancel(caller, record_id)
        async with self._database.write() as connection:
            # unless it has ended: nobody looks at a hidden record again, so it must not hold credits
            await fail_record(connection, record, _CANCELLED, drawn_elsewhere=True)
            await hide_record(connection, record_id)
            await record_foreign(connection, caller, "generation.deleted", {record_id: record.user_id})
        await remove_marked(self._database, self._store)


def check_may_delete(caller: Caller, authors: Iterable[str]) -> None:
    """Refuse to let a member delete what others have drawn. Raises ForbiddenError."""
    foreign = sum(author != caller.user_id for author in authors)
    if foreign and "admin" not in caller.scopes:
        problem = f"{foreign} of these are another member's: they and the team's administrators may delete them"
        raise ForbiddenError(problem)


async def record_foreign(connection: Connection, caller: Caller, action: str, authors: Mapping[str, str]) -> None:
    """The line of the audit log about what an administrator does with others' records, by their ids with authors."""
    foreign = {record_id: author for record_id, author in authors.items() if author != caller.user_id}
    if foreign:
        details = {"of": sorted(set(foreign.values())), "records": sorted(foreign)}
        target = f"{len(foreign)} of other members'"
        await audit.record(connection, audit.actor_of(caller), action, target, team_id=caller.team_id, details=details)


def failure_of(record: Record) -> SchnellError:
    """The error that a record tells of."""
    kind = _FAILURES.get(record.error_code or "", GenerationFailedError)
    return kind(record.error_message or "the generation failed")

"""Records of generations and their pictures, in SQL."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Integer, Row, and_, bindparam, delete, or_, select, union, update
from sqlalchemy.dialects import postgresql, sqlite

from schnell.clock import now
from schnell.database.connection import Connection, Prepared, PreparedIn
from schnell.database.tables import collection_pictures, images, records, shares, trash
from schnell.errors import FieldProblem, InvalidFieldError, NotFoundError, SchnellError

RecordStatus = Literal["QUEUED", "PROCESSING", "SUCCESS", "FAILURE", "DELETED"]
UNFINISHED: Final[tuple[RecordStatus, ...]] = ("QUEUED", "PROCESSING")
#: The form of a page's `next_cursor`.
CURSOR: Final = re.compile(r"[0-9]{1,14}\.[0-9a-f-]{36}")
#: What was deleted a moment ago can be restored, and is hidden like what is gone.
IS_VISIBLE: Final = and_(
    records.c.status != "DELETED",
    ~select(trash.c.record_id).where(trash.c.record_id == records.c.id).correlate(records).exists(),
)


_File = bytes  # `bytes` is also a field's name below


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture's key in the store. `output` is which of the request's pictures it is.

    `data` is the file itself, where it was read back on the way and the answer shall hold it. `mark` is what its
    invisible mark carries, `manifest` the label of its credentials; None where it has none.
    """

    key: str
    output: int
    media_type: str
    bytes: int = 0
    data: _File | None = field(default=None, compare=False, repr=False)
    mark: str | None = None
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One generation, as it is kept.

    `cost` is what was charged, or reserved while it runs; `instance` the id of the server that draws it.
    """

    id: str
    team_id: str
    user_id: str
    key_id: str | None
    instance: str
    dialect: str
    type: str
    model: str
    status: RecordStatus
    prompt_object: Mapping[str, Any]
    settings: Mapping[str, Any]
    cost: int
    created_at: datetime
    response_object: Mapping[str, Any] = field(default_factory=dict)
    receipts: Sequence[Mapping[str, Any]] = ()
    error_code: str | None = None
    error_message: str | None = None
    rating: int | None = None
    feedback: str | None = None
    conversation_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    images: tuple[StoredImage, ...] = ()

    @property
    def served_model(self) -> str | None:
        """The model that really drew, whatever `model` the request called it. None until it has drawn."""
        return next((receipt["model"]["name"] for receipt in self.receipts), None)


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Records, newest first, and the cursor of the page after (None: this is the last)."""

    records: tuple[Record, ...]
    next_cursor: str | None


# a record's fields have the names of its columns; `images` are rows of their own
_COLUMNS: Final = tuple(name for name in Record.__dataclass_fields__ if name != "images")
_ENDING: Final = ("status", "response_object", "error_code", "error_message", "cost", "started_at", "finished_at")

_THIS_RECORD: Final = records.c.id == bindparam("of_record")
_INSERT_RECORD: Final = Prepared(records.insert(), sets=_COLUMNS)
_INSERT_IMAGE: Final = Prepared(images.insert(), sets=images.c.keys())
# a record that has ended meanwhile must not look unfinished again: both updates say from which status they start
_START: Final = Prepared(
    update(records).where(_THIS_RECORD, records.c.status == "QUEUED"), sets=("status", "started_at")
)
_FINISH: Final = Prepared(
    update(records).where(_THIS_RECORD, or_(*(records.c.status == each for each in UNFINISHED))),
    sets=(*_ENDING, "receipts"),
)
_STORE_IMAGE: Final = Prepared(
    update(images).where(images.c.key == bindparam("of_key")), sets=("state", "bytes", "mark", "manifest")
)
#: A picture that was announced by a record, which has ended without storing or removing it.
_ABANDONED: Final = and_(
    images.c.record_id == records.c.id, images.c.state == "ALLOCATED", records.c.status.not_in(UNFINISHED)
)
_EMPTY_AND_HIDDEN: Final = and_(
    records.c.status == "DELETED",
    ~select(images.c.record_id).where(images.c.record_id == records.c.id).correlate(records).exists(),
)
#: How many values one statement has at most: databases have a limit.
_MOST_AT_ONCE: Final = 500
# in the order of the fields, so that a row is a record's arguments
_SELECT: Final = select(*(records.c[name] for name in _COLUMNS))
_OF_TEAM: Final = records.c.team_id == bindparam("of_team")
_FIND: Final = Prepared(_SELECT.where(_THIS_RECORD, _OF_TEAM, IS_VISIBLE))
# the first condition is implied by the second, but only the first is one that an index can start from
_AFTER_CURSOR: Final = and_(
    records.c.created_at <= bindparam("last_moment"),
    or_(records.c.created_at < bindparam("last_moment"), records.c.id < bindparam("last_id")),
)
_NEWEST_FIRST: Final = (records.c.created_at.desc(), records.c.id.desc())
_PAGE: Final = _SELECT.where(_OF_TEAM, IS_VISIBLE).order_by(*_NEWEST_FIRST).limit(bindparam("most", type_=Integer))
_FIRST_PAGE: Final = Prepared(_PAGE)
_NEXT_PAGE: Final = Prepared(_PAGE.where(_AFTER_CURSOR))
# a picture that is marked for removal may have lost its file already: it is not shown
_PICTURES: Final = PreparedIn(
    lambda record_ids: (
        select(images)
        .where(images.c.record_id.in_(record_ids), images.c.state != "DELETING")
        .order_by(images.c.record_id, images.c.output)
    )
)


async def insert_record(connection: Connection, record: Record) -> None:
    """Write a new record, and its pictures as ALLOCATED: their files do not exist yet.

    The rows come first, so that a server that dies at any moment leaves no file without a row.
    """
    values = {name: getattr(record, name) for name in _COLUMNS}
    await _INSERT_RECORD.run(connection, values | {"receipts": list(record.receipts)})
    for image in record.images:
        row = {
            "key": image.key,
            "record_id": record.id,
            "output": image.output,
            "state": "ALLOCATED",
            "media_type": image.media_type,
            "bytes": 0,
            "created_at": record.created_at,
            "mark": None,
            "manifest": None,
        }
        await _INSERT_IMAGE.run(connection, row)


async def was_never_written(connection: Connection, record: Record) -> bool:
    """Whether `insert_record` of this record has no effect and never will have one, after its commit was lost."""
    values = {name: getattr(record, name) for name in _COLUMNS} | {"receipts": list(record.receipts)}
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(records)
    # a select does not see a commit that is still under way; an insert of the same key waits for it
    added = insert.values(values).on_conflict_do_nothing().returning(records.c.id)
    if (await connection.execute(added)).first() is None:
        return False
    await connection.execute(delete(records).where(records.c.id == record.id))
    return True


async def mark_started(connection: Connection, record_id: str, started_at: datetime) -> None:
    """Turn QUEUED into PROCESSING; any other status stays."""
    await _START.run(connection, {"of_record": record_id, "status": "PROCESSING", "started_at": started_at})


async def finish_record(connection: Connection, record: Record, *, drawn_elsewhere: bool = False) -> bool:
    """Write how a record ended, once. False when it has ended before: then its credits are settled or released, too.

    Pictures that `record` does not name are marked for removal, unless another server may still write their files
    (`drawn_elsewhere`): then they are that server's to remove, or the next `list_abandoned_pictures` finds them.
    """
    values: dict[str, Any] = {name: getattr(record, name) for name in _ENDING} | {"receipts": list(record.receipts)}
    if (await _FINISH.run(connection, values | {"of_record": record.id})).rowcount != 1:
        return False
    for image in record.images:
        values = {"state": "STORED", "bytes": image.bytes, "mark": image.mark, "manifest": image.manifest}
        await _STORE_IMAGE.run(connection, {"of_key": image.key, **values})
    if len(record.images) < record.settings["num_outputs"] and not drawn_elsewhere:
        unused = (images.c.record_id == record.id) & (images.c.state == "ALLOCATED")
        await connection.execute(update(images).where(unused).values(state="DELETING"))
    return True


def without_picture(record: Record, error: SchnellError) -> Record:
    """A record as it ends in failure: it names no picture, costs nothing, and its response object tells the error."""
    return replace(
        record,
        status="FAILURE",
        images=(),
        receipts=(),
        cost=0,
        error_code=error.code,
        error_message=error.message,
        response_object={"error": {"errorCode": error.code, "message": error.message}},
        finished_at=record.finished_at or now(),
    )


async def find_record(connection: Connection, team_id: str, record_id: str) -> Record:
    """A team's record.

    Raises:
        NotFoundError: the team has none with this id.
    """
    rows = (await _FIND.run(connection, {"of_record": record_id, "of_team": team_id})).rows
    found = await _with_pictures(connection, rows)
    if not found:
        raise NotFoundError("no record has this id")
    return found[0]


async def find_picture(connection: Connection, team_id: str, key: str) -> None:
    """Check that a record of the team has a stored picture under this key.

    Raises:
        NotFoundError: it has none.
    """
    shown = and_(images.c.key == key, images.c.state == "STORED", records.c.team_id == team_id, IS_VISIBLE)
    query = select(images.c.key).join(records, records.c.id == images.c.record_id).where(shown)
    if (await connection.execute(query)).first() is None:
        raise NotFoundError("no picture has this name")


async def list_records(
    connection: Connection,
    team_id: str,
    limit: int,
    cursor: str | None = None,
    wanted: Sequence[ColumnElement[bool]] = (),
) -> RecordPage:
    """A page of a team's records, newest first; `wanted` are further conditions.

    Raises:
        InvalidFieldError: `cursor` is not one that a page gave.
    """
    values: dict[str, Any] = {"of_team": team_id, "most": limit + 1}
    if cursor is not None:
        values["last_moment"], values["last_id"] = _read_cursor(cursor)
    if wanted:
        query = _PAGE.where(*wanted) if cursor is None else _PAGE.where(_AFTER_CURSOR, *wanted)
        rows: Sequence[Row[Any]] = (await connection.execute(query, values)).all()
    else:
        rows = (await (_FIRST_PAGE if cursor is None else _NEXT_PAGE).run(connection, values)).rows
    found = await _with_pictures(connection, rows)
    page = tuple(found[:limit])
    return RecordPage(page, _write_cursor(page[-1]) if len(found) > limit else None)


async def list_owners(connection: Connection) -> set[str]:
    """The ids of the servers that have unfinished records, or pictures that were announced and never stored."""
    drawing = select(records.c.instance).where(records.c.status.in_(UNFINISHED))
    allocated = select(records.c.instance).join(images, _ABANDONED)
    return set((await connection.execute(union(drawing, allocated))).scalars())


async def list_unfinished(
    connection: Connection, owners: Collection[str], before: datetime | None = None
) -> list[Record]:
    """The records that these servers have not ended; with `before`, those that are older than that moment."""
    query = _SELECT.where(records.c.status.in_(UNFINISHED), records.c.instance.in_(owners))
    if before is not None:
        query = query.where(records.c.created_at < before)
    return await _with_pictures(connection, (await connection.execute(query)).all()) if owners else []


async def list_ended(connection: Connection, record_ids: Sequence[str]) -> list[str]:
    """Those of these records that have ended, whoever has ended them."""
    ended: list[str] = []
    for start in range(0, len(record_ids), _MOST_AT_ONCE):
        some = records.c.id.in_(record_ids[start : start + _MOST_AT_ONCE])
        query = select(records.c.id).where(some, records.c.status.not_in(UNFINISHED))
        ended += (await connection.execute(query)).scalars()
    return ended


async def list_abandoned_pictures(connection: Connection, owners: Collection[str]) -> list[tuple[str, str]]:
    """Record and key of the pictures that these servers announced, and whose records have ended without them."""
    query = select(images.c.record_id, images.c.key).join(records, _ABANDONED).where(records.c.instance.in_(owners))
    return [(row.record_id, row.key) for row in await connection.execute(query)] if owners else []


async def mark_for_removal(connection: Connection, keys: Sequence[str]) -> None:
    """Mark announced pictures for removal: their files may exist or not."""
    for start in range(0, len(keys), _MOST_AT_ONCE):
        these = images.c.key.in_(keys[start : start + _MOST_AT_ONCE]) & (images.c.state == "ALLOCATED")
        await connection.execute(update(images).where(these).values(state="DELETING"))


async def change_record(connection: Connection, team_id: str, record_id: str, **changes: Any) -> Record:
    """Set `rating` or `feedback` of a team's record.

    Raises:
        NotFoundError: the team has none with this id.
    """
    whose = (records.c.id == record_id) & (records.c.team_id == team_id)
    await connection.execute(update(records).where(whose, IS_VISIBLE).values(changes))
    return await find_record(connection, team_id, record_id)


async def hide_record(connection: Connection, record_id: str) -> None:
    """Hide a record that has ended, and mark its stored pictures for removal.

    An announced picture keeps its row, and with it the record, until the server that draws it has stopped: it may still
    write the file, and a file must never be without a row.
    """
    await connection.execute(update(records).where(records.c.id == record_id).values(status="DELETED"))
    stored = (images.c.record_id == record_id) & (images.c.state == "STORED")
    await connection.execute(update(images).where(stored).values(state="DELETING"))
    keys = select(images.c.key).where(images.c.record_id == record_id)
    await connection.execute(delete(collection_pictures).where(collection_pictures.c.image_key.in_(keys)))
    await connection.execute(delete(shares).where(shares.c.record_id == record_id))


async def expire_images(connection: Connection, before: datetime) -> None:
    """Mark the pictures made before this moment for removal. Their records stay."""
    old = (images.c.state == "STORED") & (images.c.created_at < before)
    keys = select(images.c.key).where(old)
    await connection.execute(delete(collection_pictures).where(collection_pictures.c.image_key.in_(keys)))
    await connection.execute(delete(shares).where(shares.c.image_key.in_(keys)))
    await connection.execute(update(images).where(old).values(state="DELETING"))


async def list_removable(connection: Connection) -> list[str]:
    """The keys of pictures that are marked for removal."""
    return list((await connection.execute(select(images.c.key).where(images.c.state == "DELETING"))).scalars())


async def has_hidden_records(connection: Connection) -> bool:
    """Whether there are hidden records without pictures, which `forget_images` removes."""
    return (await connection.execute(select(records.c.id).where(_EMPTY_AND_HIDDEN).limit(1))).first() is not None


async def forget_images(connection: Connection, keys: Sequence[str]) -> None:
    """Drop the rows of removed files, and the hidden records that have no rows left."""
    for start in range(0, len(keys), _MOST_AT_ONCE):
        await connection.execute(delete(images).where(images.c.key.in_(keys[start : start + _MOST_AT_ONCE])))
    await connection.execute(delete(records).where(_EMPTY_AND_HIDDEN))


async def list_image_keys(connection: Connection) -> set[str]:
    """Every key that the database knows."""
    return set((await connection.execute(select(images.c.key))).scalars())


async def _with_pictures(connection: Connection, rows: Sequence[Row[Any]]) -> list[Record]:
    """The records of rows of `_SELECT`."""
    if not rows:
        return []
    # one query for the pictures of the whole page, not one a record
    pictures: dict[str, list[StoredImage]] = {}
    for image in (await _PICTURES.run(connection, [row.id for row in rows])).rows:
        shown = StoredImage(
            image.key, image.output, image.media_type, image.bytes, mark=image.mark, manifest=image.manifest
        )
        pictures.setdefault(image.record_id, []).append(shown)
    return [_to_record((*row, tuple(pictures.get(row.id, ())))) for row in rows]


def _to_record(fields: tuple[Any, ...]) -> Record:
    return Record(*fields)


def _write_cursor(record: Record) -> str:
    return f"{round(record.created_at.timestamp() * 1000)}.{record.id}"


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    if not CURSOR.fullmatch(cursor):
        raise InvalidFieldError(FieldProblem("cursor", "must be the nextCursor of a page before"))
    millis, _, record_id = cursor.partition(".")
    return datetime.fromtimestamp(int(millis) / 1000, UTC), record_id

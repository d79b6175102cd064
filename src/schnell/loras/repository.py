"""The LoRA library and the list of downloads, in SQL."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from schnell.adapters import CanonicalInfo
from schnell.database.connection import Connection
from schnell.database.tables import lora_downloads, loras
from schnell.errors import ConflictError, NotFoundError
from schnell.loras.references import is_library_name

#: The owner of LoRAs that every team sees.
PUBLIC: Final = ""
_TOUCH_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class LibraryLora:
    """A LoRA of the library. `owner` is a team's id, or empty for one that every team sees; `bytes` its file's size."""

    id: str
    owner: str
    name: str
    source: str
    sha256: str
    layout: str
    made_for: str
    rank: int
    width: int | None
    bytes: int
    trigger_words: tuple[str, ...]
    base_model: tuple[str, ...]
    licence: str | None
    warnings: tuple[str, ...]
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Labels:
    """What the one who adds a LoRA says of it. It goes before what the file and its site say."""

    name: str | None = None
    trigger_words: tuple[str, ...] = ()
    licence: str | None = None


NO_LABELS: Final = Labels()


@dataclass(frozen=True, slots=True)
class Download:
    """A converted file that an outside reference led to."""

    reference: str
    sha256: str
    bytes: int
    fetched_at: datetime
    used_at: datetime


_COLUMNS: Final = tuple(LibraryLora.__dataclass_fields__)
_LISTS: Final = ("trigger_words", "base_model", "warnings")


def draft_lora(  # noqa: PLR0913 - what the file says, and what the one who adds it says
    info: CanonicalInfo, sha256: str, size: int, *, owner: str, name: str, source: str, created_by: str
) -> LibraryLora:
    """A library entry for a converted file."""
    return LibraryLora(
        id=str(uuid4()),
        owner=owner,
        name=name,
        source=source,
        sha256=sha256,
        layout=info.layout,
        made_for=info.made_for,
        rank=info.rank,
        width=info.width,
        bytes=size,
        trigger_words=info.trigger_words,
        base_model=info.base_model,
        licence=info.licence,
        warnings=info.warnings,
        created_by=created_by,
        created_at=datetime.now(UTC),
    )


async def insert_lora(connection: Connection, lora: LibraryLora) -> None:
    """Write a new entry. Raises ConflictError where its owner has one of this name."""
    values = {name: getattr(lora, name) for name in _COLUMNS}
    try:
        await connection.execute(loras.insert().values(values | {name: list(values[name]) for name in _LISTS}))
    except IntegrityError as cause:
        raise name_taken(lora.name) from cause


def name_taken(name: str) -> ConflictError:
    """The error for a name that its owner has given already."""
    return ConflictError(f"there is a LoRA called {name!r} already; remove it first, or choose another name")


async def list_loras(connection: Connection, team_id: str | None = None) -> list[LibraryLora]:
    """A team's LoRAs and the public ones, by name; without a team, all of them."""
    query = select(loras).order_by(loras.c.name, loras.c.owner.desc())
    if team_id is not None:
        query = query.where(loras.c.owner.in_((team_id, PUBLIC)))
    return [_to_lora(row) for row in await connection.execute(query)]


async def count_loras(connection: Connection, owner: str) -> int:
    """How many LoRAs an owner has."""
    query = select(func.count()).select_from(loras).where(loras.c.owner == owner)
    return int((await connection.execute(query)).scalar_one())


async def look_up_lora(connection: Connection, team_id: str, name_or_id: str) -> LibraryLora | None:
    """The team's LoRA of this name or id, else the public one, else None."""
    if not is_library_name(name_or_id.lower()):
        return None
    query = (
        select(loras)
        .where(loras.c.owner.in_((team_id, PUBLIC)), (loras.c.name == name_or_id.lower()) | (loras.c.id == name_or_id))
        .order_by(loras.c.owner.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).first()
    return None if row is None else _to_lora(row)


async def delete_lora(connection: Connection, owner: str, name_or_id: str) -> LibraryLora:
    """Take an owner's LoRA out of the library. Raises NotFoundError where it has none of this name or id."""
    found = await look_up_lora(connection, owner, name_or_id)
    if found is None or found.owner != owner:
        raise NotFoundError(f"there is no LoRA called {name_or_id[:100]!r} that you may remove")
    await connection.execute(delete(loras).where(loras.c.id == found.id))
    return found


async def is_in_library(connection: Connection, sha256: str) -> bool:
    """Whether any entry uses this file."""
    query = select(loras.c.id).where(loras.c.sha256 == sha256).limit(1)
    return (await connection.execute(query)).first() is not None


async def is_downloaded(connection: Connection, sha256: str) -> bool:
    """Whether any reference led to this file."""
    query = select(lora_downloads.c.reference).where(lora_downloads.c.sha256 == sha256).limit(1)
    return (await connection.execute(query)).first() is not None


async def find_download(connection: Connection, reference: str) -> Download | None:
    """What a reference led to the last time, or None."""
    row = (await connection.execute(select(lora_downloads).where(lora_downloads.c.reference == reference))).first()
    return None if row is None else _to_download(row)


async def keep_download(connection: Connection, reference: str, sha256: str, size: int) -> None:
    """Note what a reference led to."""
    moment = datetime.now(UTC)
    await connection.execute(delete(lora_downloads).where(lora_downloads.c.reference == reference))
    values = {"reference": reference, "sha256": sha256, "bytes": size, "fetched_at": moment, "used_at": moment}
    await connection.execute(lora_downloads.insert().values(values))


def wants_touch(download: Download) -> bool:
    """Whether the noted time of use is old enough to be written again."""
    return datetime.now(UTC) - download.used_at > timedelta(seconds=_TOUCH_SECONDS)


async def touch_download(connection: Connection, reference: str) -> None:
    """Note that a download is used now."""
    statement = update(lora_downloads).where(lora_downloads.c.reference == reference)
    await connection.execute(statement.values(used_at=datetime.now(UTC)))


async def list_downloads(connection: Connection) -> list[Download]:
    """Every download, the longest unused first."""
    query = select(lora_downloads).order_by(lora_downloads.c.used_at)
    return [_to_download(row) for row in await connection.execute(query)]


async def forget_downloads(connection: Connection, sha256: str) -> None:
    """Drop every reference to a file."""
    await connection.execute(delete(lora_downloads).where(lora_downloads.c.sha256 == sha256))


def _to_lora(row: Row[Any]) -> LibraryLora:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return LibraryLora(**(values | {name: tuple(values[name]) for name in _LISTS}))


def _to_download(row: Row[Any]) -> Download:
    return Download(row.reference, row.sha256, row.bytes, row.fetched_at, row.used_at)

"""The LoRA library and the list of downloads: every statement on their tables."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from schnell.adapters import CanonicalInfo
from schnell.clock import now
from schnell.database.connection import Connection, upsert
from schnell.database.tables import lora_downloads, loras, new_id
from schnell.errors import ConflictError, NotFoundError
from schnell.loras.references import is_library_name

#: The owner of LoRAs that every team sees.
PUBLIC: Final = ""
#: How exact the noted time of a download's last use is. Noted at each use, every request with a LoRA would write.
_TOUCH_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class LibraryLora:
    """A LoRA of the library. `owner` is a team's id, or `PUBLIC`; `sha256` names its file, of `bytes` bytes.

    `source` is the reference or file name that it was added from; `layout`, `made_for`, `rank` and `width` are what the
    file was found to be.
    """

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


#: Called in the transaction in which a LoRA comes or goes, to write down who did it.
LoraNote = Callable[[Connection, LibraryLora], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Labels:
    """What a caller who adds a LoRA says of it, before what the file and its site say."""

    name: str | None = None
    trigger_words: tuple[str, ...] = ()
    licence: str | None = None


NO_LABELS: Final = Labels()


@dataclass(frozen=True, slots=True)
class Download:
    """A converted file that a remote reference led to, of `bytes` bytes. `reference` is the key that it is found by."""

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
    """A new LoRA of the library for a converted file of `size` bytes, not stored yet."""
    return LibraryLora(
        id=new_id(),
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
        created_at=now(),
    )


async def insert_lora(connection: Connection, lora: LibraryLora) -> None:
    """Store a new LoRA.

    Raises:
        ConflictError: its owner has one of this name.
    """
    values = {name: getattr(lora, name) for name in _COLUMNS}
    try:
        await connection.execute(loras.insert().values(values | {name: list(values[name]) for name in _LISTS}))
    except IntegrityError as cause:
        raise name_taken(lora.name) from cause


def name_taken(name: str) -> ConflictError:
    """The error for a name that its owner has given to another LoRA."""
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
        # the team's own goes first: every id is greater than PUBLIC, the empty text
        .order_by(loras.c.owner.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).first()
    return None if row is None else _to_lora(row)


async def delete_lora(connection: Connection, owner: str, name_or_id: str) -> LibraryLora:
    """Delete an owner's LoRA from the library, and give what it was.

    Raises:
        NotFoundError: the owner has none of this name or id.
    """
    found = await look_up_lora(connection, owner, name_or_id)
    if found is None or found.owner != owner:
        raise NotFoundError(f"there is no LoRA called {name_or_id[:100]!r} that you may remove")
    await connection.execute(delete(loras).where(loras.c.id == found.id))
    return found


async def is_in_library(connection: Connection, sha256: str) -> bool:
    """Whether any LoRA of the library has this file."""
    query = select(loras.c.id).where(loras.c.sha256 == sha256).limit(1)
    return (await connection.execute(query)).first() is not None


async def name_downloads(connection: Connection, hashes: Collection[str]) -> dict[str, str]:
    """The reference that led to each of these files, by their hashes, where there was one."""
    query = select(lora_downloads.c.sha256, lora_downloads.c.reference).where(lora_downloads.c.sha256.in_(hashes))
    return dict(map(tuple, await connection.execute(query)))


async def is_downloaded(connection: Connection, sha256: str) -> bool:
    """Whether any reference led to this file."""
    query = select(lora_downloads.c.reference).where(lora_downloads.c.sha256 == sha256).limit(1)
    return (await connection.execute(query)).first() is not None


async def find_download(connection: Connection, reference: str) -> Download | None:
    """What a reference led to the last time, or None."""
    row = (await connection.execute(select(lora_downloads).where(lora_downloads.c.reference == reference))).first()
    return None if row is None else _to_download(row)


async def keep_download(connection: Connection, reference: str, sha256: str, size: int) -> None:
    """Store what a reference led to, in place of what it led to before."""
    moment = now()
    values = {"reference": reference, "sha256": sha256, "bytes": size, "fetched_at": moment, "used_at": moment}
    await upsert(connection, lora_downloads, values)


def is_touch_due(download: Download) -> bool:
    """Whether the time of last use is so old that a use now shall be noted. The first use always is."""
    return download.used_at == download.fetched_at or now() - download.used_at > timedelta(seconds=_TOUCH_SECONDS)


async def touch_download(connection: Connection, reference: str) -> None:
    """Set a download's time of last use to now."""
    statement = update(lora_downloads).where(lora_downloads.c.reference == reference)
    await connection.execute(statement.values(used_at=now()))


async def list_downloads(connection: Connection) -> list[Download]:
    """Every download, the one that was unused for longest first."""
    query = select(lora_downloads).order_by(lora_downloads.c.used_at)
    return [_to_download(row) for row in await connection.execute(query)]


async def forget_downloads(connection: Connection, sha256: str, *, used: bool = True) -> None:
    """Delete every download that led to this file; without `used`, only those that no request has named since."""
    these = lora_downloads.c.sha256 == sha256
    if not used:
        these &= lora_downloads.c.used_at == lora_downloads.c.fetched_at
    await connection.execute(delete(lora_downloads).where(these))


def _to_lora(row: Row[Any]) -> LibraryLora:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return LibraryLora(**(values | {name: tuple(values[name]) for name in _LISTS}))


def _to_download(row: Row[Any]) -> Download:
    return Download(row.reference, row.sha256, row.bytes, row.fetched_at, row.used_at)

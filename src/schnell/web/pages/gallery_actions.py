"""What the gallery does with chosen pictures: delete and restore, download as a zip, collections, share links."""

import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import select
from starlette.responses import Response, StreamingResponse

from schnell.accounts.identity import Caller
from schnell.assets.store import file_name
from schnell.clock import now
from schnell.database.tables import images, records
from schnell.errors import NotFoundError
from schnell.generations import collections, shares, trash
from schnell.generations.records import IS_VISIBLE
from schnell.validation import Like
from schnell.web.auth import Generator, Reader
from schnell.web.services import Services, services_of

router = APIRouter(prefix="/gallery")
_MOST: Final = 500
_Id = Annotated[str, Like(r"[0-9a-f-]{36}", "must be the id of a record")]
_Key = Annotated[str, StringConstraints(max_length=300)]


class Records(BaseModel):
    """Records by their ids."""

    records: Annotated[list[_Id], Field(min_length=1, max_length=_MOST)]


class Pictures(BaseModel):
    """Pictures by their keys."""

    keys: Annotated[list[_Key], Field(min_length=1, max_length=_MOST)]


class Name(BaseModel):
    """The name of a new collection."""

    name: Annotated[str, Field(max_length=collections.LONGEST_NAME)]


class Key(BaseModel):
    """One picture."""

    key: _Key


@router.post("/delete")
async def delete(request: Request, caller: Generator, body: Records) -> dict[str, Any]:
    """Hide records with their pictures; they can be restored for ten minutes."""
    services = services_of(request)
    deleted = await trash.throw_away(services.database, services.history, caller, body.records)
    return {"deleted": deleted, "undoSeconds": int(trash.UNDO_FOR.total_seconds())}


@router.post("/restore")
async def restore(request: Request, caller: Generator, body: Records) -> dict[str, Any]:
    """Show again what was deleted."""
    return {"restored": await trash.restore(services_of(request).database, caller, body.records)}


@router.post("/download")
async def download(request: Request, caller: Reader, keys: Annotated[str, Form(max_length=200_000)]) -> Response:
    """The pictures of these keys, separated by spaces, in one zip file that is written while it is sent."""
    services = services_of(request)
    found = await _find_keys(services, caller, keys.split()[:_MOST])
    if not found:
        raise NotFoundError("none of these pictures is kept any more")
    name = f"schnell-{now():%Y-%m-%d-%H%M}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_zip(services, found), media_type="application/zip", headers=headers)


@router.post("/collections", status_code=201)
async def make_collection(request: Request, caller: Generator, body: Name) -> dict[str, Any]:
    """A new, empty collection."""
    async with services_of(request).database.write() as connection:
        made = await collections.make_collection(connection, caller, body.name)
    return {"id": made.id, "name": made.name}


@router.delete("/collections/{collection_id}", status_code=204)
async def remove_collection(request: Request, caller: Generator, collection_id: str) -> None:
    """Remove a collection; its pictures stay."""
    async with services_of(request).database.write() as connection:
        await collections.remove_collection(connection, caller.team_id, collection_id)


@router.post("/collections/{collection_id}/add")
async def add_pictures(request: Request, caller: Generator, collection_id: str, body: Pictures) -> dict[str, Any]:
    """Put pictures into a collection."""
    async with services_of(request).database.write() as connection:
        return {"added": await collections.add_pictures(connection, caller.team_id, collection_id, body.keys)}


@router.post("/collections/{collection_id}/take-out")
async def take_out(request: Request, caller: Generator, collection_id: str, body: Pictures) -> dict[str, Any]:
    """Take pictures out of a collection."""
    async with services_of(request).database.write() as connection:
        return {"removed": await collections.take_out_pictures(connection, caller.team_id, collection_id, body.keys)}


@router.post("/share")
async def share(request: Request, caller: Generator, body: Key) -> dict[str, Any]:
    """A link that opens the picture and its receipt for whoever has it."""
    async with services_of(request).database.write() as connection:
        return {"path": f"/s/{await shares.share_picture(connection, caller, body.key)}"}


@router.post("/unshare", status_code=204)
async def unshare(request: Request, caller: Generator, body: Key) -> None:
    """The picture's link opens nothing from now on."""
    async with services_of(request).database.write() as connection:
        await shares.revoke_share(connection, caller, body.key)


async def _find_keys(services: Services, caller: Caller, keys: Sequence[str]) -> list[str]:
    """Those of these pictures that the team has, in the order given."""
    query = (
        select(images.c.key)
        .join(records, records.c.id == images.c.record_id)
        .where(images.c.key.in_(keys), images.c.state == "STORED", records.c.team_id == caller.team_id, IS_VISIBLE)
    )
    async with services.database.read() as connection:
        own = set((await connection.execute(query)).scalars())
    return [key for key in dict.fromkeys(keys) if key in own]


class _Sink:
    """What `zipfile` writes to: it keeps bytes until they are sent on. It cannot be sought in, as no answer can."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep `data`."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def take(self) -> bytes:
        """What was written since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


async def _zip(services: Services, keys: Sequence[str]) -> AsyncIterator[bytes]:
    sink = _Sink()
    # pictures are compressed already
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for key, name in zip(keys, _names(keys), strict=True):
            try:
                picture = await services.store.get(key)
            except NotFoundError:
                continue  # deleted while the others were sent
            archive.writestr(name, picture)
            yield sink.take()
    yield sink.take()


def _names(keys: Sequence[str]) -> Iterator[str]:
    """A file name for each key; the keys of two environments may end in the same one."""
    seen: set[str] = set()
    for key in keys:
        name = file_name(key)
        yield name if name not in seen else key.replace("/", "-")
        seen.add(name)

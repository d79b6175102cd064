"""Stored pictures, whether they are local files or in a bucket: behind signed links, and by their keys.

`GET /files/…` opens for whoever has the link. `GET /KEY`, which is a record's `resultObject` after this server's
address, opens for whoever may read the record.
"""

import time
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import Response

from schnell.assets.links import FILES_PATH
from schnell.assets.store import PICTURE_FILE, check_key, is_key
from schnell.errors import NotFoundError
from schnell.generations.trash import is_thrown_away
from schnell.web.auth import Reader
from schnell.web.openapi import KEYED, error_answers
from schnell.web.services import services_of
from schnell.web.stored_pictures import send_picture

router = APIRouter()
#: Short: a key that is revoked, or a picture that is deleted, is no longer shown after it.
_KEY_SECONDS: Final = 300
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_PICTURE_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The picture's file",
        "content": dict.fromkeys(("image/webp", "image/jpeg", "image/png"), _BINARY),
    }
}


@router.api_route(
    FILES_PATH + "{key:path}",
    methods=["GET", "HEAD"],
    tags=["pictures"],
    summary="A stored picture",
    include_in_schema=False,
)
async def picture(request: Request, key: str) -> Response:
    """The picture that a signed link opens, unless it was deleted. An `Authorization` is ignored.

    `If-None-Match` and HEAD work; `Range` works for local files.
    """
    services = services_of(request)
    raw_path = request.scope["raw_path"]
    expires = services.links.check(raw_path, request.scope["query_string"], time.time())
    # the signature is not enough: the path must also be a key of the store, written as links are written
    if raw_path != (FILES_PATH + quote(check_key(key))).encode():
        raise NotFoundError("no picture has this name")
    async with services.database.read() as connection:
        # its file stays for as long as the deletion can be undone, and must not open meanwhile
        if await is_thrown_away(connection, key):
            raise NotFoundError("this picture was deleted")
    return await send_picture(request, key, max(0, expires - int(time.time())))


class _PictureFile(Convertor[str]):
    """The last part of a picture's key, so that its route is no other path's, such as /v1/images/edits."""

    regex = PICTURE_FILE

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("picture", _PictureFile())


@router.get(
    "/{environment}/images/{name:picture}",
    tags=["pictures"],
    summary="A picture by its key",
    openapi_extra=KEYED,
    response_class=Response,
    responses=_PICTURE_ANSWER | error_answers(401, 403, 404),
)
async def picture_by_key(request: Request, caller: Reader, environment: str, name: str) -> Response:
    """The picture whose key a record's `resultObject` holds, for a key or a session of its team."""
    services = services_of(request)
    key = f"{environment}/images/{name}"
    if not is_key(key):
        raise HTTPException(404)
    await services.history.find_picture(caller, key)
    return await send_picture(request, key, _KEY_SECONDS)

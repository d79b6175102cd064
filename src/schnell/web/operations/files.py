"""`GET /files/…`: stored pictures behind this server's signed links, whether they are local files or in a bucket."""

import time
from hashlib import sha256
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from schnell.assets.links import FILES_PATH
from schnell.assets.store import check_key, file_name, media_type_of
from schnell.errors import NotFoundError
from schnell.web.services import Services, services_of

router = APIRouter()
_POLICY: Final = "default-src 'none'; sandbox"


@router.api_route(
    FILES_PATH + "{key:path}",
    methods=["GET", "HEAD"],
    tags=["pictures"],
    summary="A stored picture",
    include_in_schema=False,
)
async def picture(request: Request, key: str) -> Response:
    """The picture that a signed link opens; the signature is all that is checked, an `Authorization` is ignored.

    `If-None-Match` and HEAD work; `Range` works for local files.
    """
    services = services_of(request)
    raw_path = request.scope["raw_path"]
    expires = services.links.check(raw_path, request.scope["query_string"], time.time())
    # the signature is not enough: the path must also be a key of the store, written as links are written
    if raw_path != (FILES_PATH + quote(check_key(key))).encode():
        raise NotFoundError("no picture has this name")
    # a picture never changes under its key, so the key identifies its content
    etag = f'"{sha256(key.encode()).hexdigest()[:32]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}, immutable",
        "Content-Disposition": f'inline; filename="{file_name(key)}"',
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return await _answer(services, key, headers, is_known=etag in request.headers.get("if-none-match", ""))


async def _answer(services: Services, key: str, headers: dict[str, str], *, is_known: bool) -> Response:
    if services.local_assets is None:
        data = b"" if is_known else await services.store.get(key)
        return Response(data, 304 if is_known else 200, headers, None if is_known else media_type_of(key))
    path = services.local_assets.path(key)
    if not path.is_file():
        raise NotFoundError("this picture is no longer stored")
    if is_known:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type=media_type_of(key), headers=headers)

"""Stored pictures behind signed links."""

import time
from hashlib import sha256
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from schnell.assets.links import FILES_PATH
from schnell.assets.store import check_key, file_name, media_type_of
from schnell.errors import NotFoundError
from schnell.web.services import services_of

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
    """The picture that a signed link opens. Ranges, `If-None-Match` and HEAD work as they do for any file."""
    services = services_of(request)
    if services.local_assets is None:
        raise NotFoundError("this server keeps its pictures elsewhere")
    raw_path = request.scope["raw_path"]
    expires = services.local_assets.signer.check(raw_path, request.scope["query_string"], time.time())
    if raw_path != (FILES_PATH + quote(check_key(key))).encode():
        raise NotFoundError("no picture has this name")
    path = services.local_assets.path(key)
    if not path.is_file():
        raise NotFoundError("this picture is no longer stored")
    # a picture under a key never changes, so its name tells it apart
    etag = f'"{sha256(key.encode()).hexdigest()[:32]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}, immutable",
        "Content-Disposition": f'inline; filename="{file_name(key)}"',
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type=media_type_of(key), headers=headers)

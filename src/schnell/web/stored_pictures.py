"""A stored picture as an answer, from whichever store, for routes that have found that the caller may see it."""

from hashlib import sha256
from typing import Final

from fastapi import Request
from starlette.responses import FileResponse, Response

from schnell.assets.store import file_name, media_type_of
from schnell.errors import NotFoundError
from schnell.web.services import Services, services_of

_POLICY: Final = "default-src 'none'; sandbox"


async def send_picture(request: Request, key: str, seconds: int) -> Response:
    """The picture's file, which whoever asked may keep for `seconds`. Raises NotFoundError, AssetError."""
    return await _answer(services_of(request), key, _headers(key, seconds), is_known=_is_known(request, key))


def _headers(key: str, seconds: int) -> dict[str, str]:
    return {
        # a picture never changes under its key, so the key identifies its content
        "ETag": _etag(key),
        "Cache-Control": f"private, max-age={seconds}, immutable",
        "Content-Disposition": f'inline; filename="{file_name(key)}"',
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def _etag(key: str) -> str:
    return f'"{sha256(key.encode()).hexdigest()[:32]}"'


def _is_known(request: Request, key: str) -> bool:
    return _etag(key) in request.headers.get("if-none-match", "")


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

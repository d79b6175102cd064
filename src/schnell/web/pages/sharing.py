"""The public page of one picture: what it shows, how it was made, and where that can be checked."""

import json
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.generations.shares import SharedPicture, find_shared
from schnell.spec import output_seed
from schnell.web.pages.gallery import recall_link
from schnell.web.pages.site import find_caller, page
from schnell.web.services import services_of
from schnell.web.stored_pictures import send_picture

router = APIRouter(prefix="/s")
#: Short: a link that is revoked shows nothing after it.
_SECONDS: Final = 60


@router.get("/{secret}")
async def shared(request: Request, secret: str) -> Response:
    """The page. Search engines are asked to leave it out: its link is for those who were given it."""
    found = await _find(request, secret)
    record = found.record
    shown = page(
        request,
        "share.html",
        await find_caller(request),
        picture=f"/s/{secret}/picture",
        settings=record.settings,
        seed=output_seed(int(record.response_object["seed"]), found.image.output),
        drawn=record.created_at,
        model=record.served_model or record.model,
        recall=recall_link(record, found.image),
        receipt=_show_receipt(found),
        file_name=found.image.key.rpartition("/")[2],
    )
    shown.headers["X-Robots-Tag"] = "noindex"
    return shown


@router.get("/{secret}/picture")
async def picture(request: Request, secret: str) -> Response:
    """The picture's file, with its receipt, mark and credentials."""
    found = await _find(request, secret)
    answer = await send_picture(request, found.image.key, _SECONDS)
    answer.headers["X-Robots-Tag"] = "noindex"
    return answer


async def _find(request: Request, secret: str) -> SharedPicture:
    async with services_of(request).database.read() as connection:
        return await find_shared(connection, secret)


def _show_receipt(found: SharedPicture) -> str:
    """The receipt of the picture as indented JSON; records of before receipts were kept have none."""
    receipts: list[Any] = list(found.record.receipts)
    outputs = [image.output for image in found.record.images]
    place = outputs.index(found.image.output)
    return json.dumps(receipts[place], indent=2, ensure_ascii=False) if place < len(receipts) else ""

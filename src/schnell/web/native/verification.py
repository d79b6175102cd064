"""`POST /api/verify`: where a picture comes from. Anybody may ask; nothing of the picture is kept."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from schnell.errors import NotFoundError, UnreadablePictureError
from schnell.generations.lookup import DrawnPicture, find_by_manifest, find_by_mark
from schnell.web.auth import address_of
from schnell.web.openapi import TEXT, TEXTS, error_answers, example_of, json_answer, object_of
from schnell.web.services import Services, services_of

router = APIRouter(tags=["proof"])
_PART: Final = {"type": "object"}
_SIDE: Final = {"type": ["integer", "null"]}
_FOUND: Final = object_of(
    {
        "summary": TEXT,
        "media_type": TEXT,
        "width": _SIDE,
        "height": _SIDE,
        "credentials": _PART,
        "mark": _PART,
        "metadata": _PART,
        "receipt": {"type": ["object", "null"]},
        "notes": TEXTS,
        "drawn_here": {"type": "array", "items": _PART},
    }
)
_EXAMPLE: Final = {
    "summary": "made by a model, according to the invisible mark",
    "media_type": "image/jpeg",
    "width": 512,
    "height": 512,
    "credentials": {"state": "absent"},
    "mark": {"found": True, "id": "ce5ed3a967", "certainty": 10.2, "orientation": "upright", "scale": 0.5},
    "metadata": {"digital_source_type": None},
    "receipt": None,
    "notes": [],
    "drawn_here": [
        {
            "created_at": "2026-11-27T12:00:00+00:00",
            "model": "schnell-mini",
            "manifest_id": "urn:c2pa:4769380b-654a-4d99-903f-ad32ab037e50",
        }
    ],
}
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/api/verify",
    summary="Where a picture comes from",
    openapi_extra=_BODY,
    responses=error_answers(400, 413, 429, 503) | {200: json_answer("What it carries", example_of(_FOUND, _EXAMPLE))},
)
async def verify(
    request: Request,
    thorough: Annotated[bool, Query(description="Search for the mark at every scale, which takes seconds.")] = False,
) -> dict[str, Any]:
    """Check the picture in the body (the file itself): credentials, invisible mark, metadata, receipt."""
    services = services_of(request)
    await count_visitor(request)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise UnreadablePictureError(
            "send the picture's file itself as the body, not a form (curl --data-binary @FILE)"
        )
    data = await request.body()
    roots = "" if services.signer is None else services.signer.keys.roots_pem()
    found = await services.checks.verify(data, roots_pem=roots, thorough=thorough)
    drawn = await _drawn_here(services, found)
    return found | {"drawn_here": [each.to_json() for each in drawn]}


async def count_visitor(request: Request) -> None:
    """Count a request that needs no key, by the address that it comes from. Raises RateLimitedError."""
    services = services_of(request)
    await services.rates.count_address(address_of(request), services.config.visitor_rate_limit)


async def _drawn_here(services: Services, found: dict[str, Any]) -> list[DrawnPicture]:
    """The pictures of this service that have the same mark; without a mark, the one with these credentials."""
    async with services.database.read() as connection:
        if mark := found["mark"].get("id"):
            return await find_by_mark(connection, mark)
        label = found["credentials"].get("label")
        # a label can be copied to another picture; a signature that holds cannot
        if label and found["credentials"]["state"] == "trusted":
            try:
                return [await find_by_manifest(connection, label)]
            except NotFoundError:
                return []
    return []

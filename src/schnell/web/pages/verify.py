"""The page on which anybody can check where a picture comes from."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.web.pages.site import find_caller, page
from schnell.web.services import services_of

router = APIRouter()


@router.get("/verify")
async def verify(request: Request) -> Response:
    """A place to drop a picture on, and what was found in it. It needs no sign-in."""
    services = services_of(request)
    return page(
        request,
        "verify.html",
        await find_caller(request),
        most_bytes=services.config.body_limits.get("/api/verify", 0),
        signs=services.signer is not None,
    )

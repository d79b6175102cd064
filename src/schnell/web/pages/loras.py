"""The LoRA library as cards, with a place to add one and to see what its scale does."""

from contextlib import suppress

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.errors import NotFoundError
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import Services, services_of

router = APIRouter()


@router.get("/loras")
async def library(request: Request) -> Response:
    """The team's own LoRAs, the public ones, and those that come with the model."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    found = await services.loras.list(caller.team_id)
    drawn = {lora.id for lora in found if await has_preview(services, caller, lora.id)}
    return page(request, "loras.html", caller, loras=found, drawn=drawn, model_id=services.model.ids[0])


async def has_preview(services: Services, caller: Caller, lora_id: str) -> bool:
    """Whether a LoRA's preview was drawn: a page must not ask for a picture that is not there."""
    with suppress(NotFoundError):
        await services.loras.find_preview(lora_id, caller.team_id)
        return True
    return False

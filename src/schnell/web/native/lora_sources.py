"""The sites that LoRAs come from, and a team's own tokens for them. A token is never answered."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field

from schnell.accounts.identity import Caller
from schnell.clock import now
from schnell.errors import ForbiddenError
from schnell.loras.tokens import SITES, read_site
from schnell.web.auth import SECURITY, Generator, Reader
from schnell.web.native.lora_schema import SITES_ANSWER
from schnell.web.openapi import error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/lora-sources",
    tags=["LoRAs"],
    dependencies=SECURITY,
    responses=error_answers(400, 401, 403, 404),
)


class Token(BaseModel):
    """A token of Hugging Face, Civitai or Replicate."""

    model_config = ConfigDict(strict=True)
    token: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[!-~]+$", examples=["hf_..."])]


@router.get("", summary="Sites that LoRAs come from", responses=SITES_ANSWER)
async def list_sites(request: Request, caller: Reader) -> dict[str, Any]:
    """Each site, and whether the team has a token of its own for it."""
    own = await services_of(request).source_tokens.sites_of(caller.team_id)
    return {"sites": [{"site": site, "hasToken": site in own} for site in SITES]}


@router.put("/{site}/token", summary="Set the team's token", status_code=status.HTTP_204_NO_CONTENT)
async def keep_token(request: Request, caller: Generator, site: str, body: Token) -> None:
    """Fetch this team's private and gated LoRAs with its own token from now on. Only an ADMIN of the team may."""
    _check_admin(caller)
    await services_of(request).source_tokens.keep(caller.team_id, read_site(site), body.token, now())


@router.delete("/{site}/token", summary="Remove the team's token", status_code=status.HTTP_204_NO_CONTENT)
async def forget_token(request: Request, caller: Generator, site: str) -> None:
    """Forget it. What was fetched with it is not found any more."""
    _check_admin(caller)
    await services_of(request).source_tokens.forget(caller.team_id, read_site(site))


def _check_admin(caller: Caller) -> None:
    if caller.role != "ADMIN":
        raise ForbiddenError("only an ADMIN of the team may change its tokens")

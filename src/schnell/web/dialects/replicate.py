"""Replicate's predictions API. The wire format is that of https://replicate.com/docs/reference/http."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from schnell.accounts.identity import Caller
from schnell.errors import (NotFoundError, SchnellError)
from schnell.generations import (Record, Running)
from schnell.web import submission
from schnell.web.auth import (Generator, Reader)
from schnell.web.dialects.replicate_headers import (read_life, read_wait)
from schnell.web.dialects.replicate_predictions import describe_prediction
from schnell.web.dialects.replicate_schema import (REPLICATE_RATIOS, version_id)
from schnell.web.dialects.replicate_webhooks import (Hook, begin_reporting, read_hook)
from schnell.web.dialects.translation import (build_request, find_model)
from schnell.web.fields import (Fields, read_json_object)
from schnell.web.native.records import tell_model
from schnell.web.services import services_of

router = APIRouter(tags=["Replicate"], include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How a prediction is to be answered: seconds to wait (0: none), seconds to live, and whom to tell."""

    wait: float
    life: int | None
    hook: Hook | None


@router.post("/v1/models/{owner}/{name}/predictions")
async def create_of_model(request: Request, caller: Generator, owner: str, name: str) -> Response:
    """Start a prediction of a model by its name."""
    fields = Fields(await read_json_object(request))
    return await _create(request, caller, find_model(request, f"{owner}/{name}"), fields)


@router.post("/v1/predictions")
async def create(request: Request, caller: Generator) -> Response:
    """Start a prediction of a version: its 64 hexadecimal digits, `owner/name`, or both with a colon between."""
    fields = Fields(await read_json_object(request))
    version = fields.text("version", required=True) or ""
    fields.check()
    model, _, digits = version.rpartition(":") if ":" in version or "/" not in version else (version, "", "")
    if digits and digits != version_id(services_of(request)):
        raise NotFoundError("this version does not exist here; GET /v1/models/{owner}/{name} names the one that does")
    return await _create(request, caller, find_model(request, model or None), fields)


@router.get("/v1/predictions")
async def list_predictions(
    request: Request, caller: Reader, cursor: Annotated[str | None, Query(max_length=64)] = None
) -> dict[str, Any]:
    """The team's predictions, newest first, whichever dialect they came in."""
    services = services_of(request)
    page = await services.history.page(caller, 100, cursor)
    following = f"{services.config.public_url}/v1/predictions?cursor={page.next_cursor}" if page.next_cursor else None
    results = [await describe_prediction(services, record, inline=False) for record in page.records]
    return {"next": following, "previous": None, "results": results}


@router.get("/v1/predictions/{prediction_id}")
async def show(request: Request, caller: Reader, prediction_id: str) -> dict[str, Any]:
    """One prediction as it is now."""
    services = services_of(request)
    record = await services.history.find(caller, _check_id(prediction_id))
    running = services.admission.find(record.id)
    tell_model(request, record)
    return await describe_prediction(services, running.record if running else record, running)


@router.post("/v1/predictions/{prediction_id}/cancel")
async def cancel(request: Request, caller: Generator, prediction_id: str) -> dict[str, Any]:
    """Stop a prediction at its next step; nothing is charged."""
    services = services_of(request)
    return await describe_prediction(services, await services.history.cancel(caller, _check_id(prediction_id)))


async def _create(request: Request, caller: Caller, model: str, fields: Fields) -> Response:
    services = services_of(request)
    values = fields.object("input", required=True) or {}
    wishes = _Wishes(read_wait(request), read_life(request), read_hook(services, fields))
    fields.check()
    asked = build_request(request, "replicate", model, _as_native(values), rename=lambda name: f"input.{name}")
    started = await submission.start(request, caller, replace(asked, detached=True))
    if isinstance(started, Running):
        if wishes.hook is not None:
            await begin_reporting(services, started, wishes.hook)
        if wishes.life is not None:
            asyncio.get_running_loop().call_later(wishes.life, started.cancel)
    ended = await _wait(request, caller, started, wishes.wait)
    running = started if isinstance(started, Running) else None
    record = ended or await submission.find_started(request, caller, started)
    answer = await describe_prediction(services, record, running)
    if ended is None:
        # while it is not done, both SDKs go on asking only when they are told that it has not begun
        answer["status"] = "starting"
    return JSONResponse(answer, status_code=201, headers={"Location": answer["urls"]["get"]})


async def _wait(request: Request, caller: Caller, started: Running | str, seconds: float) -> Record | None:
    """The record, if it ends within `seconds`, well or badly."""
    history = services_of(request).history
    waiting = history.wait(caller, started) if isinstance(started, str) else started.ended()
    with suppress(SchnellError):
        try:
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            return None
    return await submission.find_started(request, caller, started)


def _as_native(values: Mapping[str, Any]) -> Mapping[str, Any]:
    ratio = values.get("aspect_ratio")
    size = REPLICATE_RATIOS.get(ratio) if isinstance(ratio, str) else None
    if size is None:
        return values
    parts = 2 if str(values.get("megapixels")) == "0.25" else 1
    return {**values, "aspect_ratio": "custom", "width": size.width // parts, "height": size.height // parts}


def _check_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise NotFoundError("no prediction has this id") from None

"""The routes of Replicate's predictions API."""

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from schnell.accounts.identity import Caller
from schnell.errors import ClosingError, NotFoundError, SchnellError
from schnell.generations import Record, Running
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.dialects import examples
from schnell.web.dialects.model_list import version_id
from schnell.web.dialects.replicate.reading import (
    RULES,
    as_native,
    name_in_input,
    name_unused,
    read_lifetime,
    read_prediction_webhook,
    read_wait,
)
from schnell.web.dialects.replicate.writing import describe_prediction, gives_links, tell_prediction
from schnell.web.dialects.translation import build_request, find_model, seek_model
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.lora_names import LORA_BASE, ModelChoice
from schnell.web.openapi import KeyedRoute
from schnell.web.services import Services, services_of
from schnell.web.webhooks import Webhook, start_webhook

router = APIRouter(tags=["Replicate"], route_class=KeyedRoute)
_DIGITS: Final = re.compile(r"[0-9a-f]{64}")


@router.get("/v1/webhooks/default/secret", summary="The secret of webhooks", **examples.SECRET)
async def show_secret(request: Request, caller: Generator) -> dict[str, Any]:
    """The secret that this team's webhooks are signed with."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


# the name may hold a LoRA after a colon, and with it slashes
@router.post(
    "/v1/models/{owner}/{name:path}/predictions", summary="Draw, by a model's name", **examples.CREATE_OF_MODEL
)
async def create_of_model(request: Request, caller: Generator, owner: str, name: str) -> Response:
    """Start a prediction of a model by its name."""
    fields = Fields(await read_json_object(request, '{"input": …}'))
    return await _create(request, caller, find_model(request, f"{owner}/{name}"), fields)


@router.post("/v1/predictions", summary="Draw, as Replicate's clients ask", **examples.CREATE)
async def create(request: Request, caller: Generator) -> Response:
    """Start a prediction of a version.

    That is its 64 hexadecimal digits, `owner/name`, both with a colon between, or a LoRA in place of the digits: the
    SDKs send what stands after the colon of `owner/name:version` alone.
    """
    fields = Fields(await read_json_object(request, '{"version": …, "input": …}'))
    version = fields.text("version", required=True) or ""
    fields.check()
    return await _create(request, caller, await _find_version(request, caller, version), fields, "version")


async def _find_version(request: Request, caller: Caller, version: str) -> ModelChoice:
    services = services_of(request)
    model, _, digits = version.rpartition(":")
    if _DIGITS.fullmatch(digits):
        if digits != version_id(services):
            raise NotFoundError(
                "this version does not exist here; GET /v1/models/{owner}/{name} names the one that does"
            )
        return find_model(request, model, "version")
    if chosen := seek_model(request, version, "version"):
        return chosen
    lora = seek_model(request, f"{LORA_BASE}:{version}", "version")
    if lora is not None and lora.lora is not None:
        with suppress(NotFoundError):
            await services.loras.show(lora.lora.reference, caller.team_id)
            return lora
    return find_model(request, version, "version")


@router.get("/v1/predictions", summary="Earlier predictions", **examples.PREDICTIONS)
async def list_predictions(
    request: Request, caller: Reader, cursor: Annotated[str | None, Query(max_length=64)] = None
) -> dict[str, Any]:
    """The team's predictions, newest first, whichever dialect they came in."""
    services = services_of(request)
    page = await services.history.page(caller, 100, cursor)
    following = f"{services.config.public_url}/v1/predictions?cursor={page.next_cursor}" if page.next_cursor else None
    results = [await describe_prediction(services, record, inline=False) for record in page.records]
    return {"next": following, "previous": None, "results": results}


@router.get("/v1/predictions/{prediction_id}", summary="One prediction", **examples.PREDICTION)
async def show(request: Request, caller: Reader, prediction_id: str) -> dict[str, Any]:
    """One prediction as it is now."""
    services = services_of(request)
    record = await services.history.find(caller, _parse_id(prediction_id))
    running = services.admission.find(record.id)
    submission.add_record_headers(request, record)
    return await describe_prediction(services, running.record if running else record, running)


@router.post("/v1/predictions/{prediction_id}/cancel", summary="Cancel a prediction", **examples.PREDICTION)
async def cancel(request: Request, caller: Generator, prediction_id: str) -> dict[str, Any]:
    """Stop a prediction at its next step; nothing is charged."""
    services = services_of(request)
    return await describe_prediction(services, await services.history.cancel(caller, _parse_id(prediction_id)))


def _parse_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise NotFoundError("no prediction has this id") from None


async def _create(
    request: Request, caller: Caller, model: ModelChoice, fields: Fields, named_in: str = "model"
) -> Response:
    """Start what the fields ask for. `named_in` is the field that named the model, for what is wrong with it."""
    services = services_of(request)
    values = fields.object("input", required=True) or {}
    # several lines of one header are one list
    wait = read_wait(", ".join(request.headers.getlist("prefer")))
    lifetime = read_lifetime(request.headers.get("cancel-after", ""))
    webhook = read_prediction_webhook(services, fields)
    fields.check()
    asked = build_request(
        request,
        "replicate",
        model,
        as_native(values),
        rules=RULES,
        rename=partial(name_in_input, named_in),
        warnings=name_unused(fields, values),
    )
    asked = replace(asked, detached=True, inline=not gives_links(services))
    started = await submission.start(request, caller, asked)
    async with submission.answering(request, caller, asked, started):
        if isinstance(started, Running):
            await _attach(services, started, webhook, lifetime)
        return await _answer(request, caller, started, wait)


async def _attach(services: Services, running: Running, webhook: Webhook | None, lifetime: int | None) -> None:
    """Limit a prediction's lifetime, and report it to its webhook."""
    if lifetime is not None:
        asyncio.get_running_loop().call_later(lifetime, running.cancel)
    if webhook is not None:
        await start_webhook(services, running, webhook, tell_prediction)


async def _answer(request: Request, caller: Caller, started: Running | str, wait: float) -> Response:
    services = services_of(request)
    ended = await _wait(request, caller, started, wait)
    record = ended or await submission.find_started(request, caller, started)
    answer = await describe_prediction(services, record, started if isinstance(started, Running) else None)
    if ended is None:
        # both SDKs poll a prediction that is not done only if its first answer says that it has not begun
        answer["status"] = "starting"
    return JSONResponse(answer, status_code=201, headers={"Location": answer["urls"]["get"]})


async def _wait(request: Request, caller: Caller, started: Running | str, seconds: float) -> Record | None:
    """The record, if it ends within `seconds`, well or badly, and that is written."""
    history = services_of(request).history
    waiting = history.wait(caller, started) if isinstance(started, str) else started.ended()
    with suppress(SchnellError):
        try:
            # on a timeout the wait alone is cancelled: a detached generation goes on
            return await asyncio.wait_for(waiting, seconds)
        except (TimeoutError, ClosingError):
            return None
    return await submission.find_started(request, caller, started)

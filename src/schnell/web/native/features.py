"""`POST /api/features` of the reference document: draw, and wait, stream, answer at once or only estimate."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from schnell.errors import UnsupportedFeatureError, UnsupportedModelError
from schnell.generations import FEATURE, GenerationRequest, Running
from schnell.web import streaming, submission
from schnell.web.auth import Generator
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.feature_schema import BODY_FIELDS, FEATURE_BODY, FEATURE_RESPONSES
from schnell.web.native.lora_names import choose_model
from schnell.web.native.prompt_object import (
    KNOWN_KEYS,
    bounded,
    name_unknown_fields,
    name_unused_sizes,
    parse_prompt_object,
)
from schnell.web.native.records import describe_quote, describe_record, tell_record
from schnell.web.openapi import KeyedRoute
from schnell.web.services import services_of
from schnell.web.webhooks import read_webhook, start_webhook

router = APIRouter(tags=["generation"], route_class=KeyedRoute)


@router.post(
    "/api/features",
    summary="Draw pictures",
    openapi_extra=FEATURE_BODY,
    responses=FEATURE_RESPONSES,
    response_class=JSONResponse,
)
async def create(
    request: Request,
    caller: Generator,
    is_streaming: Annotated[bool, Query(alias="isStreaming", description="Answer with server-sent events.")] = False,
) -> Response:
    """Draw one to four pictures from a sentence, and answer with the record of it once they are done."""
    body = Fields(await read_json_object(request, '{"type": "IMAGE_GENERATOR", …}'))
    wants_async = body.flag("async", default=False)
    dry_run = body.flag("dryRun", default=False)
    webhook = read_webhook(services_of(request), body, url="webhook", events="webhookEvents", default=("completed",))
    if webhook and (is_streaming or not wants_async):
        body.refuse("webhook", "needs `async`: true; a request that waits for its picture is told of it by its answer")
    asked = parse_request(request, body, detached=wants_async, wants_previews=is_streaming)
    if dry_run:
        return JSONResponse({"dryRun": describe_quote(await submission.quote(request, caller, asked))})
    if is_streaming:
        return await streaming.stream(request, caller, asked, lambda record: describe_record(request, record))
    if wants_async:
        started = await submission.start(request, caller, asked)
        async with submission.answering(request, caller, asked, started):
            if webhook and isinstance(started, Running):
                await start_webhook(services_of(request), started, webhook, tell_record)
            record = await submission.find_started(request, caller, started)
            return JSONResponse(await describe_record(request, record))
    async with submission.drawn(request, caller, asked) as record:
        return JSONResponse(await describe_record(request, record))


def parse_request(request: Request, body: Fields, *, detached: bool, wants_previews: bool = False) -> GenerationRequest:
    """The generation that the body of `POST /api/features` asks for.

    `detached` keeps it running when its client goes away; with `wants_previews` its steps are shown.

    Raises:
        MissingFieldError, InvalidFieldError: naming the fields.
        UnsupportedFeatureError, UnsupportedModelError: another `type` or `model` than the served ones.
    """
    feature = body.text("type", required=True)
    model = body.text("model", required=True)
    prompt_object = body.object("promptObject", required=True)
    conversation = body.text("conversationId")
    body.check()
    if feature != FEATURE:
        raise UnsupportedFeatureError(f"Unsupported feature type: {str(feature)[:100]}")
    chosen = choose_model(services_of(request).model, model or "")
    if chosen is None:
        raise UnsupportedModelError(f"Model {str(model)[:100]} is not supported for feature {FEATURE}")
    values = prompt_object or {}
    warnings = name_unknown_fields(body.names, BODY_FIELDS, inner="promptObject", inside=KNOWN_KEYS)
    warnings += name_unused_sizes(values)
    parsed = parse_prompt_object(values, loras=chosen.loras_beside(values))
    return GenerationRequest(
        spec=parsed.spec,
        model=chosen.id,
        dialect="onemin",
        prompt_object=parsed.echo,
        warnings=bounded((*chosen.warnings, *warnings, *parsed.warnings)),
        conversation_id=conversation[:200] if conversation else None,  # as many as the column holds
        idempotency_key=submission.idempotency_key_in(request),
        detached=detached,
        wants_previews=wants_previews,
    )

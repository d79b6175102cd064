"""`POST /api/features` of the reference document: draw, and wait, stream, answer at once or only estimate."""

from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from schnell.errors import UnsupportedFeatureError, UnsupportedModelError
from schnell.generations import FEATURE, GenerationRequest
from schnell.spec import (
    ASPECT_RATIOS,
    CUSTOM_RATIO,
    MAX_OUTPUTS,
    MAX_QUALITY,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MEGAPIXELS,
    MIN_SIDE,
    GenerationSpec,
    LoraRef,
    combine_loras,
    output_format_named,
    resolve_size,
)
from schnell.web import streaming, submission
from schnell.web.auth import SECURITY, Generator
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.feature_schema import FEATURE_BODY, FEATURE_RESPONSES
from schnell.web.native.records import KNOWN_KEYS, describe_quote, describe_record
from schnell.web.services import services_of

router = APIRouter(tags=["generation"], dependencies=SECURITY)
_RATIOS: Final = (*ASPECT_RATIOS, CUSTOM_RATIO)
_FORMATS: Final = ("webp", "jpg", "jpeg", "png")
#: Names under which clients of several APIs send the number of pictures; the first that is given counts.
_COUNT_NAMES: Final = ("num_outputs", "n", "numImages", "samples")


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
    body = Fields(await read_json_object(request))
    wants_async = body.flag("async", default=False)
    dry_run = body.flag("dryRun", default=False)
    asked = replace(parse_request(request, body, detached=wants_async), wants_previews=is_streaming)
    if dry_run:
        return JSONResponse({"dryRun": describe_quote(await submission.quote(request, caller, asked))})
    if is_streaming:
        return await streaming.stream(request, caller, asked, lambda record: describe_record(request, record))
    if wants_async:
        started = await submission.start(request, caller, asked)
        async with submission.answering(request, caller, asked, started):
            record = await submission.find_started(request, caller, started)
            return JSONResponse(await describe_record(request, record))
    async with submission.drawn(request, caller, asked) as record:
        return JSONResponse(await describe_record(request, record))


def parse_request(request: Request, body: Fields, *, detached: bool) -> GenerationRequest:
    """The generation that the body of `POST /api/features` asks for.

    `detached` keeps it running when its client goes away.

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
    if services_of(request).model.find(model or "") is None:
        raise UnsupportedModelError(f"Model {str(model)[:100]} is not supported for feature {FEATURE}")
    values = prompt_object or {}
    return GenerationRequest(
        spec=parse_prompt_object(Fields(values)),
        model=model or "",
        dialect="onemin",
        prompt_object={name: values[name] for name in KNOWN_KEYS if values.get(name) is not None},
        conversation_id=conversation[:200] if conversation else None,  # as many as the column holds
        idempotency_key=submission.idempotency_key_in(request),
        detached=detached,
    )


def parse_prompt_object(fields: Fields, lowest_scale: float = 0) -> GenerationSpec:
    """What to draw, from a `promptObject`; unknown keys are ignored. `lowest_scale` is the least LoRA scale to accept.

    Raises:
        MissingFieldError, InvalidFieldError: naming every field that is missing or wrong.
    """
    prompt = fields.text("prompt", required=True)
    ratio = fields.choice("aspect_ratio", _RATIOS)
    size = {name: fields.whole(name, MIN_SIDE, MAX_SIDE) for name in ("width", "height")}
    megapixels = _read_megapixels(fields)
    outputs = [fields.whole(name, 1, MAX_OUTPUTS) for name in _COUNT_NAMES]
    steps = fields.whole("num_inference_steps", 1, MAX_STEPS)
    seed = fields.whole("seed", 0, MAX_SEED)
    quality = fields.whole("output_quality", 0, MAX_QUALITY)
    file_format = fields.choice("output_format", _FORMATS)
    go_fast = fields.flag("go_fast", default=True)
    unchecked = fields.flag("disable_safety_checker", default=False)
    unmarked = fields.flag("disable_watermark", default=False)
    hides_prompt = fields.flag("hide_prompt", default=False)
    loras = _read_loras(fields, lowest_scale)
    _require_both(fields, size)
    fields.check()
    if ratio is None:
        ratio = CUSTOM_RATIO if any(size.values()) else "1:1"
    return GenerationSpec(
        prompt=prompt or "",
        size=resolve_size(ratio, megapixels, **size),
        steps=4 if steps is None else steps,
        seed=seed,
        num_outputs=next((count for count in outputs if count), 1),
        output_format=output_format_named(file_format or "webp"),
        output_quality=80 if quality is None else quality,
        go_fast=go_fast,
        safety_checker=not unchecked,
        loras=loras,
        watermark=not unmarked,
        credentials_prompt=not hides_prompt,
    )


def _require_both(fields: Fields, size: dict[str, int | None]) -> None:
    given = [name for name in size if fields.raw(name) is not None]
    if len(given) == 1:
        fields.require("height" if given == ["width"] else "width", f"is required with {given[0]}")


def _read_megapixels(fields: Fields) -> str:
    value = fields.raw("megapixels")
    if isinstance(value, int | float) and not isinstance(value, bool) and value in {0.25, 1}:
        return f"{value:g}"  # the reference document has strings, clients send numbers too
    return fields.choice("megapixels", MEGAPIXELS) or "1"


def _read_loras(fields: Fields, lowest_scale: float) -> tuple[LoraRef, ...]:
    found = []
    for name, scale_name in (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale")):
        reference = fields.text(name)
        scale = fields.number(scale_name, lowest_scale, 3)
        if reference and reference.strip():
            found.append(LoraRef(reference.strip(), 0.8 if scale is None else float(scale)))
    return combine_loras(found)

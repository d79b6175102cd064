"""OpenAI's image API: `POST /v1/images/generations`, answered whole or as server-sent events.

The wire format is that of https://platform.openai.com/docs/api-reference/images. What FLUX has beyond it (seed, LoRAs,
steps) comes through the clients' `extra_body`.
"""

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from schnell.accounts.identity import Caller
from schnell.errors import FieldError, InsufficientCreditsError, SchnellError, UnsupportedModelError
from schnell.generations import GenerationRequest, Record, Running
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.dialects.examples import GENERATE
from schnell.web.dialects.translation import (
    EXTRA_FIELDS,
    GENEROUS,
    build_request,
    drawn_loras,
    find_model,
    name_displaced,
    picture_seeds,
    read_base64,
    server_links,
)
from schnell.web.errors import DialectErrors
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.prompt_object import name_unknown_fields
from schnell.web.openapi import KeyedRoute
from schnell.web.services import services_of

router = APIRouter(tags=["OpenAI"], route_class=KeyedRoute)

# Errors

_CODES: Final = {
    "HTTP_EXCEPTION": "invalid_api_key",
    "UNSUPPORTED_MODEL": "model_not_found",
    "RATE_LIMITED": "rate_limit_exceeded",
    "TEAM_QUEUE_FULL": "rate_limit_exceeded",
    "INSUFFICIENT_CREDITS": "insufficient_quota",
    "INVALID_FIELD": "invalid_value",
    "MISSING_REQUIRED_FIELDS": "missing_required_parameter",
    "NSFW_CONTENT": "content_policy_violation",
}
_TYPES: Final = {
    "RATE_LIMITED": "requests",
    "TEAM_QUEUE_FULL": "requests",
    "INSUFFICIENT_CREDITS": "insufficient_quota",
}


def describe_error(error: SchnellError, status: int) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, with OpenAI's codes where it has one."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.code, kind),
            "param": error.problems[0].field if isinstance(error, FieldError) else None,
            "code": _CODES.get(error.code, error.code.lower()),
        }
    }


ERRORS: Final = DialectErrors(
    ("/v1/images/",),
    describe_error,
    dialect="openai",
    # OpenAI answers an exhausted budget with 429; what keeps its clients from retrying is `x-should-retry: false`
    statuses={InsufficientCreditsError: 429, UnsupportedModelError: 404},
    # OpenAI's edits and variations begin with a picture, and FLUX.1 [schnell] with words alone
    nothing_here="this path is not served here; /v1/images/generations is",
)

# The route


@router.post("/v1/images/generations", summary="Draw, as OpenAI's clients ask", **GENERATE)
async def create(request: Request, caller: Generator) -> Response:
    """Draw pictures as OpenAI's clients ask for them."""
    values = await read_json_object(request, '{"prompt": …}')
    fields = Fields(values)
    wanted = _read_answer_form(fields)
    asked = _parse(request, fields, name_unknown_fields(values, _FIELDS))
    if not wanted.stream:
        asked = replace(asked, inline="b64_json" in wanted.formats)
        async with submission.drawn(request, caller, asked) as record:
            return JSONResponse(await _describe(request, record, wanted.formats))
    asked = replace(asked, inline=True, wants_previews=wanted.partial_images > 0)
    # started before the stream begins: a refusal still gets its own HTTP status
    started = await submission.start(request, caller, asked)
    events = _events(request, caller, asked, started, choose_preview_steps(asked.spec.steps, wanted.partial_images))
    return EventSourceResponse(events, headers={"X-Accel-Buffering": "no"})


# Reading a request

_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
#: Sizes of OpenAI's own models that FLUX cannot draw, and that clients have built in: the same shape at one megapixel.
_STANDARD_SIZES: Final = {"1536x1024": "3:2", "1024x1536": "2:3", "1792x1024": "16:9", "1024x1792": "9:16"}
_QUALITY_STEPS: Final = {"low": 1, "medium": 2, "high": 4, "xhigh": 4, "max": 4, "hd": 4, "standard": 4, "auto": 4}
_FORMATS: Final = ("b64_json", "url")
#: What is read, and what OpenAI's clients send to every server; the latter has no meaning here.
_FIELDS: Final = (
    *("prompt", "model", "n", "size", "quality", "response_format", "output_format", "output_compression"),
    *("stream", "partial_images", "num_inference_steps", *EXTRA_FIELDS),
    *("background", "moderation", "style", "user", "safety_identifier", "input_fidelity"),
)
_NAMES: Final = {"width": "size", "height": "size", "output_quality": "output_compression"}


@dataclass(frozen=True, slots=True)
class _AnswerForm:
    """How the client wants its pictures. `formats` holds b64_json, url, or both."""

    formats: tuple[str, ...]
    stream: bool
    partial_images: int


def _read_answer_form(fields: Fields) -> _AnswerForm:
    chosen = fields.choice("response_format", _FORMATS)
    partial_images = fields.whole("partial_images", 0, 3)
    return _AnswerForm((chosen,) if chosen else _FORMATS, fields.flag("stream", default=False), partial_images or 0)


def _parse(request: Request, fields: Fields, warnings: list[str]) -> GenerationRequest:
    model = fields.text("model")
    quality = fields.choice("quality", tuple(_QUALITY_STEPS))
    steps = fields.raw("num_inference_steps")
    native = {name: fields.raw(name) for name in ("prompt", "n", *EXTRA_FIELDS)} | {
        "output_format": fields.raw("output_format") or "png",
        "output_quality": fields.raw("output_compression"),
        "num_inference_steps": _QUALITY_STEPS.get(quality or "auto") if steps is None else steps,
    }
    size = read_size(fields)
    warnings += name_displaced(native, size, "size counts")
    native |= size
    fields.check()
    return build_request(
        request,
        "openai",
        find_model(request, model),
        native,
        # OpenAI refuses sides that are no multiples of 16
        rules=replace(GENEROUS, rounding=None),
        rename=lambda name: _NAMES.get(name, name),
        warnings=warnings,
    )


def read_size(fields: Fields) -> Mapping[str, Any]:
    """The native fields that `size` stands for; none for `auto` and no size. A wrong one is noted in `fields`."""
    size = fields.text("size")
    if size in {None, "", "auto"}:
        return {}
    if size in _STANDARD_SIZES:
        return {"aspect_ratio": _STANDARD_SIZES[size], "megapixels": "1"}
    match = _SIZE.fullmatch(size or "")
    if match is None:
        fields.refuse("size", f'must be "auto" or WIDTHxHEIGHT, such as 1024x1024, got {(size or "")[:50]!r}')
        return {}
    return {"aspect_ratio": "custom", "width": int(match[1]), "height": int(match[2])}


def choose_preview_steps(steps: int, partial_images: int) -> set[int]:
    """After which of `steps` denoising steps to send previews: `partial_images` of them, spread evenly.

    Never after the last, whose picture is the result; so there are fewer where there are too few steps.
    """
    spread = {round(index * steps / (partial_images + 1)) for index in range(1, partial_images + 1)}
    return {step for step in spread if 1 <= step < steps}


# Writing an answer


def _usage(cost: int) -> dict[str, Any]:
    """What was used: `cost` credits. Typed clients need the counts of tokens all the same, which are not counted."""
    return {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
        "cost": cost,
    }


async def _describe(request: Request, record: Record, formats: tuple[str, ...]) -> dict[str, Any]:
    services = services_of(request)
    columns: dict[str, list[Any]] = {"seed": picture_seeds(record)}
    if "b64_json" in formats:
        columns["b64_json"] = await read_base64(services, record)
    if "url" in formats:
        columns["url"] = server_links(services, record)
    return {
        "created": int(record.created_at.timestamp()),
        "data": [dict(zip(columns, picture, strict=True)) for picture in zip(*columns.values(), strict=True)],
        "model": record.served_model,
        "background": "opaque",
        "output_format": record.settings["output_format"],
        "size": _size_of(record),
        "loras": drawn_loras(record),
        "warnings": record.response_object.get("warnings", []),
        "usage": _usage(record.cost),
    }


async def _events(
    request: Request, caller: Caller, asked: GenerationRequest, started: Running | str, preview_steps: set[int]
) -> AsyncIterator[ServerSentEvent]:
    left = set(preview_steps)
    sent = 0
    try:
        async with (
            submission.answering(request, caller, asked, started),
            aclosing(submission.follow(request, caller, started)) as found,
        ):
            async for each in found:
                if isinstance(each, Record):
                    for picture in await read_base64(services_of(request), each):
                        yield _event(_completed_event(each, picture))
                elif each.step in left and each.previews and isinstance(started, Running):
                    # a generation whose outputs take turns reports one step several times
                    left.discard(each.step)
                    for preview in each.previews:
                        yield _event(_partial_event(started.record, preview, sent))
                    sent += 1
    except SchnellError as error:
        yield _event({"type": "error"} | describe_error(error, error.status))


def _partial_event(record: Record, preview: bytes, index: int) -> dict[str, Any]:
    """A preview (PNG). `index` counts the steps that are shown, from 0: the outputs of one step share it."""
    return {
        "type": "image_generation.partial_image",
        "b64_json": base64.b64encode(preview).decode(),
        "partial_image_index": index,
    } | _picture_facts(record, "png")


def _completed_event(record: Record, picture: str) -> dict[str, Any]:
    """A finished picture, in base64."""
    # every picture of a record costs the same
    facts = {"usage": _usage(record.cost // max(1, len(record.images)))}
    facts |= _picture_facts(record, record.settings["output_format"])
    return {"type": "image_generation.completed", "b64_json": picture} | facts


def _picture_facts(record: Record, output_format: str) -> dict[str, Any]:
    return {
        "created_at": int(record.created_at.timestamp()),
        "background": "opaque",
        "output_format": output_format,
        "quality": "auto",
        "size": _size_of(record),
    }


def _size_of(record: Record) -> str:
    return f"{record.settings['width']}x{record.settings['height']}"


def _event(data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data), event=data["type"])

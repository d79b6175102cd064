"""OpenAI's image API: `POST /v1/images/generations`, whole or as server-sent events.

The wire format is that of https://platform.openai.com/docs/api-reference/images; everything that FLUX has beyond it
(seed, LoRAs, steps) comes through the clients' `extra_body`.
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
from schnell.spec import Progress
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.dialects.translation import build_request, find_model, picture_links, read_base64, shown_seeds
from schnell.web.fields import Fields, read_json_object
from schnell.web.services import services_of

#: OpenAI's clients know these: an exhausted budget is a 429 that must not be tried again (`x-should-retry: false`).
OPENAI_STATUSES: Final = {InsufficientCreditsError: 429, UnsupportedModelError: 404}
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


def openai_error(error: SchnellError, status: int) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.code, kind),
            "param": error.problems[0].field if isinstance(error, FieldError) else None,
            "code": _CODES.get(error.code, error.code.lower()),
        }
    }


_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
#: Sizes of OpenAI's own models that FLUX cannot draw, which clients have built in: the same shape at one megapixel.
_STANDARD_SIZES: Final = {"1536x1024": "3:2", "1024x1536": "2:3", "1792x1024": "16:9", "1024x1792": "9:16"}


def _read_size(fields: Fields) -> Mapping[str, Any]:
    """The size for a native `promptObject`: nothing where the client leaves it to the model."""
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


#: The service counts credits, not tokens; the field must be there for typed clients.
_NO_TOKENS: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def choose_steps(steps: int, partial_images: int) -> set[int]:
    """After which of `steps` denoising steps to show `partial_images` previews: spread evenly, never after the last."""
    spread = {round(index * steps / (partial_images + 1)) for index in range(1, partial_images + 1)}
    return {step for step in spread if 1 <= step < steps}


def _partial_event(record: Record, preview: bytes, index: int) -> dict[str, Any]:
    """A preview (PNG) on the way. `index` counts the moments that are shown, from 0."""
    return {
        "type": "image_generation.partial_image",
        "b64_json": base64.b64encode(preview).decode(),
        "partial_image_index": index,
    } | _about(record, "png")


def _completed_event(record: Record, picture: str) -> dict[str, Any]:
    """A finished picture, in base64."""
    return {"type": "image_generation.completed", "b64_json": picture, "usage": _NO_TOKENS} | _about(
        record, record.settings["output_format"]
    )


def _about(record: Record, output_format: str) -> dict[str, Any]:
    return {
        "created_at": int(record.created_at.timestamp()),
        "background": "opaque",
        "output_format": output_format,
        "quality": "auto",
        "size": f"{record.settings['width']}x{record.settings['height']}",
    }


router = APIRouter(tags=["OpenAI"], include_in_schema=False)
_QUALITY_STEPS: Final = {"low": 1, "medium": 2, "high": 4, "xhigh": 4, "max": 4, "hd": 4, "standard": 4, "auto": 4}
_FORMATS: Final = ("b64_json", "url")
_EXTRA: Final = (
    "seed",
    "lora_weights",
    "lora_scale",
    "extra_lora",
    "extra_lora_scale",
    "go_fast",
    "disable_safety_checker",
    "aspect_ratio",
    "megapixels",
)
_NAMES: Final = {"width": "size", "height": "size", "output_quality": "output_compression"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """How the client wants its pictures. `formats` holds b64_json, url, or both."""

    formats: tuple[str, ...]
    stream: bool
    partial_images: int


@router.post("/v1/images/generations")
async def create(request: Request, caller: Generator) -> Response:
    """Draw pictures as OpenAI's clients ask for them."""
    fields = Fields(await read_json_object(request))
    wanted = _read_answer(fields)
    asked = _parse(request, fields)
    if not wanted.stream:
        asked = replace(asked, inline="b64_json" in wanted.formats)
        async with submission.drawn(request, caller, asked) as record:
            return JSONResponse(await _describe(request, record, wanted))
    asked = replace(asked, inline=True, wants_previews=wanted.partial_images > 0)
    started = await submission.start(request, caller, asked)
    events = _events(request, caller, asked, started, choose_steps(asked.spec.steps, wanted.partial_images))
    return EventSourceResponse(events, headers={"X-Accel-Buffering": "no"})


def _read_answer(fields: Fields) -> _Answer:
    chosen = fields.choice("response_format", _FORMATS)
    partial_images = fields.whole("partial_images", 0, 3)
    return _Answer((chosen,) if chosen else _FORMATS, fields.flag("stream", default=False), partial_images or 0)


def _parse(request: Request, fields: Fields) -> GenerationRequest:
    model = fields.text("model")
    quality = fields.choice("quality", tuple(_QUALITY_STEPS))
    steps = fields.raw("num_inference_steps")
    native = {name: fields.raw(name) for name in ("prompt", "n", *_EXTRA)} | {
        "output_format": fields.raw("output_format") or "png",
        "output_quality": fields.raw("output_compression"),
        "num_inference_steps": _QUALITY_STEPS.get(quality or "auto") if steps is None else steps,
    }
    native |= _read_size(fields)
    fields.check()
    return build_request(
        request, "openai", find_model(request, model), native, rename=lambda name: _NAMES.get(name, name)
    )


async def _describe(request: Request, record: Record, wanted: _Answer) -> dict[str, Any]:
    services = services_of(request)
    pictures = [{"seed": seed} for seed in shown_seeds(record)]
    columns = {
        "b64_json": await read_base64(services, record) if "b64_json" in wanted.formats else None,
        "url": picture_links(services, record) if "url" in wanted.formats else None,
    }
    data = [
        picture | {name: values[place] for name, values in columns.items() if values}
        for place, picture in enumerate(pictures)
    ]
    settings = record.settings
    return {
        "created": int(record.created_at.timestamp()),
        "data": data,
        "model": record.served_model,
        "background": "opaque",
        "output_format": settings["output_format"],
        "size": f"{settings['width']}x{settings['height']}",
    }


async def _events(
    request: Request, caller: Caller, asked: GenerationRequest, started: Running | str, steps: set[int]
) -> AsyncIterator[ServerSentEvent]:
    try:
        async with (
            submission.answering(request, caller, asked, started),
            aclosing(submission.follow(request, caller, started)) as found,
        ):
            sent = 0
            async for each in found:
                if isinstance(each, Record):
                    for picture in await read_base64(services_of(request), each):
                        yield _event(_completed_event(each, picture))
                elif _is_shown(each, steps) and isinstance(started, Running):
                    steps = steps - {each.step}
                    for preview in each.previews:
                        yield _event(_partial_event(started.record, preview, sent))
                    sent += 1
    except SchnellError as error:
        yield _event({"type": "error"} | openai_error(error, error.status))


def _is_shown(progress: Progress, steps: set[int]) -> bool:
    return progress.stage == "denoise" and progress.step in steps and bool(progress.previews)


def _event(data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data), event=data["type"])

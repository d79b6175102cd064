"""Hugging Face's inference API: `POST /models/{id}` with `{inputs, parameters}`, answered with the picture's bytes.

The wire format is that of https://huggingface.co/docs/inference-providers/tasks/text-to-image.
"""

from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.errors import FieldError, SchnellError, UnsupportedModelError
from schnell.generations import GenerationRequest, Record
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.dialects.translation import (
    EXTRA_FIELDS,
    GENEROUS,
    build_request,
    drawn_loras,
    find_model,
    name_displaced,
    picture_seeds,
    read_picture,
)
from schnell.web.errors import DialectErrors
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.prompt_object import name_unknown_fields
from schnell.web.openapi import KeyedRoute, described_route
from schnell.web.response_headers import header_text
from schnell.web.services import services_of

router = APIRouter(tags=["Hugging Face"], route_class=KeyedRoute)
_ERROR: Final = {"error": "parameters.seed: must be 0-4294967295, got -1"}
_DESCRIBED: Final = described_route(
    {},
    {
        "inputs": "a red apple on a blue background",
        "parameters": {"seed": 7, "width": 1024, "height": 1024, "loras": [{"path": "black-light", "scale": 0.8}]},
    },
    dict.fromkeys((400, 401, 402, 403, 404, 406, 409, 413, 422, 429, 500, 503), _ERROR),
)
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
# the one API that answers with the picture itself
_DESCRIBED["responses"][200] = {
    "description": "The picture's file",
    "content": dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _BINARY),
}
_FORMATS: Final = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpeg", "image/jpg": "jpeg"}


class NotAcceptableError(SchnellError):
    """The client's `Accept` names none of the formats that pictures come in."""

    code = "NOT_ACCEPTABLE"
    status = 406


def describe_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """`{"error": message}`."""
    return {"error": error.message}


ERRORS: Final = DialectErrors(
    ("/models/", "/hf-inference/"),
    describe_error,
    dialect="huggingface",
    statuses={UnsupportedModelError: 404, FieldError: 422},
)


@router.post(
    "/models/{model:path}", summary="Draw, as Hugging Face's clients ask", response_class=Response, **_DESCRIBED
)
@router.post("/hf-inference/models/{model:path}", summary="The same", response_class=Response, **_DESCRIBED)
async def create(request: Request, caller: Generator, model: str) -> Response:
    """Draw one picture; the answer is the picture's file."""
    fields = Fields(await read_json_object(request, '{"inputs": …}'))
    asked = replace(_parse(request, fields, model.removesuffix("/pipeline/text-to-image")), inline=True)
    async with submission.drawn(request, caller, asked) as record:
        picture = await read_picture(services_of(request), record.images[0])
        headers = {"X-Schnell-Seed": str(picture_seeds(record)[0])} | _describe(record)
        return Response(picture, media_type=record.images[0].media_type, headers=headers)


#: Parameters of the task that have no meaning for FLUX.1 [schnell]; clients send them to every model.
_UNUSED: Final = ("guidance_scale", "negative_prompt", "scheduler", "num_images_per_prompt", "max_sequence_length")
_READ: Final = (*EXTRA_FIELDS, "num_inference_steps", "output_quality")
_SIDES: Final = ("width", "height")
_PARAMETERS: Final = (*_READ, *_UNUSED, *_SIDES, "target_size")
#: The fields of the body; `options`, of Hugging Face's own servers' cache and queue, has no meaning here.
_BODY_FIELDS: Final = ("inputs", "parameters", "options")


def _parse(request: Request, fields: Fields, model: str) -> GenerationRequest:
    inputs = fields.text("inputs", required=True)
    values = fields.object("parameters") or {}
    target = _read_target(fields.within("parameters", values))
    fields.check()
    native = {name: values.get(name) for name in _READ}
    native |= {"prompt": inputs, "output_format": choose_format(request.headers.get("accept", ""))}
    warnings = name_unknown_fields(fields.names, _BODY_FIELDS, inner="parameters", inside=_PARAMETERS)
    warnings += name_unknown_fields(target, _SIDES)
    own = {name: value for name in _SIDES if (value := values.get(name)) is not None}
    sides = {name: target[name] for name in _SIDES if target.get(name) is not None} | own
    warnings += [
        f"target_size.{name} was ignored: {name} counts" for name in own if target.get(name, own[name]) != own[name]
    ]
    if sides:
        warnings += name_displaced(native, sides, "width and height count")
        # diffusers' FluxPipeline draws 1024 pixels where a side is not given
        native |= {"aspect_ratio": "custom", "width": 1024, "height": 1024} | sides
    warnings += [f"{name} has no effect with FLUX.1 [schnell]" for name in _UNUSED if values.get(name) is not None]
    warnings += name_unknown_fields(values, _PARAMETERS)
    return build_request(
        request,
        "huggingface",
        find_model(request, model),
        native,
        # as FluxPipeline does, with a warning
        rules=replace(GENEROUS, rounding="down"),
        rename=_rename,
        warnings=warnings,
    )


def _read_target(parameters: Fields) -> dict[str, Any]:
    target = parameters.object("target_size") or {}
    given = [name for name in _SIDES if target.get(name) is not None]
    if len(given) == 1:
        missing = "height" if given == ["width"] else "width"
        parameters.require(f"target_size.{missing}", f"is required with {given[0]}")
    return target


def _describe(record: Record) -> dict[str, str]:
    """Headers for what other dialects say in their bodies: which LoRAs drew, and the warnings."""
    loras = ", ".join(f"{each['name'][:100]}@{each['scale']:g}" for each in drawn_loras(record))
    warnings = "; ".join(record.response_object.get("warnings", []))
    found = {"X-Schnell-Loras": loras, "X-Schnell-Warnings": warnings}
    # header values are one line of ASCII, and proxies take only so many bytes
    return {name: header_text(" ".join(text.split()))[:1000] for name, text in found.items() if text}


def _rename(field: str) -> str:
    return {"prompt": "inputs", "model": "model"}.get(field, f"parameters.{field}")


def choose_format(accept: str) -> str:
    """The picture format that an `Accept` header prefers: `png`, `webp` or `jpeg`; `png` where it takes any.

    Raises:
        NotAcceptableError: it takes none of them.
    """
    wanted = sorted((_read_range(part) for part in accept.split(",") if part.strip()), key=lambda each: -each[1])
    for media_range, weight in wanted:
        if weight > 0 and media_range in _FORMATS:
            return _FORMATS[media_range]
        if weight > 0 and media_range in {"*/*", "image/*"}:
            return "png"
    if wanted:
        raise NotAcceptableError("pictures come as image/png, image/jpeg or image/webp; ask for one of them in Accept")
    return "png"


def _read_range(part: str) -> tuple[str, float]:
    """The media range and the weight (`q`, 1 if absent or unreadable) of one part of an `Accept` header."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weights = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
    try:
        return name, float(weights[0]) if weights else 1.0
    except ValueError:
        return name, 1.0

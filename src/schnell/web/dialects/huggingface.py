"""Hugging Face's inference API: `POST /models/{id}` with `{inputs, parameters}`, answered with the picture's bytes.

The wire format is that of https://huggingface.co/docs/inference-providers/tasks/text-to-image.
"""

from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.errors import InvalidFieldError, SchnellError, UnsupportedModelError
from schnell.generations import GenerationRequest
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.dialects.translation import build_request, find_model, read_picture, shown_seeds
from schnell.web.fields import Fields, read_json_object
from schnell.web.services import services_of

router = APIRouter(tags=["Hugging Face"], include_in_schema=False)

STATUSES: Final = {UnsupportedModelError: 404, InvalidFieldError: 422}
_EXTRA: Final = (
    "num_inference_steps",
    "seed",
    "aspect_ratio",
    "megapixels",
    "lora_weights",
    "lora_scale",
    "extra_lora",
    "extra_lora_scale",
    "go_fast",
    "disable_safety_checker",
    "output_quality",
)
_FORMATS: Final = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpeg", "image/jpg": "jpeg"}


class NotAcceptableError(SchnellError):
    """The client takes none of the formats that pictures come in."""

    code = "NOT_ACCEPTABLE"
    status = 406


@router.post("/models/{model:path}")
@router.post("/hf-inference/models/{model:path}")
async def create(request: Request, caller: Generator, model: str) -> Response:
    """Draw one picture, and answer with nothing but the picture."""
    fields = Fields(await read_json_object(request))
    asked = replace(_parse(request, fields, model.removesuffix("/pipeline/text-to-image")), inline=True)
    async with submission.drawn(request, caller, asked) as record:
        picture = await read_picture(services_of(request), record.images[0])
        headers = {"X-Schnell-Seed": str(shown_seeds(record)[0])}
        return Response(picture, media_type=record.images[0].media_type, headers=headers)


def huggingface_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """`{"error": message}`."""
    return {"error": error.message}


def _parse(request: Request, fields: Fields, model: str) -> GenerationRequest:
    inputs = fields.text("inputs", required=True)
    values = fields.object("parameters") or {}
    fields.check()
    native = {name: values.get(name) for name in _EXTRA} | {"prompt": inputs}
    native["output_format"] = _negotiate(request.headers.get("accept", ""))
    sides = {name: values[name] for name in ("width", "height") if values.get(name) is not None}
    if sides:
        # the reference pipeline's default stands in for a side that is not given
        native |= {"aspect_ratio": "custom", "width": 1024, "height": 1024} | sides
    return build_request(request, "huggingface", find_model(request, model), native, rename=_rename)


def _rename(field: str) -> str:
    return "inputs" if field == "prompt" else f"parameters.{field}"


def _negotiate(accept: str) -> str:
    """The format that an `Accept` header likes best; PNG where it takes anything.

    Raises:
        NotAcceptableError: it takes no format that we have.
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
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weights = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
    try:
        return name, float(weights[0]) if weights else 1.0
    except ValueError:
        return name, 1.0

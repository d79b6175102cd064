"""`/v1/models`, which OpenAI's and Replicate's clients both ask for: one body that both can read.

The shapes are those of https://platform.openai.com/docs/api-reference/models and of
https://replicate.com/docs/reference/http#models.get.
"""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.errors import NotFoundError
from schnell.loras.references import is_library_name
from schnell.spec import (
    ASPECT_RATIOS,
    CUSTOM_RATIO,
    DEFAULT_SIDE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_OUTPUTS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_LORA_SCALE,
    MIN_SIDE,
    TOKEN_SIDE,
    Size,
)
from schnell.web.auth import Reader
from schnell.web.dialects.examples import LIST_MODELS, MODEL, VERSION, VERSIONS
from schnell.web.dialects.translation import find_model, list_model_ids
from schnell.web.native.lora_names import OWNER
from schnell.web.native.records import show_time
from schnell.web.openapi import KeyedRoute
from schnell.web.services import Services, services_of

router = APIRouter(tags=["OpenAI"], route_class=KeyedRoute)
#: Aspect ratios of Replicate's model that the native API has no name for, at one megapixel or as near as sides may go.
REPLICATE_RATIOS: Final = {
    "21:9": Size(1344, 576),
    "9:21": Size(576, 1344),
    "4:3": Size(1152, 896),
    "3:4": Size(896, 1152),
}
#: When FLUX.1 [schnell] was published: both APIs give a time for every model.
_PUBLISHED: Final = datetime(2024, 8, 1, tzinfo=UTC)


@router.get("/v1/models", summary="Every model id", **LIST_MODELS)
async def list_models(request: Request, caller: Reader) -> dict[str, Any]:
    """Every model id that requests may name; each LoRA that the key may use is one, too."""
    services = services_of(request)
    models = [_describe_model(services, name) for name in await list_model_ids(request, caller)]
    return {"object": "list", "data": models, "results": models, "next": None, "previous": None}


@router.get("/v1/models/{owner}/{name}/versions", summary="A model's versions", **VERSIONS)
async def list_versions(request: Request, caller: Reader, owner: str, name: str) -> dict[str, Any]:  # noqa: ARG001
    """The one version of a model."""
    find_model(request, f"{owner}/{name}")
    return {"results": [_describe_version(services_of(request))], "next": None, "previous": None}


@router.get("/v1/models/{owner}/{name}/versions/{version}", summary="A version", **VERSION)
async def show_version(request: Request, caller: Reader, owner: str, name: str, version: str) -> dict[str, Any]:  # noqa: ARG001
    """A version, with the schema of its input."""
    find_model(request, f"{owner}/{name}")
    if version != version_id(services_of(request)):
        raise NotFoundError("this version does not exist here")
    return _describe_version(services_of(request))


@router.get("/v1/models/{model:path}", summary="One model", **MODEL)
async def show_model(request: Request, caller: Reader, model: str) -> dict[str, Any]:
    """One model by its id, which may hold slashes. A LoRA that the id names must be in the library, or remote."""
    services = services_of(request)
    chosen = find_model(request, model)
    if chosen.lora is not None and is_library_name(chosen.lora.reference.lower()):
        await services.loras.show(chosen.lora.reference, caller.team_id)
    return _describe_model(services, chosen.id)


def version_id(services: Services) -> str:
    """The version of the served model, as Replicate writes versions: 64 hexadecimal digits."""
    return sha256(f"schnell model {services.model.label}".encode()).hexdigest()


def _describe_model(services: Services, model: str) -> dict[str, Any]:
    # of the id of the model itself: a LoRA after the colon may have slashes of its own
    base, colon, lora = model.partition(":")
    owner, _, name = base.rpartition("/")
    name += colon + lora
    owner = owner or OWNER
    return {
        # OpenAI's keys
        "id": model,
        "object": "model",
        "created": int(_PUBLISHED.timestamp()),
        "owned_by": owner,
        # Replicate's keys
        "url": f"{services.config.public_url}/v1/models/{model}",
        "owner": owner,
        "name": name,
        "description": f"FLUX.1 [schnell] with LoRAs; this server draws with {services.model.label}",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _describe_version(services),
    }


def _describe_version(services: Services) -> dict[str, Any]:
    return {
        "id": version_id(services),
        "created_at": show_time(_PUBLISHED),
        "cog_version": "0.16.0",
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": {"Input": _INPUT, "Output": _OUTPUT}},
        },
    }


# The schema of a version's input and output, as Cog writes it


def _whole(title: str, description: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "title": title, "description": description, "minimum": low, "maximum": high} | more


def _choice(title: str, description: str, default: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "description": description, "default": default, "enum": list(values)}


def _scale(title: str, description: str) -> dict[str, Any]:
    limits = {"minimum": MIN_LORA_SCALE, "maximum": MAX_LORA_SCALE, "default": 0.8}
    return {"type": "number", "title": title, "description": description} | limits


def _side(title: str) -> dict[str, Any]:
    text = f"Pixels, with aspect_ratio custom; rounded to a multiple of {TOKEN_SIDE}"
    return _whole(title, text, MIN_SIDE, MAX_SIDE, default=DEFAULT_SIDE)


_LORA: Final = "A LoRA: owner/name, a URL, or a name from your library"
_INPUT: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Input",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "title": "Prompt", "description": "Prompt for generated image"},
        "aspect_ratio": _choice(
            "aspect_ratio",
            "Aspect ratio for the generated image",
            "1:1",
            *ASPECT_RATIOS,
            *REPLICATE_RATIOS,
            CUSTOM_RATIO,
        ),
        "num_outputs": _whole("Num Outputs", "Number of outputs to generate", 1, MAX_OUTPUTS, default=1),
        "num_inference_steps": _whole("Num Inference Steps", "Number of denoising steps", 1, MAX_STEPS, default=4),
        "seed": _whole("Seed", "Random seed. Set for reproducible generation", 0, MAX_SEED),
        "output_format": _choice("output_format", "Format of the output images", "webp", "webp", "jpg", "png"),
        "output_quality": _whole("Output Quality", "Quality when saving the output images", 0, 100, default=80),
        "disable_safety_checker": {"type": "boolean", "title": "Disable Safety Checker", "default": False},
        "go_fast": {"type": "boolean", "title": "Go Fast", "description": "Faster arithmetic", "default": True},
        "megapixels": _choice("megapixels", "Approximate number of megapixels", "1", "1", "0.25"),
        "lora_weights": {"type": "string", "title": "Lora Weights", "description": _LORA},
        "lora_scale": _scale("Lora Scale", "How strongly the LoRA acts"),
        "extra_lora": {"type": "string", "title": "Extra Lora", "description": "A second LoRA"},
        "extra_lora_scale": _scale("Extra Lora Scale", "How strongly the second LoRA acts"),
        "loras": {
            "type": "array",
            "title": "Loras",
            "description": f"Up to {MAX_LORAS} LoRAs, each with path (or name) and scale",
            "items": {"type": "object", "properties": {"path": {"type": "string"}, "scale": {"type": "number"}}},
        },
        "width": _side("Width"),
        "height": _side("Height"),
    },
}
_OUTPUT: Final = {"type": "array", "title": "Output", "items": {"type": "string", "format": "uri"}}

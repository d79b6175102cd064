"""What Replicate's clients are told about the model: its version, and the schema of its input and output."""

from hashlib import sha256
from typing import Any, Final

from schnell.errors import (FieldError, InsufficientCreditsError, SchnellError, UnreadableBodyError, UnsupportedModelError)
from schnell.spec import (ASPECT_RATIOS, MAX_LORA_SCALE, MAX_OUTPUTS, MAX_SEED, MAX_STEPS, MIN_LORA_SCALE, Size)
from schnell.web.services import Services

#: The shapes of Replicate's model that the native API has no name for, at one megapixel or as near as a side may go.
REPLICATE_RATIOS: Final = {
    "21:9": Size(1344, 576),
    "9:21": Size(576, 1344),
    "4:3": Size(1152, 896),
    "3:4": Size(896, 1152),
}
REPLICATE_STATUSES: Final = {
    FieldError: 422,
    UnreadableBodyError: 422,
    UnsupportedModelError: 404,
    InsufficientCreditsError: 402,
}
_TITLES: Final = {
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Forbidden",
    404: "Not found",
    422: "Input validation failed",
    429: "Too many requests",
}


def replicate_error(error: SchnellError, status: int) -> dict[str, Any]:
    """Problem details as of RFC 7807, with the wrong fields where there are some."""
    body: dict[str, Any] = {"title": _TITLES.get(status, error.code), "detail": error.message, "status": status}
    if isinstance(error, FieldError):
        body["detail"] = "".join(f"- {each.field}: {each.message}\n" for each in error.problems)
        body["invalid_fields"] = [
            {"type": error.code, "field": each.field, "description": each.message} for each in error.problems
        ]
    return body


def version_id(services: Services) -> str:
    """The 64 hexadecimal digits that stand for the served model."""
    return sha256(f"schnell model {services.model.label}".encode()).hexdigest()


def describe_version(services: Services, created_at: str) -> dict[str, Any]:
    """A version, with the OpenAPI document of its input and output."""
    return {
        "id": version_id(services),
        "created_at": created_at,
        "cog_version": "0.16.0",
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": {"Input": _INPUT, "Output": _OUTPUT}},
        },
    }


def _whole(title: str, description: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "title": title, "description": description, "minimum": low, "maximum": high} | more


def _choice(title: str, description: str, default: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "description": description, "default": default, "enum": list(values)}


def _scale(title: str, description: str) -> dict[str, Any]:
    limits = {"minimum": MIN_LORA_SCALE, "maximum": MAX_LORA_SCALE, "default": 0.8}
    return {"type": "number", "title": title, "description": description} | limits


_LORA: Final = "A LoRA: owner/name, a URL, or a name from your library"
_INPUT: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Input",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "title": "Prompt", "description": "Prompt for generated image"},
        "aspect_ratio": _choice(
            "aspect_ratio", "Aspect ratio for the generated image", "1:1", *ASPECT_RATIOS, *REPLICATE_RATIOS
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
    },
}
_OUTPUT: Final = {"type": "array", "title": "Output", "items": {"type": "string", "format": "uri"}}

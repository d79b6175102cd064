"""OpenAI's image API and both services' lists of models in the OpenAPI document, by examples."""

from typing import Any, Final

from schnell.web.openapi import described_route

_ERROR: Final = {
    "error": {
        "message": "size: must be \"auto\" or WIDTHxHEIGHT, such as 1024x1024, got 'huge'",
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid_value",
    }
}
_ERRORS: Final = dict.fromkeys((400, 401, 403, 404, 409, 413, 429, 500, 503), _ERROR)
_USAGE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
    "cost": 1200,
}
GENERATE: Final[dict[str, Any]] = described_route(
    {
        "created": 1795619364,
        "data": [{"seed": 7, "b64_json": "iVBORw0KGgo…"}],
        "model": "schnell-mini",
        "background": "opaque",
        "output_format": "png",
        "size": "1024x1024",
        "loras": [{"name": "black-light", "scale": 0.8}],
        "warnings": [],
        "usage": _USAGE,
    },
    {
        "model": "flux-schnell-lora:black-light@0.8",
        "prompt": "a red apple on a blue background",
        "n": 1,
        "size": "1024x1024",
        "quality": "high",
        "response_format": "b64_json",
        "output_format": "png",
        "output_compression": 80,
        "stream": False,
        "partial_images": 0,
        "seed": 7,
        "loras": [{"path": "pixel", "scale": 0.5}],
    },
    _ERRORS,
)
_VERSION: Final = {
    "id": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa",
    "created_at": "2024-08-01T00:00:00.000Z",
    "cog_version": "0.16.0",
    "openapi_schema": {"openapi": "3.0.2", "info": {"title": "Cog", "version": "0.1.0"}},
}
_MODEL: Final = {
    "id": "flux-schnell-lora:black-light",
    "object": "model",
    "created": 1722470400,
    "owned_by": "schnell",
    "url": "http://127.0.0.1:8000/v1/models/flux-schnell-lora:black-light",
    "owner": "schnell",
    "name": "flux-schnell-lora:black-light",
    "description": "FLUX.1 [schnell] with LoRAs",
    "visibility": "public",
    "latest_version": _VERSION,
}
_LIST_ERRORS: Final = dict.fromkeys(
    (401, 403, 404), _ERROR | {"title": "Not found", "detail": "this version does not exist here", "status": 404}
)
LIST_MODELS: Final[dict[str, Any]] = described_route(
    {"object": "list", "data": [_MODEL], "results": [_MODEL], "next": None, "previous": None}, errors=_LIST_ERRORS
)
MODEL: Final[dict[str, Any]] = described_route(_MODEL, errors=_LIST_ERRORS)
VERSIONS: Final[dict[str, Any]] = described_route(
    {"results": [_VERSION], "next": None, "previous": None}, errors=_LIST_ERRORS
)
VERSION: Final[dict[str, Any]] = described_route(_VERSION, errors=_LIST_ERRORS)

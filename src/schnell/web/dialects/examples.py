"""The dialects in the OpenAPI document: each route by what its bodies and answers look like."""

from typing import Any, Final

from schnell.web.openapi import described_route, example_of, json_answer

# OpenAI, and the list of models

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

# Replicate

_PREDICTION_ERROR: Final = {
    "title": "Input validation failed",
    "detail": "- input.seed: must be 0-4294967295, got -1\n",
    "status": 422,
    "invalid_fields": [{"type": "INVALID_FIELD", "field": "input.seed", "description": "must be 0-4294967295, got -1"}],
}
_PREDICTION_ERRORS: Final = dict.fromkeys((401, 403, 404, 422), _PREDICTION_ERROR)
_CREATE_ERRORS: Final = dict.fromkeys((400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503), _PREDICTION_ERROR)
_PREDICTION_INPUT: Final = {
    "prompt": "a red apple on a blue background",
    "aspect_ratio": "1:1",
    "num_outputs": 1,
    "num_inference_steps": 4,
    "seed": 7,
    "output_format": "webp",
    "output_quality": 80,
    "go_fast": True,
    "megapixels": "1",
    "disable_safety_checker": False,
    "lora_weights": "black-light",
    "lora_scale": 0.8,
    "loras": [{"path": "pixel", "scale": 0.5}],
}
_PREDICTION_ADDRESS: Final = "http://127.0.0.1:8000/v1/predictions/0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11"
_PREDICTION: Final = {
    "id": "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11",
    "model": "black-forest-labs/flux-schnell-lora",
    "version": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa",
    "input": _PREDICTION_INPUT,
    "logs": "Using seed: 7\nDrawn with: schnell-mini\nLoRA: black-light at 0.8\n",
    "output": ["data:image/webp;base64,UklGR…"],
    "data_removed": False,
    "error": None,
    "status": "succeeded",
    "source": "api",
    "created_at": "2026-11-25T15:09:24.339Z",
    "started_at": "2026-11-25T15:09:24.351Z",
    "completed_at": "2026-11-25T15:09:24.790Z",
    "metrics": {"predict_time": 0.439, "total_time": 0.451, "image_count": 1, "cost": 1400},
    "urls": {"get": _PREDICTION_ADDRESS, "cancel": f"{_PREDICTION_ADDRESS}/cancel"},
}
_PREDICTION_WEBHOOK: Final = {"webhook": "https://example.org/hook", "webhook_events_filter": ["completed"]}
CREATE_OF_MODEL: Final[dict[str, Any]] = described_route(
    _PREDICTION, {"input": _PREDICTION_INPUT} | _PREDICTION_WEBHOOK, _CREATE_ERRORS, status=201
)
CREATE: Final[dict[str, Any]] = described_route(
    _PREDICTION,
    {"version": "black-forest-labs/flux-schnell-lora", "input": _PREDICTION_INPUT} | _PREDICTION_WEBHOOK,
    _CREATE_ERRORS,
    status=201,
)
PREDICTION: Final[dict[str, Any]] = described_route(_PREDICTION, errors=_PREDICTION_ERRORS)
PREDICTIONS: Final[dict[str, Any]] = described_route(
    {"next": None, "previous": None, "results": [_PREDICTION]}, errors=_PREDICTION_ERRORS
)
SECRET: Final[dict[str, Any]] = described_route(
    {"key": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}, errors=_PREDICTION_ERRORS
)

# Automatic1111

_WEB_UI_ERROR: Final = {
    "error": "INVALID_FIELD",
    "detail": [{"loc": ["body", "steps"], "msg": "must be a number", "type": "value_error"}],
    "body": "",
    "errors": "steps: must be a number",
}
_WEB_UI_ERRORS: Final = dict.fromkeys((401, 403, 404, 422), _WEB_UI_ERROR)
_WEB_UI_SETTINGS: Final = {
    "prompt": "a red apple <lora:black-light:0.8>",
    "negative_prompt": "",
    "seed": 7,
    "steps": 4,
    "width": 512,
    "height": 512,
    "batch_size": 1,
    "n_iter": 1,
    "cfg_scale": 1,
    "sampler_name": "Euler",
    "scheduler": "simple",
}
DRAW: Final[dict[str, Any]] = described_route(
    {
        "images": ["iVBORw0KGgo…"],
        "parameters": _WEB_UI_SETTINGS,
        "info": '{"seed": 7, "infotexts": ["…"], "notes": []}',
    },
    _WEB_UI_SETTINGS | {"send_images": True, "override_settings": {"sd_model_checkpoint": "flux-schnell-lora"}},
    dict.fromkeys((400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503), _WEB_UI_ERROR),
)
PROGRESS: Final[dict[str, Any]] = described_route(
    {
        "progress": 0.5,
        "eta_relative": 0.0,
        "state": {"job": "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11", "sampling_step": 2, "sampling_steps": 4},
        "current_image": None,
        "textinfo": None,
    },
    errors=_WEB_UI_ERRORS,
)
INTERRUPT: Final[dict[str, Any]] = described_route({}, errors=_WEB_UI_ERRORS)
INTERRUPT["responses"][200] = json_answer("It stops", example_of({"anyOf": [{"type": "object"}]}, {}))
_WEB_UI_DONE: Final = json_answer("It is done", example_of({"anyOf": [{"type": "null"}]}, None))
_WEB_UI_OPTIONS: Final = {
    "sd_model_checkpoint": "flux-schnell-lora:black-light",
    "sd_vae": "None",
    "samples_format": "png",
}
OPTIONS: Final[dict[str, Any]] = described_route(_WEB_UI_OPTIONS, errors=_WEB_UI_ERRORS)
CHANGE_OPTIONS: Final[dict[str, Any]] = described_route(None, _WEB_UI_OPTIONS, _WEB_UI_ERRORS)
CHANGE_OPTIONS["responses"][200] = _WEB_UI_DONE
CHECKPOINTS: Final[dict[str, Any]] = described_route(
    [{"title": "flux-schnell-lora:black-light", "model_name": "flux-schnell-lora:black-light", "hash": None}],
    errors=_WEB_UI_ERRORS,
)
LORAS: Final[dict[str, Any]] = described_route(
    [{"name": "black-light", "alias": "black-light", "path": "black-light.safetensors", "metadata": {"rank": 16}}],
    errors=_WEB_UI_ERRORS,
)
LIST: Final[dict[str, Any]] = described_route([{"name": "Euler", "aliases": ["euler"]}], errors=_WEB_UI_ERRORS)
COMMAND: Final[dict[str, Any]] = described_route(None, errors=_WEB_UI_ERRORS)
COMMAND["responses"][200] = _WEB_UI_DONE

"""Replicate's API in the OpenAPI document, by examples."""

from typing import Any, Final

from schnell.web.openapi import described_route

_ERROR: Final = {
    "title": "Input validation failed",
    "detail": "- input.seed: must be 0-4294967295, got -1\n",
    "status": 422,
    "invalid_fields": [{"type": "INVALID_FIELD", "field": "input.seed", "description": "must be 0-4294967295, got -1"}],
}
_ERRORS: Final = dict.fromkeys((401, 403, 404, 422), _ERROR)
_CREATE_ERRORS: Final = dict.fromkeys((400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503), _ERROR)
_INPUT: Final = {
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
_ADDRESS: Final = "http://127.0.0.1:8000/v1/predictions/0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11"
_PREDICTION: Final = {
    "id": "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11",
    "model": "black-forest-labs/flux-schnell-lora",
    "version": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa",
    "input": _INPUT,
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
    "urls": {"get": _ADDRESS, "cancel": f"{_ADDRESS}/cancel"},
}
_WEBHOOK: Final = {"webhook": "https://example.org/hook", "webhook_events_filter": ["completed"]}
CREATE_OF_MODEL: Final[dict[str, Any]] = described_route(
    _PREDICTION, {"input": _INPUT} | _WEBHOOK, _CREATE_ERRORS, status=201
)
CREATE: Final[dict[str, Any]] = described_route(
    _PREDICTION,
    {"version": "black-forest-labs/flux-schnell-lora", "input": _INPUT} | _WEBHOOK,
    _CREATE_ERRORS,
    status=201,
)
PREDICTION: Final[dict[str, Any]] = described_route(_PREDICTION, errors=_ERRORS)
PREDICTIONS: Final[dict[str, Any]] = described_route(
    {"next": None, "previous": None, "results": [_PREDICTION]}, errors=_ERRORS
)
SECRET: Final[dict[str, Any]] = described_route({"key": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}, errors=_ERRORS)

"""Errors as the web UI answers them, and its API in the OpenAPI document, by examples."""

from typing import Any, Final

from schnell.errors import FieldError, SchnellError, UnsupportedModelError
from schnell.web.errors import DialectErrors
from schnell.web.openapi import described_route, example_of, json_answer

_ERROR: Final = {
    "error": "INVALID_FIELD",
    "detail": [{"loc": ["body", "steps"], "msg": "must be a number", "type": "value_error"}],
    "body": "",
    "errors": "steps: must be a number",
}
_ERRORS: Final = dict.fromkeys((401, 403, 404, 422), _ERROR)
_SETTINGS: Final = {
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
    {"images": ["iVBORw0KGgo…"], "parameters": _SETTINGS, "info": '{"seed": 7, "infotexts": ["…"], "notes": []}'},
    _SETTINGS | {"send_images": True, "override_settings": {"sd_model_checkpoint": "flux-schnell-lora"}},
    dict.fromkeys((400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503), _ERROR),
)
PROGRESS: Final[dict[str, Any]] = described_route(
    {
        "progress": 0.5,
        "eta_relative": 0.0,
        "state": {"job": "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11", "sampling_step": 2, "sampling_steps": 4},
        "current_image": None,
        "textinfo": None,
    },
    errors=_ERRORS,
)
INTERRUPT: Final[dict[str, Any]] = described_route({}, errors=_ERRORS)
INTERRUPT["responses"][200] = json_answer("It stops", example_of({"anyOf": [{"type": "object"}]}, {}))
_DONE: Final = json_answer("It is done", example_of({"anyOf": [{"type": "null"}]}, None))
_OPTIONS: Final = {"sd_model_checkpoint": "flux-schnell-lora:black-light", "sd_vae": "None", "samples_format": "png"}
OPTIONS: Final[dict[str, Any]] = described_route(_OPTIONS, errors=_ERRORS)
CHANGE_OPTIONS: Final[dict[str, Any]] = described_route(None, _OPTIONS, _ERRORS)
CHANGE_OPTIONS["responses"][200] = _DONE
CHECKPOINTS: Final[dict[str, Any]] = described_route(
    [{"title": "flux-schnell-lora:black-light", "model_name": "flux-schnell-lora:black-light", "hash": None}],
    errors=_ERRORS,
)
LORAS: Final[dict[str, Any]] = described_route(
    [{"name": "black-light", "alias": "black-light", "path": "black-light.safetensors", "metadata": {"rank": 16}}],
    errors=_ERRORS,
)
LIST: Final[dict[str, Any]] = described_route([{"name": "Euler", "aliases": ["euler"]}], errors=_ERRORS)
COMMAND: Final[dict[str, Any]] = described_route(None, errors=_ERRORS)
COMMAND["responses"][200] = _DONE


def describe_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """The web UI's error: FastAPI's own list for wrong fields, one line for everything else."""
    body: dict[str, Any] = {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    if isinstance(error, FieldError):
        body["detail"] = [
            {"loc": ["body", each.field], "msg": each.message, "type": "value_error"} for each in error.problems
        ]
    return body


ERRORS: Final = DialectErrors(
    ("/sdapi/",),
    describe_error,
    dialect="automatic1111",
    statuses={FieldError: 422, UnsupportedModelError: 404},
    # the web UI's own `--api-auth` is Basic, and that is what its clients can send
    challenge='Basic realm="schnell: your API key is the password"',
)

"""Automatic1111's web UI API: `POST /sdapi/v1/txt2img`.

The wire format is that of https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. Its clients have values
built in that suit other models (20 steps, a guidance of 7), so numbers are brought into FLUX's range here, and `info`
says so in `notes`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.errors import (FieldError, SchnellError, UnsupportedModelError)
from schnell.generations import (GenerationRequest, Record)
from schnell.web import submission
from schnell.web.auth import Generator
from schnell.web.dialects.automatic1111_numbers import (read_deaf, read_numbers)
from schnell.web.dialects.automatic1111_prompt import read_lora_tags
from schnell.web.dialects.translation import (build_request, find_model, read_base64, shown_seeds)
from schnell.web.fields import (Fields, read_json_object)
from schnell.web.services import services_of

router = APIRouter(tags=["Automatic1111"], include_in_schema=False)

A1111_STATUSES: Final = {FieldError: 422, UnsupportedModelError: 404}
_ECHOED: Final = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "width",
    "height",
    "batch_size",
    "n_iter",
    "cfg_scale",
    "sampler_name",
    "scheduler",
)
_LORA_FIELDS: Final = (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))


@router.post("/sdapi/v1/txt2img")
async def create(request: Request, caller: Generator) -> dict[str, Any]:
    """Draw pictures as the web UI's clients ask for them."""
    values = await read_json_object(request)
    notes: list[str] = []
    fields = Fields(values)
    send = fields.flag("send_images", default=True)
    asked = _parse(request, fields, notes)
    record = await submission.draw(request, caller, asked)
    return {
        "images": await read_base64(services_of(request), record) if send else [],
        "parameters": {name: values.get(name) for name in _ECHOED},
        "info": json.dumps(_describe(record, values, notes)),
    }


def a1111_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """The web UI's error: FastAPI's own list for wrong fields, one line for everything else."""
    body: dict[str, Any] = {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    if isinstance(error, FieldError):
        body["detail"] = [
            {"loc": ["body", each.field], "msg": each.message, "type": "value_error"} for each in error.problems
        ]
    return body


def _parse(request: Request, fields: Fields, notes: list[str]) -> GenerationRequest:
    text = fields.text("prompt", required=True)
    overrides = Fields(fields.object("override_settings") or {})
    checkpoint = overrides.text("sd_model_checkpoint")
    native = read_numbers(fields, notes) | {"output_format": "png"}
    notes += read_deaf(fields)
    fields.check()
    overrides.check()
    native["prompt"], loras = read_lora_tags(text or "", notes)
    for lora, (name, scale) in zip(loras, _LORA_FIELDS, strict=False):
        native |= {name: lora.reference, scale: lora.scale}
    model = find_model(request, checkpoint or None)
    asked = build_request(request, "automatic1111", model, native, rename=_rename)
    # the native API names two LoRAs, a prompt any number
    return replace(asked, spec=replace(asked.spec, loras=loras))


def _rename(field: str) -> str:
    return (
        "prompt" if "lora" in field else {"num_inference_steps": "steps", "num_outputs": "batch_size"}.get(field, field)
    )


def _describe(record: Record, values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    settings, seeds = record.settings, shown_seeds(record)
    prompt = values["prompt"]
    model = record.served_model or record.model
    size = f"{settings['width']}x{settings['height']}"
    texts = [
        f"{prompt}\nSteps: {settings['steps']}, Sampler: Euler, CFG scale: 1, Seed: {seed}, Size: {size}, "
        f"Model: {model}"
        for seed in seeds
    ]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": "",
        "all_negative_prompts": [""] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": settings["width"],
        "height": settings["height"],
        "sampler_name": "Euler",
        "cfg_scale": 1,
        "steps": settings["steps"],
        "batch_size": len(seeds),
        "sd_model_name": model,
        "infotexts": texts,
        "job_timestamp": f"{record.created_at:%Y%m%d%H%M%S}",
        "index_of_first_image": 0,
        "notes": notes + list(record.response_object.get("warnings", [])),
    }

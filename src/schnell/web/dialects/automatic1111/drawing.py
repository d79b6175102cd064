"""`txt2img`: a request of the web UI's clients, drawn; how far it is, and stopping it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.accounts.identity import Caller
from schnell.generations import GenerationRequest, Record, Running
from schnell.spec import MAX_STEPS
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.dialects import examples
from schnell.web.dialects.automatic1111.lists import chosen_checkpoints
from schnell.web.dialects.automatic1111.reading import name_unknown, read_lora_tags, read_numbers, without_text
from schnell.web.dialects.translation import (
    SWITCHES,
    build_request,
    drawn_loras,
    find_model,
    picture_seeds,
    read_base64,
)
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.lora_names import LORA_KEYS
from schnell.web.openapi import KeyedRoute
from schnell.web.services import Services, services_of

router = APIRouter(prefix="/sdapi/v1", tags=["Automatic1111"], route_class=KeyedRoute)

_ECHOED: Final = (
    *("prompt", "negative_prompt", "seed", "steps", "width", "height", "batch_size", "n_iter"),
    *("cfg_scale", "sampler_name", "scheduler"),
)


@router.post("/txt2img", summary="Draw, as the web UI's clients ask", **examples.DRAW)
async def create(request: Request, caller: Generator) -> dict[str, Any]:
    """Draw pictures as the web UI's clients ask for them."""
    values = without_text(await read_json_object(request, '{"prompt": …}'))
    notes: list[str] = []
    fields = Fields(values)
    send = fields.flag("send_images", default=True)
    asked = replace(_parse(request, caller, fields, notes), inline=send)
    async with submission.drawn(request, caller, asked) as record:
        return {
            "images": await read_base64(services_of(request), record) if send else [],
            "parameters": {name: values.get(name) for name in _ECHOED},
            "info": json.dumps(_describe(record, values)),
        }


@router.get("/progress", summary="How far it is", **examples.PROGRESS)
async def show_progress(request: Request, caller: Reader) -> dict[str, Any]:
    """How far this key's oldest generation is, from 0 to 1."""
    running = next(iter(_running_for(services_of(request), caller)), None)
    step, total = (running.progress.step, running.record.settings["steps"]) if running else (0, 0)
    return {
        "progress": step / total if total else 0.0,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": running.record.id if running else "",
            "job_count": int(running is not None),
            "job_timestamp": f"{running.record.created_at:%Y%m%d%H%M%S}" if running else "0",
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": total or MAX_STEPS,
        },
        "current_image": None,
        "textinfo": None,
    }


@router.post("/interrupt", summary="Stop", **examples.INTERRUPT)
@router.post("/skip", summary="Stop", **examples.INTERRUPT)
async def interrupt(request: Request, caller: Generator) -> dict[str, Any]:
    """Stop what this key is drawing through this API; nothing is charged."""
    for running in _running_for(services_of(request), caller):
        running.cancel()
    return {}


def _running_for(services: Services, caller: Caller) -> list[Running]:
    """This key's generations of this dialect that are under way, oldest first."""
    return [
        running
        for running in services.admission.all()
        if (running.record.key_id or running.record.user_id) == caller.counted_as
        and running.record.dialect == "automatic1111"
    ]


# Reading a request

_IGNORED: Final = (
    *("negative_prompt", "enable_hr", "styles", "restore_faces", "tiling", "refiner_checkpoint", "script_name"),
)
#: Fields that have one value with FLUX.1 [schnell], by all of that value's names; no note is due for those.
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "cfg_scale": (1,),
    "sampler_name": ("Euler", "euler"),
    "sampler_index": ("Euler", "euler"),
    "scheduler": ("simple", "Simple", "automatic", "Automatic"),
}


def _parse(request: Request, caller: Caller, fields: Fields, notes: list[str]) -> GenerationRequest:
    text = fields.text("prompt", required=True)
    overrides = Fields(fields.object("override_settings") or {})
    checkpoint = overrides.text("sd_model_checkpoint") or chosen_checkpoints(request).of(caller)
    native = read_numbers(fields, notes) | {"output_format": "png"}
    native |= {name: fields.raw(name) for name in (*LORA_KEYS, *SWITCHES)}
    notes += [*note_ignored_fields(fields), *name_unknown(fields)]
    fields.check()
    overrides.check()
    native["prompt"], loras = read_lora_tags(text or "", notes)
    model = find_model(request, checkpoint, "override_settings")
    return build_request(request, "automatic1111", model, native, rename=_rename, loras=loras, warnings=notes)


def _rename(field: str) -> str:
    names = {"num_inference_steps": "steps", "num_outputs": "batch_size", "model": "override_settings"}
    return names.get(field, field)


def note_ignored_fields(fields: Fields) -> list[str]:
    """A note for every field that has no effect, and for every value that FLUX has only one of."""
    notes = [f"{name} has no effect with FLUX" for name in _IGNORED if fields.raw(name)]
    for name, values in _FIXED.items():
        asked = fields.raw(name)
        if asked and asked not in values:
            notes.append(f"{name} {str(asked)[:50]} became {values[0]}: FLUX.1 [schnell] has no other")
    return notes


# Writing an answer


def _describe(record: Record, values: Mapping[str, Any]) -> dict[str, Any]:
    settings, seeds = record.settings, picture_seeds(record)
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
        "loras": drawn_loras(record),
        "cost": record.cost,
        "notes": record.response_object.get("warnings", []),
    }

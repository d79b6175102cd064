"""Automatic1111's web UI API: `POST /sdapi/v1/txt2img`, and the lists and settings that its clients ask for.

The wire format is that of https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. Its clients have values
built in that suit other models (20 steps, a guidance of 7), so numbers are brought into FLUX's range here rather than
refused; `notes` in the answer's `info` says what was changed or ignored.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.accounts.identity import Caller
from schnell.errors import (
    FieldError,
    FieldProblem,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    UnsupportedModelError,
)
from schnell.generations import GenerationRequest, Record, Running
from schnell.spec import (
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_OUTPUTS,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_LORA_SCALE,
    MIN_SIDE,
    SIDE_STEP,
    LoraRef,
    combine_loras,
)
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.dialects.translation import build_request, find_model, picture_seeds, read_base64
from schnell.web.errors import DialectErrors
from schnell.web.fields import Fields, read_json_object
from schnell.web.services import Services, services_of

router = APIRouter(prefix="/sdapi/v1", tags=["Automatic1111"], include_in_schema=False)

# Errors


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

# Drawing

_ECHOED: Final = (
    *("prompt", "negative_prompt", "seed", "steps", "width", "height", "batch_size", "n_iter"),
    *("cfg_scale", "sampler_name", "scheduler"),
)


@router.post("/txt2img")
async def create(request: Request, caller: Generator) -> dict[str, Any]:
    """Draw pictures as the web UI's clients ask for them."""
    values = await read_json_object(request)
    notes: list[str] = []
    fields = Fields(values)
    send = fields.flag("send_images", default=True)
    asked = replace(_parse(request, fields, notes), inline=send)
    async with submission.drawn(request, caller, asked) as record:
        return {
            "images": await read_base64(services_of(request), record) if send else [],
            "parameters": {name: values.get(name) for name in _ECHOED},
            "info": json.dumps(_describe(record, values, notes)),
        }


@router.get("/progress")
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


@router.post("/interrupt")
@router.post("/skip")
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
        if running.record.key_id == caller.key_id and running.record.dialect == "automatic1111"
    ]


# Settings and lists

#: Lists of what FLUX does not have, or has one of; clients fill their menus with them.
_LISTS: Final[dict[str, Any]] = {
    "samplers": [{"name": "Euler", "aliases": ["euler"], "options": {}}],
    "schedulers": [
        {"name": "simple", "label": "Simple", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
    ],
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}],
    "latent-upscale-modes": [{"name": "Latent"}],
    "sd-vae": [],
    "sd-modules": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "extensions": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "memory": {"ram": {}, "cuda": {}},
    "cmd-flags": {},
}
#: Commands that succeed without effect: there is one model, and it is always loaded.
_NO_EFFECT: Final = ("refresh-checkpoints", "refresh-loras", "refresh-vae", "reload-checkpoint", "unload-checkpoint")


@router.get("/options")
async def show_options(request: Request, caller: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is asked for
    """The settings that clients read."""
    return {
        "sd_model_checkpoint": services_of(request).model.ids[0],
        "sd_checkpoint_hash": "",
        "sd_vae": "None",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


@router.post("/options")
async def change_options(request: Request, caller: Generator) -> None:  # noqa: ARG001 - a key is asked for
    """Accept settings without effect, since they would hold for everyone. A checkpoint must be one that is served."""
    fields = Fields(await read_json_object(request))
    checkpoint = fields.text("sd_model_checkpoint")
    fields.check()
    find_model(request, checkpoint or None)


@router.get("/sd-models")
async def list_checkpoints(request: Request, caller: Reader) -> list[dict[str, Any]]:  # noqa: ARG001 - as above
    """The served model."""
    name = services_of(request).model.ids[0]
    return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]


@router.get("/loras")
async def list_loras(request: Request, caller: Reader) -> list[dict[str, Any]]:
    """The LoRAs that this team may name in a prompt."""
    found = await services_of(request).loras.list(caller.team_id)
    return [
        {
            "name": lora.name,
            "alias": lora.name,
            "path": f"{lora.name}.safetensors",
            "metadata": {"ss_base_model_version": "flux1", "sshs_model_hash": lora.sha256, "rank": lora.rank},
        }
        for lora in found
    ]


# the paths above are spelt out and must be declared first: the first route that matches answers
@router.get("/{name}")
async def show_list(name: str, caller: Reader) -> Any:  # noqa: ARG001 - a key is asked for
    """One of the lists that clients fill their menus with."""
    if name not in _LISTS:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")
    return _LISTS[name]


@router.post("/{name}")
async def accept_command(name: str, caller: Generator) -> None:  # noqa: ARG001 - a key is asked for
    """Accept a command to load or unload a model, without effect."""
    if name not in _NO_EFFECT:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")


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
#: Numbers up to this size are brought into range; larger ones are refused.
_MAX_CLAMPED: Final = 2**40
_DEFAULT_SIDE: Final = 512  # the web UI's own
_LORA_FIELDS: Final = (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))
_TAG: Final = re.compile(r"<lora:([^<>]{1,600})>", re.IGNORECASE)
#: A whole prompt, and its longest possible tags.
_MAX_TAGGED_PROMPT: Final = MAX_PROMPT_LENGTH + MAX_LORAS * 640
_WEIGHTS: Final = re.compile(
    r"(?::(?:(?:te|unet)=)?[-+]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})){1,3}$", re.IGNORECASE
)


def _parse(request: Request, fields: Fields, notes: list[str]) -> GenerationRequest:
    text = fields.text("prompt", required=True)
    overrides = Fields(fields.object("override_settings") or {})
    checkpoint = overrides.text("sd_model_checkpoint")
    native = read_numbers(fields, notes) | {"output_format": "png"}
    notes += note_ignored_fields(fields)
    fields.check()
    overrides.check()
    native["prompt"], loras = read_lora_tags(text or "", notes)
    for lora, (name, scale) in zip(loras, _LORA_FIELDS, strict=False):
        native |= {name: lora.reference, scale: lora.scale}
    model = find_model(request, checkpoint or None)
    asked = build_request(request, "automatic1111", model, native, rename=_rename)
    # a native body names two LoRAs, a prompt up to eight
    return replace(asked, spec=replace(asked.spec, loras=loras))


def _rename(field: str) -> str:
    # LoRAs are tags in the prompt here
    return (
        "prompt" if "lora" in field else {"num_inference_steps": "steps", "num_outputs": "batch_size"}.get(field, field)
    )


def read_numbers(fields: Fields, notes: list[str]) -> dict[str, Any]:
    """Size, steps, count and seed for a native `promptObject`, brought into FLUX's range.

    Each change is added to `notes`; values that are not numbers are noted in `fields`.
    """
    return {
        "aspect_ratio": "custom",
        "width": _read_side(fields, "width", notes),
        "height": _read_side(fields, "height", notes),
        "num_inference_steps": _clamp(fields, "steps", (1, MAX_STEPS), notes) or MAX_STEPS,
        "num_outputs": _read_count(fields, notes),
        "seed": _read_seed(fields, notes),
    }


def note_ignored_fields(fields: Fields) -> list[str]:
    """A note for every field that has no effect, and for every value that FLUX has only one of."""
    notes = [f"{name} has no effect with FLUX" for name in _IGNORED if fields.raw(name)]
    for name, values in _FIXED.items():
        asked = fields.raw(name)
        if asked and asked not in values:
            notes.append(f"{name} {str(asked)[:50]} became {values[0]}: FLUX.1 [schnell] has no other")
    return notes


def _clamp(fields: Fields, name: str, limits: tuple[int, int], notes: list[str]) -> int | None:
    asked = fields.number(name, -_MAX_CLAMPED, _MAX_CLAMPED)
    if asked is None:
        return None
    value = min(max(round(asked), limits[0]), limits[1])
    if value != asked:
        notes.append(f"{name} {asked:g} became {value}: FLUX.1 [schnell] takes {limits[0]}-{limits[1]}")
    return value


def _read_side(fields: Fields, name: str, notes: list[str]) -> int:
    side = _clamp(fields, name, (MIN_SIDE, MAX_SIDE), notes) or _DEFAULT_SIDE
    nearest = round(side / SIDE_STEP) * SIDE_STEP
    if nearest != side:
        notes.append(f"{name} {side} became {nearest}: sides are multiples of {SIDE_STEP}")
    return nearest


def _read_count(fields: Fields, notes: list[str]) -> int:
    asked = 1
    for name in ("batch_size", "n_iter"):
        asked *= max(1, round(fields.number(name, -_MAX_CLAMPED, _MAX_CLAMPED) or 1))
    if asked > MAX_OUTPUTS:
        notes.append(f"{asked} pictures became {MAX_OUTPUTS}: ask again for more")
    return min(asked, MAX_OUTPUTS)


def _read_seed(fields: Fields, notes: list[str]) -> int | None:
    # -1 asks for a random seed in the web UI
    seed = fields.whole("seed", -_MAX_CLAMPED, _MAX_CLAMPED)
    if seed is None or seed < 0:
        return None
    if seed > MAX_SEED:
        notes.append(f"seed {seed} became {seed % (MAX_SEED + 1)}: seeds have 32 bits")
    return seed % (MAX_SEED + 1)


def read_lora_tags(prompt: str, notes: list[str]) -> tuple[str, tuple[LoraRef, ...]]:
    """The prompt without its `<lora:NAME:SCALE>` tags, and the LoRAs that they name, at scale 1 where none is given.

    A LoRA that is named twice is one, its scales added. What a tag asks for and FLUX cannot do is added to `notes`.

    Raises:
        InvalidFieldError: the prompt is longer than any that could be drawn, or names more than eight LoRAs.
    """
    # before anything is parsed: a body full of tags must cost nothing
    if len(prompt) > _MAX_TAGGED_PROMPT:
        problem = f"must have at most {MAX_PROMPT_LENGTH} characters beside its LoRA tags, got {len(prompt)} with them"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    loras = combine_loras(_read_tag(match[1], notes) for match in _TAG.finditer(prompt))
    if len(loras) > MAX_LORAS:
        problem = f"may name {MAX_LORAS} LoRAs at most, got {len(loras)}"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    return " ".join(_TAG.sub(" ", prompt).split()) if loras else prompt, loras


def _read_tag(text: str, notes: list[str]) -> LoraRef:
    match = _WEIGHTS.search(text)
    if match is None:
        return LoraRef(text.strip(), 1.0)
    name = text[: match.start()].strip()
    weights = [float(part.rpartition("=")[2]) for part in match[0][1:].split(":")]
    if len(weights) > 1:
        # the web UI has one strength for the text encoder and one for the U-Net
        notes.append(f"<lora:{text}>: one strength counts for the whole LoRA here, {weights[0]:g}")
    scale = min(max(weights[0], MIN_LORA_SCALE), MAX_LORA_SCALE)
    if scale != weights[0]:
        notes.append(
            f"<lora:{text}>: the strength became {scale:g}, it may be {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
        )
    return LoraRef(name, scale)


# Writing an answer


def _describe(record: Record, values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
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
        "notes": notes + list(record.response_object.get("warnings", [])),
    }

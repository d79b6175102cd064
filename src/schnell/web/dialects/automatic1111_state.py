"""What the web UI's clients ask before and while they draw: options, lists, progress, interrupt."""

from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.accounts.identity import Caller
from schnell.errors import NotFoundError
from schnell.generations import Running
from schnell.spec import MAX_STEPS
from schnell.web.auth import (Generator, Reader)
from schnell.web.dialects.translation import find_model
from schnell.web.fields import (Fields, read_json_object)
from schnell.web.services import (Services, services_of)

router = APIRouter(prefix="/sdapi/v1", tags=["Automatic1111"], include_in_schema=False)

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
_NOTHING_TO_DO: Final = (
    "refresh-checkpoints",
    "refresh-loras",
    "refresh-vae",
    "reload-checkpoint",
    "unload-checkpoint",
)


@router.get("/options")
async def show_options(request: Request, caller: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is asked for
    """The settings that clients look at."""
    return {
        "sd_model_checkpoint": services_of(request).model.ids[0],
        "sd_checkpoint_hash": "",
        "sd_vae": "None",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


@router.post("/options")
async def change_options(request: Request, caller: Generator) -> None:  # noqa: ARG001 - a key is asked for
    """Nothing can be changed for everyone here; a checkpoint that is not served is refused."""
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


@router.get("/progress")
async def show_progress(request: Request, caller: Reader) -> dict[str, Any]:
    """How far this key's oldest generation is, from 0 to 1."""
    running = next(iter(_under_way(services_of(request), caller)), None)
    step, total = (running.progress.step, running.record.settings["steps"]) if running else (0, 0)
    if running and running.progress.stage == "decode":
        step = total
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
    for running in _under_way(services_of(request), caller):
        running.cancel()
    return {}


@router.get("/{name}")
async def show_list(name: str, caller: Reader) -> Any:  # noqa: ARG001 - a key is asked for
    """What a client fills a menu with."""
    if name not in _LISTS:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")
    return _LISTS[name]


@router.post("/{name}")
async def do_nothing(name: str, caller: Generator) -> None:  # noqa: ARG001 - a key is asked for
    """Reloading and unloading: there is nothing to do."""
    if name not in _NOTHING_TO_DO:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")


def _under_way(services: Services, caller: Caller) -> list[Running]:
    return [
        running
        for running in services.admission.all()
        if running.record.key_id == caller.key_id and running.record.dialect == "automatic1111"
    ]

"""Settings that the web UI's clients read and change, and the lists that they fill their menus with."""

from collections import OrderedDict
from typing import Any, Final, cast

from fastapi import APIRouter, Request

from schnell.accounts.identity import Caller
from schnell.errors import NotFoundError
from schnell.web.auth import Generator, Reader
from schnell.web.dialects import examples
from schnell.web.dialects.translation import find_model, list_model_ids
from schnell.web.fields import Fields, read_json_object
from schnell.web.openapi import KeyedRoute
from schnell.web.services import services_of

router = APIRouter(prefix="/sdapi/v1", tags=["Automatic1111"], route_class=KeyedRoute)
_MOST_CHECKPOINTS: Final = 10_000


class ChosenCheckpoints:
    """The checkpoint that each API key has chosen with `POST /options`, on this server, until it stops.

    In the web UI such a choice holds for everyone. Here it holds for its key alone, since keys belong to many people.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, str] = OrderedDict()

    def of(self, caller: Caller) -> str | None:
        """The model id that this key has chosen; None without a choice."""
        return self._by_key.get(caller.counted_as)

    def choose(self, caller: Caller, model_id: str) -> None:
        """Draw with this model for this key from now on. Of very many choices the oldest is forgotten."""
        self._by_key[caller.counted_as] = model_id
        self._by_key.move_to_end(caller.counted_as)
        if len(self._by_key) > _MOST_CHECKPOINTS:
            self._by_key.popitem(last=False)


def chosen_checkpoints(request: Request) -> ChosenCheckpoints:
    """The choices of the app that a request came to."""
    return cast("ChosenCheckpoints", request.app.state.checkpoints)


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


@router.get("/options", summary="Settings", **examples.OPTIONS)
async def show_options(request: Request, caller: Reader) -> dict[str, Any]:
    """The settings that clients read."""
    return {
        "sd_model_checkpoint": chosen_checkpoints(request).of(caller) or services_of(request).model.ids[0],
        "sd_checkpoint_hash": "",
        "sd_vae": "None",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


@router.post("/options", summary="Choose the checkpoint", **examples.CHANGE_OPTIONS)
async def change_options(request: Request, caller: Generator) -> None:
    """Keep the checkpoint for this key, which must be one that is served; other settings have no effect."""
    fields = Fields(await read_json_object(request, '{"sd_model_checkpoint": …}'))
    checkpoint = fields.text("sd_model_checkpoint")
    fields.check()
    if checkpoint:
        find_model(request, checkpoint, "sd_model_checkpoint")
        chosen_checkpoints(request).choose(caller, checkpoint)


@router.get("/sd-models", summary="Checkpoints", **examples.CHECKPOINTS)
async def list_checkpoints(request: Request, caller: Reader) -> list[dict[str, Any]]:
    """The served model, alone and with each LoRA that this team may name."""
    names = await list_model_ids(request, caller)
    kept = [names[0], *(name for name in names if ":" in name)]
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in kept
    ]


@router.get("/loras", summary="LoRAs", **examples.LORAS)
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
@router.get("/{name}", summary="A list of the web UI", **examples.LIST)
async def show_list(name: str, caller: Reader) -> Any:  # noqa: ARG001 - a key is asked for
    """One of the lists that clients fill their menus with."""
    if name not in _LISTS:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")
    return _LISTS[name]


@router.post("/{name}", summary="A command of the web UI", **examples.COMMAND)
async def accept_command(name: str, caller: Generator) -> None:  # noqa: ARG001 - a key is asked for
    """Accept a command to load or unload a model, without effect."""
    if name not in _NO_EFFECT:
        raise NotFoundError(f"FLUX has no {name[:50]!r}")

"""The playground: a form for every field of the API with the reference document's example in it."""

from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.errors import NotFoundError
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.spec import ASPECT_RATIOS, MAX_SEED, MAX_SIDE, MIN_SIDE, SIDE_STEP
from schnell.web.native.feature_schema import FEATURE_BODY
from schnell.web.pages.site import find_caller, page, site_of
from schnell.web.services import Services, services_of

router = APIRouter()
_CONTENT: Final = FEATURE_BODY["requestBody"]["content"]["application/json"]
_PROMPT_OBJECT: Final = _CONTENT["schema"]["properties"]["promptObject"]
#: The reference document's example, key by key.
_EXAMPLE: Final = _CONTENT["examples"]["the document's own"]["value"]["promptObject"]
#: Prompts to try: icons are what the embedded model draws; scenes are for other models.
_ICONS: Final = ("red apple on a blue background", "green frog", "rocket on a sky blue background", "strawberry")
_SCENES: Final = (
    "A lighthouse in a storm, oil painting",
    "Portrait of an astronaut, soft window light",
    "Isometric tiny bakery, clay render",
)
#: Snippets beside those of the native API, and the route that each needs.
_CLIENTS: Final = {"openai": "/v1/images/generations", "replicate": "/v1/predictions"}


@router.get("/")
async def playground(request: Request) -> Response:
    """The page. Its script reads the configuration that stands in it as JSON."""
    caller = await find_caller(request)
    config = _config(request) | {"library": await _library(request, caller)}
    return page(request, "playground.html", caller, config=config, ratios=_ratios(), max_seed=MAX_SEED)


def _config(request: Request) -> dict[str, Any]:
    services = services_of(request)
    serves = site_of(request).serves
    loras = serves("/api/loras")
    return {
        "endpoint": f"{services.config.public_url}/api/features",
        "publicUrl": services.config.public_url,
        "model": services.model.ids[0],
        "suggestions": _ICONS if services.model.name == DEFAULT_MODEL else _SCENES,
        "example": {name: value for name, value in _EXAMPLE.items() if loras or not name.startswith("lora_")},
        "defaults": {
            name: schema["default"] for name, schema in _PROMPT_OBJECT["properties"].items() if "default" in schema
        },
        "ratios": {name: list(size) for name, size in ASPECT_RATIOS.items()},
        "side": {"min": MIN_SIDE, "max": MAX_SIDE, "step": SIDE_STEP},
        "maxSeed": MAX_SEED,
        "loras": loras,
        "clients": [name for name, path in _CLIENTS.items() if serves(path)],
    }


async def _library(request: Request, caller: Caller | None) -> list[dict[str, Any]]:
    """The LoRAs that the picker offers. `also` holds the example's own reference where it means this LoRA."""
    services = services_of(request)
    if caller is None or not site_of(request).serves("/api/loras"):
        return []
    example = await _find_example(services, caller)
    found = await services.loras.list(caller.team_id)
    previewed = await services.loras.list_previewed(found)
    return [
        {
            "name": lora.name,
            "also": [_EXAMPLE["lora_weights"]] if lora.id == example else [],
            "words": list(lora.trigger_words),
            "summary": f"{', '.join(lora.trigger_words) or lora.made_for} · rank {lora.rank}",
            "preview": f"/api/loras/{quote(lora.id, safe='')}/preview" if lora.id in previewed else "",
        }
        for lora in found
    ]


async def _find_example(services: Services, caller: Caller) -> str | None:
    with suppress(NotFoundError):
        return (await services.loras.show(str(_EXAMPLE["lora_weights"]), caller.team_id)).id
    return None


def _ratios() -> list[dict[str, Any]]:
    """The icon of each aspect ratio: a rectangle with a longer side of 22 units, centred in 24 by 24."""
    shapes = []
    for name, size in ASPECT_RATIOS.items():
        longer = max(size)
        width, height = (round(22 * side / longer, 1) for side in size)
        shape = {"name": name, "width": width, "height": height, "x": (24 - width) / 2, "y": (24 - height) / 2}
        shapes.append(shape | {"pixels": f"{size.width} × {size.height}"})
    return shapes

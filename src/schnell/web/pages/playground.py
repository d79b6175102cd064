"""The playground: a form for every field of the API with the reference document's example in it."""

from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.errors import NotFoundError
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.spec import ASPECT_RATIOS, MAX_SEED, MAX_SIDE, MIN_SIDE, SIDE_STEP
from schnell.web.native.feature_schema import FEATURE_BODY
from schnell.web.pages.languages import language_of
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
#: What the page opens with where the embedded model is served, which draws no scenes; the document's own example stands
#: behind a link.
_OPENING: Final = {"prompt": _ICONS[0], "aspect_ratio": "1:1", "num_inference_steps": 4}
#: Pictures that the embedded model drew with these settings, in `static/examples`.
EXAMPLES: Final = (
    {"file": "apple.webp", "prompt": "red apple on a blue background", "seed": 3},
    {"file": "rocket.webp", "prompt": "rocket on a sky blue background", "seed": 7},
    {"file": "frog.webp", "prompt": "green frog, flat style", "seed": 5, "lora_weights": "flat", "lora_scale": 1},
    {"file": "castle.webp", "prompt": "castle, pixel art", "seed": 2, "lora_weights": "pixel", "lora_scale": 1},
    {"file": "ship.webp", "prompt": "ship, blueprint", "seed": 4, "lora_weights": "blueprint", "lora_scale": 1},
    {"file": "cat.webp", "prompt": "cat, black light", "seed": 8, "lora_weights": "black-light", "lora_scale": 1},
)
#: Snippets beside those of the native API, and the route that each needs.
_CLIENTS: Final = {"openai": "/v1/images/generations", "replicate": "/v1/predictions"}


@router.get("/")
async def playground(request: Request) -> Response:
    """The page. Its script reads the configuration that stands in it as JSON."""
    caller = await find_caller(request)
    config = _config(request) | {"library": await _library(request, caller)}
    may_draw = caller is not None and "generate" in caller.scopes
    given = {"config": config, "ratios": _ratios(), "may_draw": may_draw, "may_add": may_draw and config["loras"]}
    return page(request, "playground.html", caller, **given)


def _config(request: Request) -> dict[str, Any]:
    services = services_of(request)
    serves = site_of(request).serves
    loras = serves("/api/loras")
    return {
        "endpoint": f"{services.config.public_url}/api/features",
        "publicUrl": services.config.public_url,
        "model": services.model.ids[0],
        "examples": EXAMPLES if services.model.name == DEFAULT_MODEL and loras else (),
        "suggestions": _ICONS if services.model.name == DEFAULT_MODEL else _SCENES,
        **_opening(embedded=services.model.name == DEFAULT_MODEL, loras=loras),
        "defaults": {
            name: schema["default"] for name, schema in _PROMPT_OBJECT["properties"].items() if "default" in schema
        },
        "ratios": {name: list(size) for name, size in ASPECT_RATIOS.items()},
        "side": {"min": MIN_SIDE, "max": MAX_SIDE, "step": SIDE_STEP},
        "maxSeed": MAX_SEED,
        "loras": loras,
        "clients": [name for name, path in _CLIENTS.items() if serves(path)],
    }


def _opening(*, embedded: bool, loras: bool) -> dict[str, Any]:
    """What the form holds at first, and a link to the document's own example where that is something else."""
    documented = {name: value for name, value in _EXAMPLE.items() if loras or not name.startswith("lora_")}
    if not embedded:
        return {"example": documented, "documented": ""}
    # as the page's script writes links: switches in lower case
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in documented.items()}
    return {"example": _OPENING, "documented": f"/?{urlencode(texts)}"}


async def _library(request: Request, caller: Caller | None) -> list[dict[str, Any]]:
    """The LoRAs that the picker offers. `also` holds the example's own reference where it means this LoRA."""
    services = services_of(request)
    if caller is None or not site_of(request).serves("/api/loras"):
        return []
    example = await _find_example(services, caller)
    rank = language_of(request).texts.gettext("rank %(rank)s")
    found = await services.loras.list(caller.team_id)
    previewed = await services.loras.list_previewed(found)
    return [
        {
            "name": lora.name,
            "also": [_EXAMPLE["lora_weights"]] if lora.id == example else [],
            "words": list(lora.trigger_words),
            "summary": f"{', '.join(lora.trigger_words) or lora.made_for} · {rank % {'rank': lora.rank}}",
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

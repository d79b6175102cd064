"""The gallery: a team's pictures with a search, each with links that open the playground with its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from schnell.generations import Record
from schnell.generations.records import RecordSearch
from schnell.spec import ASPECT_RATIOS, CUSTOM_RATIO, Size, output_seed
from schnell.web.native.records import picture_urls, show_time
from schnell.web.pages.site import find_caller, page, respond, sign_in_first, site_of
from schnell.web.services import Services, services_of

router = APIRouter()
_PAGE: Final = 24


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as the gallery shows it.

    `recall` opens the playground with its settings; `variations` also draws four pictures with the seeds after its own.
    `proof` says what it carries, such as `marked and signed`.
    """

    record: str
    url: str
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    loras: str
    rating: int
    created: str
    proof: str
    file_name: str
    recall: str
    variations: str


@router.get("/gallery")
async def gallery(
    request: Request,
    q: Annotated[str, Query(max_length=200)] = "",
    lora: Annotated[str, Query(max_length=500)] = "",
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The page, newest pictures first. A request of htmx (`HX-Request`) gets only the tiles, from `cursor` on."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    search = RecordSearch(q, lora, "SUCCESS")
    found = await services.history.page(caller, _PAGE, cursor, search)
    shown = {
        "pictures": [each for record in found.records for each in describe_pictures(services, record)],
        "more": urlencode({"q": q, "lora": lora, "cursor": found.next_cursor}) if found.next_cursor else None,
        "first": cursor is None,
        "searched": bool(q or lora),
    }
    if request.headers.get("hx-request"):
        return respond(request, site_of(request).render("gallery_pictures.html", shown))
    loras = await services.history.used_loras(caller)
    return page(request, "gallery.html", caller, **shown, q=q, lora=lora, loras=loras)


def describe_pictures(services: Services, record: Record) -> list[Picture]:
    """The pictures of a record, each with the settings that draw it again by itself."""
    settings = record.settings
    seed = int(record.response_object["seed"])
    shown = []
    for image, url in zip(record.images, picture_urls(services, record), strict=True):
        own = output_seed(seed, image.output)
        shown.append(
            Picture(
                record=record.id,
                # without the host, so that pictures load when the page was reached by another name of the server
                url=url.removeprefix(services.config.public_url),
                prompt=settings["prompt"],
                seed=own,
                width=settings["width"],
                height=settings["height"],
                steps=settings["steps"],
                loras=", ".join(f"{each['reference']} × {each['scale']:g}" for each in settings["loras"]),
                rating=record.rating or 0,
                created=show_time(record.created_at) or "",
                proof=" and ".join(
                    name for name, carried in (("marked", image.mark), ("signed", image.manifest)) if carried
                ),
                file_name=image.key.rpartition("/")[2],
                recall=f"/?{_as_query(settings, own, 1)}",
                variations=f"/?{_as_query(settings, output_seed(own, 1), 4)}#run",
            )
        )
    return shown


def _as_query(settings: Mapping[str, Any], seed: int, num_outputs: int) -> str:
    values: dict[str, Any] = {"prompt": settings["prompt"]}
    values |= _size_fields(Size(settings["width"], settings["height"]))
    values |= {"num_inference_steps": settings["steps"], "seed": seed, "go_fast": str(settings["go_fast"]).lower()}
    values |= _lora_fields(settings["loras"])
    if num_outputs > 1:
        values["num_outputs"] = num_outputs
    values |= {"output_format": settings["output_format"], "output_quality": settings["output_quality"]}
    if not settings["safety_checker"]:
        values["disable_safety_checker"] = "true"
    return urlencode(values)


def _size_fields(size: Size) -> dict[str, Any]:
    for ratio, whole in ASPECT_RATIOS.items():
        for megapixels, divisor in (("1", 1), ("0.25", 2)):
            if size == (whole.width // divisor, whole.height // divisor):
                return {"aspect_ratio": ratio, "megapixels": megapixels}
    return {"aspect_ratio": CUSTOM_RATIO, "width": size.width, "height": size.height}


def _lora_fields(loras: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))
    fields: dict[str, Any] = {}
    for (reference, scale), used in zip(names, loras, strict=False):
        fields |= {reference: used["reference"], scale: used["scale"]}
    return fields

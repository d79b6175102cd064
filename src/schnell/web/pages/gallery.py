"""The gallery: a team's pictures with filters, each with a link that opens the playground with its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.accounts.teams import find_members
from schnell.generations import Record, StoredImage
from schnell.generations.collections import list_collections, list_picture_keys
from schnell.generations.searches import RecordSearch, has_drawn
from schnell.generations.shares import list_shared
from schnell.spec import ASPECT_RATIOS, CUSTOM_RATIO, Size, output_seed
from schnell.web.auth import Reader
from schnell.web.native.records import picture_urls, show_time
from schnell.web.pages.site import find_caller, fragment, page, sign_in_first
from schnell.web.services import Services, services_of

router = APIRouter()
_PAGE: Final = 24
_LONGEST_QUERY: Final = 200
#: A thumbnail stays the same as long as its picture is there.
_THUMBNAIL_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as the gallery shows it.

    `recall` opens the playground with its settings. `proof` says what it carries, such as `marked and signed`. `share`
    is the path of its public page, or empty. `deletable` says whether the visitor may delete its record.
    """

    record: str
    key: str
    url: str
    thumbnail: str
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
    author: str
    share: str
    deletable: bool


@dataclass(frozen=True, slots=True)
class Filters:
    """What the page is asked to show. The names are those of the address's query; empty ones do not filter."""

    q: str = ""
    lora: str = ""
    author: str = ""
    rating: str = ""
    since: str = ""
    until: str = ""
    collection: str = ""

    def search(self, caller: Caller) -> RecordSearch:
        """The records to list. What is no date or no number does not filter: people edit addresses."""
        return RecordSearch(
            prompt=self.q[:_LONGEST_QUERY],
            lora=self.lora,
            status="SUCCESS",
            user_id=caller.user_id if self.author == "me" else "",
            rating=int(self.rating) if self.rating in {"1", "2", "3", "4", "5"} else 0,
            since=_read_day(self.since),
            # the last day is shown whole
            until=_read_day(self.until, later=1),
            collection=self.collection,
            has_pictures=True,
        )

    @property
    def given(self) -> dict[str, str]:
        """Those that are not empty."""
        return {name: value for name, value in asdict(self).items() if value}


@router.get("/gallery")
async def gallery(
    request: Request, filters: Annotated[Filters, Depends()], cursor: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """The page, newest pictures first. A request of htmx (`HX-Request`) gets only the tiles, from `cursor` on."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    found = await services.history.page(caller, _PAGE, cursor, filters.search(caller))
    pictures = await describe_pictures(services, caller, found.records, filters.collection)
    shown = {
        "pictures": pictures,
        "more": urlencode(filters.given | {"cursor": found.next_cursor}) if found.next_cursor else None,
        "first": cursor is None,
        "searched": bool(filters.given),
        "emptied": not pictures and not filters.given and await _was_drawn(services, caller),
    }
    if request.headers.get("hx-request"):
        return fragment(request, "gallery_pictures.html", **shown)
    async with services.database.read() as connection:
        collections = await list_collections(connection, caller.team_id)
    return page(request, "gallery.html", caller, **shown, filters=filters, collections=collections)


@router.get("/gallery/loras")
async def used_loras(request: Request, lora: Annotated[str, Query(max_length=500)] = "") -> Response:
    """The options of the LoRA filter. Apart from the page: every record has to be looked at for them."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    names = await services_of(request).history.used_loras(caller)
    return fragment(request, "gallery_loras.html", loras=names, lora=lora)


@router.get("/thumbnails/{environment}/images/{name}")
async def thumbnail(request: Request, caller: Reader, environment: str, name: str) -> Response:
    """A picture of the team, small enough for a tile."""
    services = services_of(request)
    key = f"{environment}/images/{name}"
    await services.history.find_picture(caller, key)
    headers = {"Cache-Control": f"private, max-age={_THUMBNAIL_SECONDS}", "Content-Security-Policy": "sandbox"}
    return Response(await services.thumbnails.get(key), media_type="image/webp", headers=headers)


async def describe_pictures(
    services: Services, caller: Caller, records: Sequence[Record], collection: str = ""
) -> list[Picture]:
    """The pictures of records, each with the settings that draw it again by itself. Of a collection, only its own."""
    async with services.database.read() as connection:
        members = await find_members(connection, caller.team_id, [record.user_id for record in records])
        shared = await list_shared(connection, [image.key for record in records for image in record.images])
        kept = await list_picture_keys(connection, collection) if collection else None
    authors = {each.user_id: each.user_name for each in members}
    return [
        _describe(
            services,
            caller,
            record,
            image,
            url=url,
            author=authors.get(record.user_id, ""),
            share=shared.get(image.key, ""),
        )
        for record in records
        for image, url in zip(record.images, picture_urls(services, record), strict=True)
        if kept is None or image.key in kept
    ]


def _describe(  # noqa: PLR0913 - the parts of one picture
    services: Services, caller: Caller, record: Record, image: StoredImage, *, url: str, author: str, share: str
) -> Picture:
    settings = record.settings
    own = output_seed(int(record.response_object["seed"]), image.output)
    carried = (("marked", image.mark), ("signed", image.manifest))
    return Picture(
        record=record.id,
        key=image.key,
        # without the host, so that pictures load when the page was reached by another name of the server
        url=url.removeprefix(services.config.public_url),
        thumbnail=f"/thumbnails/{image.key}",
        prompt=settings["prompt"],
        seed=own,
        width=settings["width"],
        height=settings["height"],
        steps=settings["steps"],
        loras=", ".join(f"{each['reference']} × {each['scale']:g}" for each in settings["loras"]),
        rating=record.rating or 0,
        created=show_time(record.created_at) or "",
        proof=" and ".join(name for name, is_there in carried if is_there),
        file_name=image.key.rpartition("/")[2],
        recall=recall_link(record, image),
        author=author,
        share=f"/s/{share}" if share else "",
        deletable="admin" in caller.scopes or record.user_id == caller.user_id,
    )


def recall_link(record: Record, image: StoredImage) -> str:
    """The path of the playground with the settings that draw this picture by itself."""
    own = output_seed(int(record.response_object["seed"]), image.output)
    return f"/?{_as_query(record.settings, own)}"


async def _was_drawn(services: Services, caller: Caller) -> bool:
    async with services.database.read() as connection:
        return await has_drawn(connection, caller.team_id)


def _read_day(text: str, later: int = 0) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC) + timedelta(days=later)
    except (ValueError, OverflowError):
        return None


def _as_query(settings: Mapping[str, Any], seed: int) -> str:
    values: dict[str, Any] = {"prompt": settings["prompt"]}
    values |= _size_fields(Size(settings["width"], settings["height"]))
    values |= {"num_inference_steps": settings["steps"], "seed": seed, "go_fast": str(settings["go_fast"]).lower()}
    values |= _lora_fields(settings["loras"])
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

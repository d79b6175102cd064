"""What the dialects beside the native one share: models by name, native requests, and the pictures of records.

A dialect turns its body into a native `promptObject`, so that one parser checks every value, whatever the dialect.
"""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request

from schnell.accounts.identity import Caller
from schnell.assets.links import FILES_PATH
from schnell.errors import FieldError, FieldProblem, InvalidFieldError, UnsupportedModelError
from schnell.generations import GenerationRequest, Record, StoredImage
from schnell.spec import MIN_LORA_SCALE, TOKEN_SIDE, LoraRef, combine_loras
from schnell.web import submission
from schnell.web.native.lora_names import LORA_BASE, LORA_KEYS, ModelChoice, choose_model, lora_ids
from schnell.web.native.prompt_object import PromptRules, asks_for_less, bounded, parse_prompt_object
from schnell.web.services import Services, services_of

#: Native switches that no other API has a field for; their clients send them under the native names.
SWITCHES: Final = ("go_fast", "disable_safety_checker", "disable_watermark", "hide_prompt")
#: The same of all native fields.
EXTRA_FIELDS: Final = ("seed", "aspect_ratio", "megapixels", *LORA_KEYS, *SWITCHES)
#: Other APIs take negative LoRA scales, and sides off the reference document's grid.
GENEROUS: Final = PromptRules(MIN_LORA_SCALE, TOKEN_SIDE, rounding="nearest")
#: Gives the dialect's name of a native field.
Rename = Callable[[str], str]


def find_model(request: Request, name: str | None, field: str = "model") -> ModelChoice:
    """What a model id, found in `field`, means; the first that is served where no `name` is given.

    Raises:
        UnsupportedModelError: no such model is served.
        InvalidFieldError: the id names a LoRA at a scale that is out of range, or what can be no LoRA.
    """
    model = services_of(request).model
    if not name:
        return ModelChoice(model.ids[0])
    found = seek_model(request, name, field)
    if found is None:
        raise UnsupportedModelError(
            f"the model {name[:100]!r} is not served here; {', '.join(model.ids[:4])} are, each also with a LoRA after "
            f"a colon, such as {LORA_BASE}:NAME"
        )
    return found


def seek_model(request: Request, name: str, field: str = "model") -> ModelChoice | None:
    """What a model id, found in `field`, means; None where no such model is served.

    Raises:
        InvalidFieldError: the id names a LoRA at a scale that is out of range, or what can be no LoRA.
    """
    try:
        return choose_model(services_of(request).model, name, GENEROUS.lowest_scale)
    except InvalidFieldError as error:
        raise InvalidFieldError(*(FieldProblem(field, each.message) for each in error.problems)) from None


async def list_model_ids(request: Request, caller: Caller) -> list[str]:
    """Every model id that lists show: those of the served model, and one for each LoRA that the caller may name."""
    services = services_of(request)
    return [*services.model.ids, *services.model.aliases, *lora_ids(await services.loras.list(caller.team_id))]


def build_request(  # noqa: PLR0913 - what a dialect knows of one request
    request: Request,
    dialect: str,
    model: ModelChoice,
    prompt_object: Mapping[str, Any],
    *,
    rules: PromptRules = GENEROUS,
    rename: Rename = str,
    loras: Sequence[LoraRef] = (),
    warnings: Sequence[str] = (),
) -> GenerationRequest:
    """A generation from a native `promptObject`.

    `loras` are drawn besides those that it and the model's id name; `warnings` go before those about its values.

    Raises:
        FieldError: values are missing or wrong; the fields have the names that `rename` gives them.
    """
    try:
        named = (*model.loras_beside(prompt_object), *loras)
        parsed = parse_prompt_object(prompt_object, rules, combine_loras(named))
    except FieldError as error:
        raise type(error)(*(FieldProblem(rename(each.field), each.message) for each in error.problems)) from None
    # where it is named here, for the errors that are found when it is looked for
    placed = tuple(replace(lora, place=rename(lora.place)) for lora in parsed.spec.loras)
    return GenerationRequest(
        spec=replace(parsed.spec, loras=placed),
        model=model.id,
        dialect=dialect,
        prompt_object=parsed.echo,
        warnings=bounded((*model.warnings, *warnings, *parsed.warnings)),
        idempotency_key=submission.idempotency_key_in(request),
    )


def name_displaced(native: Mapping[str, Any], size: Mapping[str, Any], reason: str) -> list[str]:
    """A warning for every native field of the size that the API's own, which became `size`, leaves without effect."""
    if not size:
        return []
    ratio = native.get("aspect_ratio")
    displaced = ["aspect_ratio"] if ratio is not None and ratio != size.get("aspect_ratio") else []
    displaced += ["megapixels"] if asks_for_less(native) else []
    return [f"{name} was ignored: {reason}" for name in displaced]


def drawn_loras(record: Record) -> list[dict[str, Any]]:
    """The LoRAs that a finished record was drawn with, by the names that were asked for, with their scales."""
    used = record.response_object.get("loras", [])
    return [{"name": each["name"].partition("?")[0], "scale": each["scale"]} for each in used]


async def read_base64(services: Services, record: Record) -> list[str]:
    """The pictures of a finished record, in base64.

    Raises:
        NotFoundError: they are no longer stored.
    """
    return [base64.b64encode(await read_picture(services, image)).decode() for image in record.images]


async def read_picture(services: Services, image: StoredImage) -> bytes:
    """A picture's file: from memory where it was just drawn for an answer that holds it, else from the store."""
    return await services.store.get(image.key) if image.data is None else image.data


def picture_seeds(record: Record) -> list[int]:
    """The seed of each picture of a finished record. Pictures that the safety check withheld are not among them."""
    seeds = record.response_object.get("seeds", [])
    return [seeds[image.output] for image in record.images]


def server_links(services: Services, record: Record) -> list[str]:
    """A fresh link to this server, never to a bucket, for every picture of a finished record; none for others.

    Many clients send their `Authorization` header to whatever address they are given. S3 refuses a presigned address
    that is asked for with such a header; this server's links are checked by their own signature alone.
    """
    if record.status != "SUCCESS":
        return []
    expires = int(time.time()) + services.config.link_seconds
    paths = (FILES_PATH + quote(image.key) for image in record.images)
    return [services.config.public_url + services.links.sign(path, expires) for path in paths]

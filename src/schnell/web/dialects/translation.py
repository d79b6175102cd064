"""What the dialects beside the native one share: models by name, native requests, and the pictures of records.

A dialect turns its body into a native `promptObject`, so that one parser checks every value, whatever the dialect.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request

from schnell.assets.links import FILES_PATH
from schnell.errors import FieldError, FieldProblem, UnsupportedModelError
from schnell.generations import GenerationRequest, Record, StoredImage
from schnell.spec import MIN_LORA_SCALE
from schnell.web import submission
from schnell.web.fields import Fields
from schnell.web.native.features import parse_prompt_object
from schnell.web.native.records import KNOWN_KEYS
from schnell.web.services import Services, services_of

#: Native fields that other APIs have no field for; their clients send them under the native names.
EXTRA_FIELDS: Final = (
    "seed",
    "aspect_ratio",
    "megapixels",
    "lora_weights",
    "lora_scale",
    "extra_lora",
    "extra_lora_scale",
    "go_fast",
    "disable_safety_checker",
    "disable_watermark",
    "hide_prompt",
)
#: Gives the dialect's name of a native field.
Rename = Callable[[str], str]


def find_model(request: Request, name: str | None) -> str:
    """The model id to keep in the record; the first that is served where no `name` is given.

    Raises:
        UnsupportedModelError: no such model is served.
    """
    model = services_of(request).model
    if name is None:
        return model.ids[0]
    found = model.find(name)
    if found is None:
        raise UnsupportedModelError(f"the model {name[:100]!r} is not served here; {', '.join(model.ids[:4])} are")
    return found


def build_request(
    request: Request,
    dialect: str,
    model: str,
    prompt_object: Mapping[str, Any],
    *,
    rename: Rename = str,
) -> GenerationRequest:
    """A generation from a native `promptObject`.

    Raises:
        FieldError: values are missing or wrong; the fields have the names that `rename` gives them.
    """
    try:
        # other APIs take negative LoRA scales, the reference document's does not
        spec = parse_prompt_object(Fields(prompt_object), MIN_LORA_SCALE)
    except FieldError as error:
        raise type(error)(*(FieldProblem(rename(each.field), each.message) for each in error.problems)) from None
    return GenerationRequest(
        spec=spec,
        model=model,
        dialect=dialect,
        prompt_object={name: prompt_object[name] for name in KNOWN_KEYS if prompt_object.get(name) is not None},
        idempotency_key=submission.idempotency_key_in(request),
    )


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

"""What the dialects beside the native one share: their values become a native `promptObject`, and its checks hold."""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any
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

Rename = Callable[[str], str]


def find_model(request: Request, name: str | None) -> str:
    """The model as records keep it; without a name, the one that is served.

    Raises:
        UnsupportedModelError: it is not served.
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
        FieldError: a value is missing or wrong; the field has the name that `rename` gives it.
    """
    try:
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
    """The pictures of a finished record, in base64."""
    return [base64.b64encode(await read_picture(services, image)).decode() for image in record.images]


async def read_picture(services: Services, image: StoredImage) -> bytes:
    """A picture's file: from memory where it was just drawn for an answer that holds it, else from the store."""
    return await services.store.get(image.key) if image.data is None else image.data


def shown_seeds(record: Record) -> list[int]:
    """The seed of each picture that a finished record kept."""
    seeds = record.response_object.get("seeds", [])
    return [seeds[image.output] for image in record.images]


def picture_links(services: Services, record: Record) -> list[str]:
    """A fresh link of this server for every picture of a finished record.

    Many clients send their `Authorization` to whatever address they are given. A presigned address of an S3 server
    refuses a request that bears two proofs; these links look at their own signature alone.
    """
    if record.status != "SUCCESS":
        return []
    expires = int(time.time()) + services.config.link_seconds
    paths = (FILES_PATH + quote(image.key) for image in record.images)
    return [services.config.public_url + services.links.sign(path, expires) for path in paths]

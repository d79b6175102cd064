"""What a request for a prediction says: its input, how long it waits and may live, and its webhook."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.generations import Record
from schnell.spec import ASPECT_RATIOS, CUSTOM_RATIO
from schnell.web.dialects.model_list import REPLICATE_RATIOS
from schnell.web.dialects.translation import GENEROUS
from schnell.web.fields import Fields
from schnell.web.native.prompt_object import KNOWN_KEYS, name_unknown_fields, name_unused_sizes
from schnell.web.services import Services
from schnell.web.webhooks import EVENTS, Webhook, read_webhook

_PREFER: Final = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*([0-9]{1,6}))?(?=$|[,;\s])")
_MAX_WAIT: Final = 60
_LIFETIME: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s?)?")
_MIN_LIFETIME: Final = 5
#: What the SDKs send in a body; a prediction is streamed by none of them unless its answer says that it can be.
_BODY_FIELDS: Final = ("version", "input", "webhook", "webhook_completed", "webhook_events_filter", "stream")
#: As other dialects', with the aspect ratios of Replicate's model.
RULES: Final = replace(GENEROUS, ratios=(*ASPECT_RATIOS, *REPLICATE_RATIOS, CUSTOM_RATIO))


def read_wait(prefer: str) -> int:
    """The seconds to wait that a `Prefer` header asks for with `wait` or `wait=n`: at most 60, and 0 without it."""
    match = _PREFER.search(prefer)
    if match is None:
        return 0
    return min(int(match[1]), _MAX_WAIT) if match[1] else _MAX_WAIT


def read_lifetime(cancel_after: str) -> int | None:
    """The seconds that a `Cancel-After` header says, such as `30s` or `1h30m`; None for an empty one.

    Raises:
        InvalidFieldError: it is not such a time, or less than 5 seconds.
    """
    text = cancel_after.strip()
    if not text:
        return None
    match = _LIFETIME.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    lifetime = hours * 3600 + minutes * 60 + seconds
    if lifetime < _MIN_LIFETIME:
        raise InvalidFieldError(FieldProblem("Cancel-After", f"must be {_MIN_LIFETIME}s or more, such as 30s or 1h30m"))
    return lifetime


def read_prediction_webhook(services: Services, fields: Fields) -> Webhook | None:
    """The webhook that a prediction asks for, if any. What is wrong with it is noted in `fields`.

    `webhook_completed`, which older clients send, is a webhook that is told of the end alone.
    """
    name = "webhook" if fields.raw("webhook") else "webhook_completed"
    found = read_webhook(services, fields, url=name, events="webhook_events_filter", default=EVENTS)
    return found if name == "webhook" or found is None else replace(found, events=frozenset({"completed"}))


def name_unused(fields: Fields, values: Mapping[str, Any]) -> list[str]:
    """A warning for each field beside `input` that is none, and for what `input`, as it was sent, says in vain."""
    unknown = name_unknown_fields(fields.names, _BODY_FIELDS, inner="input", inside=KNOWN_KEYS)
    return [*unknown, *name_unused_sizes(values)]


def as_native(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The native fields of an `input`: an aspect ratio that the native API lacks becomes a width and a height."""
    ratio = values.get("aspect_ratio")
    size = REPLICATE_RATIOS.get(ratio) if isinstance(ratio, str) else None
    if size is None:
        return values
    parts = _side_divisor(values)
    return {**values, "aspect_ratio": "custom", "width": size.width // parts, "height": size.height // parts}


def _side_divisor(values: Mapping[str, Any]) -> int:
    return 2 if str(values.get("megapixels")) == "0.25" else 1


def as_sent(record: Record) -> dict[str, Any]:
    """A prediction's input as it was sent: the reverse of `as_native`."""
    values = dict(record.prompt_object)
    if record.dialect != "replicate" or values.get("aspect_ratio") != "custom":
        return values
    parts = _side_divisor(values)
    sides = tuple(side * parts for name in ("width", "height") if (side := values.get(name)) is not None)
    name = next((ratio for ratio, size in REPLICATE_RATIOS.items() if size == sides), None)
    if name is None:
        return values
    return {key: value for key, value in values.items() if key not in {"width", "height"}} | {"aspect_ratio": name}


def name_in_input(named_in: str, field: str) -> str:
    """Where a native field stands in the body of a prediction, whose model is named by its field `named_in`."""
    return named_in if field == "model" else f"input.{field}"

"""What a request for a prediction says: its input, how long it waits and may live, and its webhook."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.generations import Record
from schnell.web.dialects.model_list import REPLICATE_RATIOS
from schnell.web.fields import Fields
from schnell.web.services import Services

_PREFER: Final = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*([0-9]{1,6}))?(?=$|[,;\s])")
_MAX_WAIT: Final = 60
_LIFETIME: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s?)?")
_MIN_LIFETIME: Final = 5
_EVENTS: Final = ("start", "output", "logs", "completed")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to send a prediction, and after which of Replicate's four events."""

    url: str
    events: frozenset[str]


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


def read_webhook(services: Services, fields: Fields) -> Webhook | None:
    """The webhook that a prediction asks for, if any. What is wrong with it is noted in `fields`.

    `webhook_completed`, which older clients send, is a webhook that is told of the end alone.
    """
    events = fields.raw("webhook_events_filter")
    if events is None:
        events = list(_EVENTS)
    if not isinstance(events, list) or not all(isinstance(each, str) and each in _EVENTS for each in events):
        fields.refuse("webhook_events_filter", f"must be a list out of {', '.join(_EVENTS)}")
        return None
    for name, told in (("webhook", events), ("webhook_completed", ["completed"])):
        if url := fields.text(name):
            if problem := services.webhooks.refusal_of(url):
                fields.refuse(name, problem)
            return Webhook(url, frozenset(told))
    return None


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

"""One line in the log for each generation that ended: who asked, with what, how long each stage took, what it cost.

Prompts are not in it: what people draw is for them and their records, and logs go further than either.
"""

import logging
from typing import Any, Final
from urllib.parse import urlsplit

from schnell.accounts.identity import Caller
from schnell.errors import SchnellError
from schnell.generations.records import Record

_log = logging.getLogger(__name__)
#: Failures of ours, which an operator should look at; others are answers to what was asked for.
_SERVER_ERROR: Final = 500


def log_end(record: Record, error: SchnellError | None, caller: Caller) -> None:
    """Write the line. A failure that is not the caller's is a warning."""
    level = logging.WARNING if error is not None and error.status >= _SERVER_ERROR else logging.INFO
    _log.log(level, "generation", extra=describe_end(record, error, caller))


def describe_end(record: Record, error: SchnellError | None, caller: Caller) -> dict[str, Any]:
    """The fields of the line; `seconds` has those of each stage."""
    settings = record.settings
    return {
        "record": record.id,
        "outcome": error.code if error else record.status,
        "team": caller.team_name,
        "user": caller.user_name,
        "key": caller.key_prefix,
        "dialect": record.dialect,
        "model": record.model,
        "loras": [_shown(lora["reference"]) for lora in settings.get("loras", ())],
        "size": f"{settings['width']}x{settings['height']}",
        "steps": settings["steps"],
        "pictures": len(record.images),
        "cost": record.cost,
        "seconds": _seconds(record),
    }


def _seconds(record: Record) -> dict[str, float]:
    found: dict[str, float] = {}
    if record.started_at:
        found["wait"] = (record.started_at - record.created_at).total_seconds()
    found |= record.response_object.get("timings", {})
    if record.finished_at:
        found["all"] = (record.finished_at - record.created_at).total_seconds()
    return {stage: round(seconds, 3) for stage, seconds in found.items()}


def _shown(reference: str) -> str:
    """A LoRA as the log names it: of an address the host alone, since some sites put a secret into the path, too."""
    if "://" not in reference:
        return reference
    address = urlsplit(reference)
    return f"{address.scheme}://{address.hostname}/…"

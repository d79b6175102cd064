"""The headers with which Replicate's clients say how long to wait for a prediction, and how long it may live."""

import re
from typing import Final

from fastapi import Request

from schnell.errors import (FieldProblem, InvalidFieldError)

_PREFER: Final = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*([0-9]{1,6}))?(?=$|[,;\s])")
_LONGEST_WAIT: Final = 60
_CANCEL_AFTER: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s?)?")
_SHORTEST_LIFE: Final = 5


def read_wait(request: Request) -> int:
    """The seconds of `Prefer: wait[=n]`; 0 without it."""
    match = _PREFER.search(request.headers.get("prefer", ""))
    if match is None:
        return 0
    return min(int(match[1]), _LONGEST_WAIT) if match[1] else _LONGEST_WAIT


def read_life(request: Request) -> int | None:
    """The seconds of `Cancel-After`, as `30s` or `1h30m`; None without it.

    Raises:
        InvalidFieldError: it is no time, or too short.
    """
    text = request.headers.get("cancel-after", "").strip()
    if not text:
        return None
    match = _CANCEL_AFTER.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    life = hours * 3600 + minutes * 60 + seconds
    if life < _SHORTEST_LIFE:
        raise InvalidFieldError(
            FieldProblem("Cancel-After", f"must be {_SHORTEST_LIFE}s or more, such as 30s or 1h30m")
        )
    return life

"""How often a key may ask. Counted in this process's memory: each server counts for itself."""

import time
from dataclasses import dataclass
from math import ceil

from limits import RateLimitItem, parse
from limits import parse as parse_limit
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from schnell.accounts.identity import Caller
from schnell.errors import FieldProblem, InvalidFieldError, RateLimitedError


def check_rate_limit(text: str | None) -> str | None:
    """`text` when it reads as a rate limit such as `60/minute`.

    Raises:
        InvalidFieldError: it does not.
    """
    if not text:
        return None
    try:
        parse_limit(text)
    except ValueError as cause:
        problem = FieldProblem("rateLimit", f"must look like 60/minute or 1000/day, got {text!r}")
        raise InvalidFieldError(problem) from cause
    return text


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What is left of a key's rate: how many of `limit` requests, and the seconds until the oldest counts no more."""

    limit: int
    remaining: int
    reset_after: int


class RateLimits:
    """Counts requests by key. A key's own limit goes before the server's `default` (None: no limit)."""

    def __init__(self, default: str | None = None) -> None:
        self._default = default
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._items: dict[str, RateLimitItem] = {}

    def count(self, caller: Caller) -> RateStatus | None:
        """Count one request, and say what is left (None: no limit).

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        text = caller.rate_limit or self._default
        if not text:
            return None
        item = self._items.setdefault(text, parse(text))
        granted = self._limiter.hit(item, caller.key_id)
        stats = self._limiter.get_window_stats(item, caller.key_id)
        status = RateStatus(item.amount, stats.remaining, max(1, ceil(stats.reset_time - time.time())))
        if granted:
            return status
        message = f"this key may ask {text.replace('/', ' times a ')}; try again in {status.reset_after} s"
        raise RateLimitedError(message, item.amount, status.reset_after)

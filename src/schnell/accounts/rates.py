"""How many requests an API key may make in a time. Each server counts in its own memory, for itself alone."""

import time
from dataclasses import dataclass
from math import ceil

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from schnell.accounts.identity import Caller
from schnell.errors import FieldProblem, InvalidFieldError, RateLimitedError


def check_rate_limit(text: str | None) -> str | None:
    """`text` if it reads as a rate limit, such as `60/minute`; None for no limit (None or empty).

    Raises:
        InvalidFieldError: it cannot be read.
    """
    if not text:
        return None
    try:
        parse(text)
    except ValueError as cause:
        problem = FieldProblem("rateLimit", f"must look like 60/minute or 1000/day, got {text!r}")
        raise InvalidFieldError(problem) from cause
    return text


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What is left of a key's rate: `remaining` of `limit` requests. `reset_after`: seconds until one more is free."""

    limit: int
    remaining: int
    reset_after: int


class RateLimits:
    """Counts requests by key. A key's own limit goes before the server's `default` (None: no limit).

    The window moves with the time: `60/minute` is 60 in any 60 seconds, not 60 in each minute of the clock.
    """

    def __init__(self, default: str | None = None) -> None:
        self._default = default
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._parsed: dict[str, RateLimitItem] = {}

    def count(self, caller: Caller) -> RateStatus | None:
        """Count one request of a caller, and say what is left (None: no limit).

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        named = "this key" if caller.key_id else "you"
        return self._hit(caller.rate_limit or self._default, caller.counted_as, named)

    def count_address(self, address: str, limit: str | None) -> RateStatus | None:
        """Count one request that came without a key from a network address, and say what is left (None: no limit).

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        return self._hit(limit, f"address {address}", "your address")

    def _hit(self, text: str | None, who: str, named: str) -> RateStatus | None:
        if not text:
            return None
        item = self._parsed.get(text)
        if item is None:
            item = self._parsed[text] = parse(text)
        granted = self._limiter.hit(item, who)
        stats = self._limiter.get_window_stats(item, who)
        # rounded up, and never 0: a client that waits as long as it is told finds a place free
        status = RateStatus(item.amount, stats.remaining, max(1, ceil(stats.reset_time - time.time())))
        if granted:
            return status
        message = f"{named} may ask {text.replace('/', ' times a ')}; try again in {status.reset_after} s"
        raise RateLimitedError(message, item.amount, status.reset_after)

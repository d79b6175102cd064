"""How many requests an API key may make in a time. Each server counts in its own memory, for itself alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from schnell.accounts.identity import Caller
from schnell.errors import FieldProblem, InvalidFieldError, RateLimitedError, SchnellError

#: Guesses at one name's password, from all addresses together. Its owner can still use a key or another way in.
_TRIES_A_NAME: Final = "60/hour"


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
        self._under_way: dict[str, int] = {}

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

    def count_sign_in(self, name: str) -> None:
        """Count one try to sign in with a name's password, whether somebody has this name or not.

        Raises:
            RateLimitedError: there were too many; it says when to come back.
        """
        self._hit(_TRIES_A_NAME, f"name {name}", "this name")

    @contextmanager
    def sign_in(self, address: str, limit: str | None) -> Iterator[None]:
        """One try of an address to sign in, which counts if it fails. Those under way count as if they failed.

        So no more tries than the limit are ever looked at, however many come at once.

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        if not limit:
            yield
            return
        item, who = self._parse(limit), f"sign-in {address}"
        under_way = self._under_way.get(who, 0) + 1
        if under_way > item.amount or not self._limiter.test(item, who, cost=under_way):
            raise self._refusal(limit, who, "your address")
        self._under_way[who] = under_way
        try:
            yield
        except BaseException as cause:
            # what failed for the server's own reasons tells nothing of who asked. A try that was broken off does
            if not isinstance(cause, SchnellError) or (cause.status < 500 and cause.status != 429):
                self._limiter.hit(item, who)
            raise
        finally:
            self._under_way[who] -= 1
            if not self._under_way[who]:
                del self._under_way[who]

    def _parse(self, text: str) -> RateLimitItem:
        if text not in self._parsed:
            self._parsed[text] = parse(text)
        return self._parsed[text]

    def _hit(self, text: str | None, who: str, named: str) -> RateStatus | None:
        if not text:
            return None
        item = self._parse(text)
        granted = self._limiter.hit(item, who)
        stats = self._limiter.get_window_stats(item, who)
        status = RateStatus(item.amount, stats.remaining, _seconds_to(stats.reset_time))
        if granted:
            return status
        raise self._refusal(text, who, named)

    def _refusal(self, text: str, who: str, named: str) -> RateLimitedError:
        item = self._parse(text)
        wait = _seconds_to(self._limiter.get_window_stats(item, who).reset_time)
        message = f"{named} may ask {text.replace('/', ' times a ')}; try again in {wait} s"
        return RateLimitedError(message, item.amount, wait)


def _seconds_to(moment: float) -> int:
    # rounded up, and never 0: a client that waits as long as it is told finds a place free
    return max(1, ceil(moment - time.time()))

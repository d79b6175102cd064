"""How many requests an API key may make in a time.

A server alone counts in its memory; servers that share PostgreSQL count together, there (`shared_rates.py`).
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

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


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of one hit: whether it was `granted`, how many more would be, and the seconds until one more is free.

    `part` is what a counter needs to take the hit back.
    """

    granted: bool
    remaining: int
    reset_after: float
    part: int = 0


class HitCounter(Protocol):
    """Counts hits within windows that move with the time: no more than a rate's amount in any of its periods."""

    async def hit(self, rate: RateLimitItem, who: str) -> Counted:
        """Count a hit, if there is room for it."""
        ...

    async def begin_try(self, rate: RateLimitItem, who: str) -> Counted:
        """Count a hit that may be taken back: until `end_try` nobody knows whether it stays."""
        ...

    async def end_try(self, rate: RateLimitItem, who: str, begun: Counted, *, stays: bool) -> None:
        """A granted hit of `begin_try` stays, or is taken back."""
        ...

    async def forget_old(self) -> None:
        """Let go of what lies in no window any more."""
        ...


class MemoryCounter:
    """Counts in this process's memory, for this process alone."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._under_way: dict[str, int] = {}

    async def hit(self, rate: RateLimitItem, who: str) -> Counted:
        """As `HitCounter.hit`."""
        return self._look(rate, who, granted=self._limiter.hit(rate, who))

    async def begin_try(self, rate: RateLimitItem, who: str) -> Counted:
        """As `HitCounter.begin_try`: those under way are kept beside the window."""
        under_way = self._under_way.get(who, 0) + 1
        granted = under_way <= rate.amount and self._limiter.test(rate, who, cost=under_way)
        if granted:
            self._under_way[who] = under_way
        return self._look(rate, who, granted=granted)

    async def end_try(self, rate: RateLimitItem, who: str, begun: Counted, *, stays: bool) -> None:  # noqa: ARG002
        """As `HitCounter.end_try`."""
        if stays:
            self._limiter.hit(rate, who)
        self._under_way[who] -= 1
        if not self._under_way[who]:
            del self._under_way[who]

    async def forget_old(self) -> None:
        """The storage does it by itself."""

    def _look(self, rate: RateLimitItem, who: str, *, granted: bool) -> Counted:
        stats = self._limiter.get_window_stats(rate, who)
        return Counted(granted, stats.remaining, stats.reset_time - time.time())


class RateLimits:
    """Counts requests by key. A key's own limit goes before the server's `default` (None: no limit).

    The window moves with the time: `60/minute` is 60 in any 60 seconds, not 60 in each minute of the clock.
    """

    def __init__(self, default: str | None = None, counter: HitCounter | None = None) -> None:
        self._default = default
        self._counter: HitCounter = counter or MemoryCounter()
        self._parsed: dict[str, RateLimitItem] = {}

    async def count(self, caller: Caller) -> RateStatus | None:
        """Count one request of a caller, and say what is left (None: no limit).

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        named = "this key" if caller.key_id else "you"
        return await self._hit(caller.rate_limit or self._default, caller.counted_as, named)

    async def count_address(self, address: str, limit: str | None) -> RateStatus | None:
        """Count one request that came without a key from a network address, and say what is left (None: no limit).

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        return await self._hit(limit, f"address {address}", "your address")

    async def count_sign_in(self, name: str) -> None:
        """Count one try to sign in with a name's password, whether somebody has this name or not.

        Raises:
            RateLimitedError: there were too many; it says when to come back.
        """
        await self._hit(_TRIES_A_NAME, f"name {name}", "this name")

    @asynccontextmanager
    async def sign_in(self, address: str, limit: str | None) -> AsyncIterator[None]:
        """One try of an address to sign in, which counts if it fails. Those under way count as if they failed.

        So no more tries than the limit are ever looked at, however many come at once.

        Raises:
            RateLimitedError: nothing is left; it says when to come back.
        """
        if not limit:
            yield
            return
        rate, who = self._parse(limit), f"sign-in {address}"
        begun = await self._counter.begin_try(rate, who)
        if not begun.granted:
            raise _refusal(limit, rate, begun, "your address")
        stays = False
        try:
            yield
        except BaseException as cause:
            # what failed for the server's own reasons tells nothing of who asked. A try that was broken off does
            stays = not isinstance(cause, SchnellError) or (cause.status < 500 and cause.status != 429)
            raise
        finally:
            await self._counter.end_try(rate, who, begun, stays=stays)

    async def forget_old(self) -> None:
        """Let go of counts that matter no more."""
        await self._counter.forget_old()

    def _parse(self, text: str) -> RateLimitItem:
        if text not in self._parsed:
            self._parsed[text] = parse(text)
        return self._parsed[text]

    async def _hit(self, text: str | None, who: str, named: str) -> RateStatus | None:
        if not text:
            return None
        rate = self._parse(text)
        counted = await self._counter.hit(rate, who)
        if not counted.granted:
            raise _refusal(text, rate, counted, named)
        return RateStatus(rate.amount, counted.remaining, _whole_seconds(counted.reset_after))


def _refusal(text: str, rate: RateLimitItem, counted: Counted, named: str) -> RateLimitedError:
    wait = _whole_seconds(counted.reset_after)
    return RateLimitedError(
        f"{named} may ask {text.replace('/', ' times a ')}; try again in {wait} s", rate.amount, wait
    )


def _whole_seconds(seconds: float) -> int:
    # rounded up, and never 0: a client that waits as long as it is told finds a place free
    return max(1, ceil(seconds))

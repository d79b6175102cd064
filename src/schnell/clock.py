"""The time of day that records show, a stopwatch for the stages of the work, and waits for another try or for quiet."""

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import TypeVar


def now() -> datetime:
    """The present time in UTC, cut to the millisecond."""
    # the answers and the cursors of pages hold milliseconds: a moment that is stored with more would not equal them
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class Stopwatch:
    """Adds up the seconds that each stage took, in any thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._adding = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._adding:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage, also when it raises."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - start)


async def wait_for_quiet(is_busy: Callable[[], bool], patience: float, looks: int, longest: float = math.inf) -> None:
    """Look every `patience` seconds, until so many looks in a row find nothing under way, or for `longest` seconds.

    One look says little: between the requests of somebody who sends the next at once, there is nothing either.
    """
    quiet, ends = 0, time.monotonic() + longest
    while quiet < looks and time.monotonic() < ends:
        await asyncio.sleep(patience)
        quiet = 0 if is_busy() else quiet + 1


_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential waits in seconds, each between half and the whole of its step.

    The jitter keeps many writers that failed at the same moment from coming back at the same moment.
    """

    first: float = 0.1
    longest: float = 5.0

    def delays(self) -> Iterator[float]:
        """One wait after another, for ever."""
        step = self.first
        while True:
            yield step * random.uniform(0.5, 1.0)  # noqa: S311 - chance here is not security
            step = min(2 * step, self.longest)


async def retry(
    action: Callable[[], Awaitable[_Result]], on_failure: Callable[[Exception], None], backoff: Backoff
) -> _Result:
    """What `action` gives at last. `on_failure` gets every exception before the next try, and may raise to give up.

    An action that failed may still have taken effect, so it must do no harm when it is done twice.
    """
    for delay in backoff.delays():
        try:
            return await action()
        except Exception as error:  # noqa: BLE001 - the caller decides which ones end the loop
            on_failure(error)
        await asyncio.sleep(delay)
    raise AssertionError("delays never end")

"""How long to wait before trying again, and a loop that tries until it succeeds."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

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

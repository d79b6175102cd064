"""The time of day for records, and a stopwatch for the stages of a generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter


def now() -> datetime:
    """The present in UTC, cut to whole milliseconds: the precision that records show and clients compare."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class Stopwatch:
    """Adds up seconds by stage, in `seconds`. Not safe for use by several threads at once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage, also when it raises."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - start)

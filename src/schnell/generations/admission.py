"""How much may be under way at once: overall, and for one team."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from schnell.errors import ServerBusyError, TeamBusyError
from schnell.generations.running import Running
from schnell.spec import QueueEstimate


class Place:
    """A place among the generations under way, given back at the end of its block unless kept."""

    def __init__(self) -> None:
        self.kept = False

    def keep(self) -> None:
        """The generation starts: its place stays taken until `Admission.forget`."""
        self.kept = True


class Admission:
    """The generations of this process, by record; refuses those that would be too many."""

    def __init__(self, limit: int = 512, team_limit: int = 256) -> None:
        self._limit = limit
        self._team_limit = team_limit
        self._running: dict[str, Running] = {}
        self.closed = False
        self._closed_at = 0.0

    @contextmanager
    def admit(self, running: Running, estimate: QueueEstimate) -> Iterator[Place]:
        """Take a place for `running` while it is accepted, or refuse.

        The place is taken before anything is reserved: 512 requests at once must not all see the last free one.

        Raises:
            TeamBusyError: the team has as many generations under way as it may have.
            ServerBusyError: the server has, or it is stopping.
        """
        self._refuse(running.record.team_id, max(1.0, estimate.expected_seconds))
        place = Place()
        self._running[running.record.id] = running
        try:
            yield place
        finally:
            if not place.kept:
                self.forget(running)

    def forget(self, running: Running) -> None:
        """Give a place back."""
        self._running.pop(running.record.id, None)

    def find(self, record_id: str) -> Running | None:
        """The generation of this record, while it is under way here."""
        return self._running.get(record_id)

    def all(self) -> list[Running]:
        """Everything under way."""
        return list(self._running.values())

    def close(self) -> None:
        """Refuse everything from now on: the server is stopping."""
        if not self.closed:
            self.closed = True
            self._closed_at = time.monotonic()

    def seconds_left(self, seconds: float) -> float:
        """What is left of `seconds` since `close`: HTTP requests that are waited for first have used some of them."""
        return max(0.0, seconds - (time.monotonic() - self._closed_at))

    def _refuse(self, team_id: str, wait: float) -> None:
        if self.closed:
            raise ServerBusyError("the server is stopping; ask again in a moment", wait)
        if len(self._running) >= self._limit:
            raise ServerBusyError(f"{self._limit} generations are waiting already; ask again later", wait)
        ours = sum(running.record.team_id == team_id for running in self._running.values())
        if ours >= self._team_limit:
            raise TeamBusyError(f"your team has {ours} generations waiting already; ask again later", wait)

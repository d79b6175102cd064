"""Generations whose answer never reached the caller, for the request that is sent again because of it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from schnell.accounts.identity import Caller
from schnell.generations.request import GenerationRequest

_SECONDS: Final = 60.0
_MOST: Final = 1024


@dataclass(frozen=True, slots=True)
class _Unanswered:
    whose: tuple[str, ...]
    record_id: str
    until: float


class Unanswered:
    """The last records that were drawn, perhaps charged, and not answered: each answers one repeated request.

    Clients send a request again when its answer was an error or was lost, most without an `Idempotency-Key`. The same
    key, user, dialect and body within a minute is taken for that: it gets the record that is there and is not charged
    a second time. The memory of this server is enough, since a retry that goes elsewhere is only an ordinary request;
    of more than 1024 records the oldest are forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: deque[_Unanswered] = deque(maxlen=_MOST)

    def note(self, caller: Caller, request: GenerationRequest, record_id: str) -> None:
        """Keep a record for the retry of its request."""
        self._records.append(_Unanswered(_whose(caller, request), record_id, self._clock() + _SECONDS))

    def take(self, caller: Caller, request: GenerationRequest) -> str | None:
        """The oldest record that the same request has left; nobody else gets it."""
        if not self._records:
            return None  # the usual case, which shall not hash the body
        moment = self._clock()
        while self._records and self._records[0].until < moment:
            self._records.popleft()
        whose = _whose(caller, request)
        found = next((each for each in self._records if each.whose == whose), None)
        if found is None:
            return None
        self._records.remove(found)
        return found.record_id

    def __len__(self) -> int:
        return len(self._records)


def _whose(caller: Caller, request: GenerationRequest) -> tuple[str, ...]:
    return caller.team_id, caller.user_id, caller.key_id or "", request.body_sha256

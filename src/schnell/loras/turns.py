"""Turns at work that takes long: so many at once in all, so many for one team; no team waits for another's queue."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schnell.errors import TeamBusyError


class Turns:
    """At most `at_once` blocks run at a time, `per_team` of one team; `waiting` more of a team may wait for theirs.

    `what` names the work in the refusal, such as "conversions". Teams take turns: one that asks for many waits behind
    its own, and not before the others.
    """

    def __init__(self, what: str, *, at_once: int, per_team: int, waiting: int = 32) -> None:
        self._what = what
        self._at_once = at_once
        self._per_team = per_team
        self._most_waiting = waiting
        self._running: Counter[str] = Counter()
        # by team, in the order in which the teams are next; a team without anyone who waits is not in it
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, team: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs.

        Raises:
            TeamBusyError: the team has as much of this work waiting as it may have.
        """
        await self._wait(team)
        try:
            yield
        finally:
            self._leave(team)

    async def _wait(self, team: str) -> None:
        if not self._waiting and self._may_run(team):
            self._running[team] += 1
            return
        queue = self._waiting.setdefault(team, deque())
        if len(queue) >= self._most_waiting:
            raise TeamBusyError(f"your team has {len(queue)} {self._what} waiting already; ask again later", 5.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._call_next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(team)  # it had been called in the same moment
            else:
                self._forget(team, turn)
            raise

    def _may_run(self, team: str) -> bool:
        return self._running.total() < self._at_once and self._running[team] < self._per_team

    def _leave(self, team: str) -> None:
        self._running[team] -= 1
        self._running += Counter()  # drops the zeros
        self._call_next()

    def _call_next(self) -> None:
        # a team may be the empty text: that of the public LoRAs
        while (team := next((each for each in self._waiting if self._may_run(each)), None)) is not None:
            queue = self._waiting.pop(team)
            turn = queue.popleft()
            if queue:
                self._waiting[team] = queue  # at the end: every other team is next
            if not turn.done():
                self._running[team] += 1
                turn.set_result(None)

    def _forget(self, team: str, turn: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(team)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[team]

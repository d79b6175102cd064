"""How many rows a batch should have, learnt from how long steps take."""

from collections import defaultdict
from typing import Generic

from schnell.serving.scheduler import LaneT

_WORTHWHILE = 0.97
_SMOOTHING = 0.3


class BatchSizer(Generic[LaneT]):
    """Doubles a lane's batch while the time per row still falls, and halves it where memory or patience ends.

    `largest` bounds every batch. A step may take `longest_step` seconds: newcomers wait that long to join.
    """

    def __init__(self, largest: int = 16, longest_step: float = 2.0, first: int = 4) -> None:
        self._largest = largest
        self._longest_step = longest_step
        self._limits: defaultdict[LaneT, int] = defaultdict(lambda: min(first, largest))
        self._ceilings: defaultdict[LaneT, int] = defaultdict(lambda: largest)
        self._row_seconds: dict[tuple[LaneT, int], float] = {}

    def limit(self, lane: LaneT) -> int:
        """The most rows for the next batch of this lane."""
        return self._limits[lane]

    def seconds_per_row(self) -> dict[LaneT, float]:
        """What one row's step costs in each lane, in the largest batch that was seen."""
        return {lane: seconds for (lane, _), seconds in sorted(self._row_seconds.items(), key=lambda seen: seen[0][1])}

    def observe(self, lane: LaneT, rows: int, seconds: float) -> None:
        """Learn from a step that succeeded."""
        per_row = seconds / rows
        known = self._row_seconds.get((lane, rows))
        self._row_seconds[lane, rows] = per_row if known is None else known + _SMOOTHING * (per_row - known)
        if rows == self._limits[lane]:
            self._limits[lane] = self._better_limit(lane, rows)

    def ran_out_of_memory(self, lane: LaneT, rows: int) -> None:
        """Learn from a step that did not fit: this lane never tries so many rows again."""
        self._ceilings[lane] = max(1, rows // 2)
        self._limits[lane] = min(self._limits[lane], self._ceilings[lane])

    def _better_limit(self, lane: LaneT, rows: int) -> int:
        half = self._row_seconds.get((lane, rows // 2))
        here = self._row_seconds[lane, rows]
        if rows > 1 and (here * rows > self._longest_step or (half is not None and here > half * _WORTHWHILE)):
            return rows // 2
        double = self._row_seconds.get((lane, rows * 2))
        if rows * 2 > self._ceilings[lane] or here * rows * 2 > self._longest_step:
            return rows
        return rows * 2 if double is None or double < here * _WORTHWHILE else rows

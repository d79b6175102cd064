"""How many rows a batch should have, learnt from how long steps take."""

from collections import defaultdict, deque
from statistics import median_low
from typing import Final, Generic

from schnell.serving.jobs import LaneT

_WORTHWHILE: Final = 0.97
#: A size is judged by the median of its last steps, and not before there are two: the first one pays for what the
#: libraries prepare for new shapes.
_REMEMBERED: Final = 5
#: After so many steps at its size a lane tries the larger batch again that once seemed too slow.
_PATIENCE: Final = 200


class BatchSizer(Generic[LaneT]):
    """Doubles a lane's batch while the time per row still falls, and halves it where memory or patience ends.

    `largest` bounds every batch, `first` is the size to begin with: a GPU is filled by one large picture, and a larger
    batch there only makes everyone wait, unless it draws more pictures a second. A step may take `longest_step`
    seconds: newcomers wait that long to join.
    """

    def __init__(self, largest: int = 16, longest_step: float = 2.0, first: int = 4) -> None:
        self._longest_step = longest_step
        self._limits: defaultdict[LaneT, int] = defaultdict(lambda: min(first, largest))
        self._ceilings: defaultdict[LaneT, int] = defaultdict(lambda: largest)
        self._last_steps: dict[tuple[LaneT, int], deque[float]] = {}
        self._steps_here: defaultdict[LaneT, int] = defaultdict(int)

    def limit(self, lane: LaneT) -> int:
        """The most rows for the next batch of this lane."""
        return self._limits[lane]

    def seconds_per_row(self) -> dict[LaneT, float]:
        """What one row's step costs in each lane, in the largest batch that was seen."""
        largest: dict[LaneT, int] = {}
        for lane, rows in self._last_steps:
            largest[lane] = max(rows, largest.get(lane, 0))
        return {lane: self._row_seconds(lane, rows) for lane, rows in largest.items()}

    def observe(self, lane: LaneT, rows: int, seconds: float) -> None:
        """Learn from a step that succeeded."""
        steps = self._last_steps.setdefault((lane, rows), deque(maxlen=_REMEMBERED))
        steps.append(seconds / rows)
        if rows != self._limits[lane]:
            return
        if self._is_known(lane, rows) or seconds > self._longest_step:
            self._limits[lane] = self._better_limit(lane, rows)
        self._steps_here[lane] = self._steps_here[lane] + 1 if self._limits[lane] == rows else 0
        if self._steps_here[lane] == _PATIENCE:
            self._steps_here[lane] = 0
            self._last_steps.pop((lane, rows * 2), None)

    def _row_seconds(self, lane: LaneT, rows: int) -> float:
        return median_low(self._last_steps[lane, rows])

    def ran_out_of_memory(self, lane: LaneT, rows: int) -> None:
        """Learn from a step that did not fit: this lane never tries so many rows again."""
        self._ceilings[lane] = max(1, rows // 2)
        self._limits[lane] = min(self._limits[lane], self._ceilings[lane])

    def _better_limit(self, lane: LaneT, rows: int) -> int:
        here = self._row_seconds(lane, rows)
        if rows > 1 and (here * rows > self._longest_step or not self._is_worthwhile(lane, rows)):
            return rows // 2
        if rows * 2 > self._ceilings[lane] or here * rows * 2 > self._longest_step:
            return rows
        return rows * 2 if self._is_worthwhile(lane, rows * 2) else rows

    def _is_worthwhile(self, lane: LaneT, rows: int) -> bool:
        """Whether a row costs less in a batch of so many than in one of half as many, as far as both are known."""
        if not self._is_known(lane, rows) or not self._is_known(lane, rows // 2):
            return True
        return self._row_seconds(lane, rows) <= self._row_seconds(lane, rows // 2) * _WORTHWHILE

    def _is_known(self, lane: LaneT, rows: int) -> bool:
        return len(self._last_steps.get((lane, rows), ())) > 1

"""What a worker's steps have cost so far, as others see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Self

from schnell.serving.jobs import LaneT
from schnell.spec import NO_STEPS, count_step


@dataclass(frozen=True, slots=True)
class WorkerStatus(Generic[LaneT]):
    """What steps have cost so far: replaced whole after every step, so that any thread can read it.

    `seconds_per_row` is what one row's step costs in each lane; `is_lost`, that the device failed for good; `prepared`
    the share of the engine's programs that is compiled.
    """

    steps: int = 0
    step_rows: int = 0
    step_seconds: float = 0.0
    step_counts: tuple[int, ...] = NO_STEPS
    seconds_per_row: Mapping[LaneT, float] = field(default_factory=dict)
    is_lost: bool = False
    prepared: float = 1.0

    def after_step(self, rows: int, seconds: float, seconds_per_row: Mapping[LaneT, float]) -> Self:
        """The status after one more step of so many rows."""
        # spelled out: `replace` takes five times as long, at every step
        return type(self)(
            steps=self.steps + 1,
            step_rows=self.step_rows + rows,
            step_seconds=self.step_seconds + seconds,
            step_counts=count_step(self.step_counts, seconds),
            seconds_per_row=seconds_per_row,
            is_lost=self.is_lost,
            prepared=self.prepared,
        )

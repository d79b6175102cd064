"""One device's part of the queue: the LoRAs in its slots, for whom some are kept free, and what may start there.

No tensors and no lock of its own: the queue asks under its own (`queue.py`).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic

from schnell.serving.jobs import LaneT, QueuedJob, Row
from schnell.serving.slot_leases import SlotLeases

#: The most rows that a batch of a lane may have.
BatchLimit = Callable[[LaneT], int]


@dataclass(frozen=True, slots=True)
class DeviceLimits(Generic[LaneT]):
    """What a device can take: the rows of a batch, by lane, and how many different LoRAs can be in slots at once."""

    batch_limit: BatchLimit[LaneT]
    adapter_slots: int = 8


class DeviceShare(Generic[LaneT]):
    """One device of a queue. `index` is its place among the queue's devices; a lost one takes nothing more."""

    def __init__(self, index: int, limits: DeviceLimits[LaneT]) -> None:
        self.index = index
        self.leases = SlotLeases(limits.adapter_slots)
        self.is_lost = False
        self._batch_limit = limits.batch_limit
        self._reserved_for: QueuedJob[LaneT] | None = None
        self._draining: frozenset[str] = frozenset()

    def batch_limit(self, lane: LaneT) -> int:
        """The most rows of its next batch, at least one."""
        return max(1, self._batch_limit(lane))

    def can_ever_take(self, queued: QueuedJob[LaneT]) -> bool:
        """Whether a job may be drawn here at all, now or later."""
        return not self.is_lost and queued.only_on in {None, self.index} and self.leases.has_room_for(queued.adapters)

    def is_stepping(self, jobs: Iterable[QueuedJob[LaneT]]) -> bool:
        """Whether a row of these jobs is between its steps here: then there is one to take, whosever turn it is."""
        return any(row.state == "denoising" for queued in jobs if queued.device == self.index for row in queued.rows)

    def has_all(self, adapters: Collection[str]) -> bool:
        """Whether these LoRAs are in slots here already."""
        return set(adapters) <= set(self.leases.resident)

    def lose(self) -> None:
        """The device is gone, and all that was in its slots."""
        self.is_lost = True
        self.leases = SlotLeases(self.leases.slot_count)
        self._reserved_for, self._draining = None, frozenset()

    def may_start(self, row: Row[LaneT], joining: Collection[str]) -> bool:
        """Whether a job's LoRAs have room now, beside `joining`, without taking what is reserved for one before it."""
        adapters = {*row.job.adapters, *joining}
        if not self.leases.fits(adapters):
            return False
        first = self.reserved_for
        if first is None or not row.job.adapters or row.turn <= first.rows[0].turn:
            return True
        staying = {*self.leases.held, *adapters} - self._draining
        return self._draining.isdisjoint(row.job.adapters) and self.leases.has_room_for(staying.union(first.adapters))

    def reserve(self, blocked: Row[LaneT] | None, started: Iterable[QueuedJob[LaneT]]) -> None:
        """Keep room for the first job in line that waits for slots, until it has started. `started` are those here.

        Without this a job with many LoRAs would wait for ever beside a stream of jobs with few: each of them finds the
        one slot that it needs, and the many are never free at once. So some held LoRAs are chosen to be drained: the
        jobs that lease them go on, and nobody whose turn comes later joins them. The choice stays until the job has
        started, or it would wander from LoRA to LoRA and free none; only a job whose turn is earlier takes it over.
        """
        first = self.reserved_for
        if blocked is not None and (first is None or blocked.turn < first.rows[0].turn):
            first, self._draining = blocked.job, frozenset()
        self._reserved_for = first
        self._draining = self._more_to_drain(first, tuple(started)) if first is not None else frozenset()

    @property
    def reserved_for(self) -> QueuedJob[LaneT] | None:
        """The job that slots are kept for; None once it has started, here or elsewhere, or has ended."""
        first = self._reserved_for
        return None if first is None or first.is_over or first.is_started else first

    def _more_to_drain(self, first: QueuedJob[LaneT], started: Collection[QueuedJob[LaneT]]) -> frozenset[str]:
        """The LoRAs to drain for a job: those chosen before, and as many more as it lacks slots."""
        draining = self._draining.intersection(self.leases.held)
        needed = {*self.leases.held, *first.adapters} - draining
        lacking = len(needed) - self.leases.slot_count
        others = needed.difference(first.adapters)

        def steps_until_free(adapter: str) -> int:
            return max((each.steps_left for each in started if each.slots and adapter in each.adapters), default=0)

        soonest = sorted(others, key=lambda adapter: (steps_until_free(adapter), adapter))
        return draining.union(soonest[: max(0, lacking)])

"""Every job of one engine, from its arrival to its settled outcome. No tensors: only names, counts, turns and slots.

A *row* is one output of one job; rows of one *lane* (token grid and precision) can take a denoising step together. The
worker asks for the next batch, steps it, and says what came of it; what it is told to step is all that it steps.

Whose turn it is: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Every row gets a start tag when it
arrives: a team that asks for much gets tags further in the future, a team that asks for little stays near the present.
The first row in the order of tags *that can run now* decides the lane, so no lane and no team starves, and a row that
waits for LoRA slots holds up nobody else. Started rows of the lane come first, so that they leave soon; then newcomers.

LoRA slots: a job leases its slots when its first row starts and keeps them until its last picture is decoded, so a
started job always can go on, and the leases of started jobs always end. The first job that waits for slots gets them
reserved, see `_reserve`.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic

import structlog

from schnell.errors import GenerationFailedError, SchnellError
from schnell.serving.jobs import Batch, LaneT, QueuedJob, Row
from schnell.serving.slot_leases import SlotLeases
from schnell.spec import GeneratedImage, Job, JobOutcome, Progress, ProgressListener

log = structlog.get_logger(__name__)
_HIDDEN: Final = "the picture could not be drawn; nothing was charged"


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Jobs none of whose rows has started, and rows between their first and their last step."""

    waiting_jobs: int = 0
    denoising_rows: int = 0


class JobQueue(Generic[LaneT]):
    """Takes jobs from any thread; hands batches to the one thread that owns the engine.

    `batch_limit` gives the most rows that a batch of a lane may have; `adapter_slots` is how many different LoRAs can
    be in slots at once; `weights` gives teams more or less than one share. How many jobs may wait is decided where they
    are accepted (`generations/admission.py`), not here.
    """

    def __init__(
        self,
        batch_limit: Callable[[LaneT], int],
        adapter_slots: int = 8,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._batch_limit = batch_limit
        self._leases = SlotLeases(adapter_slots)
        self._weights = dict(weights or {})
        # insertion order is arrival order; a dict because jobs leave from anywhere
        self._jobs: dict[QueuedJob[LaneT], None] = {}
        self._virtual_time = 0.0
        self._team_tags: dict[str, float] = {}
        self._arrivals = itertools.count()
        self._reserved_for: QueuedJob[LaneT] | None = None
        self._draining: frozenset[str] = frozenset()
        self._is_closed = False
        # re-entrant: settling a future runs its callbacks, and ours (`_drop`) takes the lock again
        self._changed = threading.Condition(threading.RLock())

    def submit(self, job: Job, lane: LaneT, tokens: int, listener: ProgressListener) -> QueuedJob[LaneT]:
        """Queue every output of a job; `tokens` is the size of one, for its price in turns. Cancelling the job's
        `future` takes it out at the next step.

        A job with more distinct LoRAs than there are slots could never start: its future fails at once.
        """
        queued = QueuedJob(job, lane, listener)
        if len(set(queued.adapters)) > self._leases.slot_count:
            queued.future.set_exception(GenerationFailedError(f"more than {self._leases.slot_count} LoRAs in one job"))
            return queued
        with self._changed:
            if self._is_closed:
                queued.future.cancel()
                return queued
            cost = float(job.spec.steps * tokens)
            queued.rows = tuple(
                Row(queued, index, self._next_tag(job.team_id, cost), next(self._arrivals))
                for index in range(job.spec.num_outputs)
            )
            self._jobs[queued] = None
            self._changed.notify_all()
        queued.future.add_done_callback(lambda future: self._drop(queued) if future.cancelled() else None)
        return queued

    def wait(self) -> bool:
        """Wait until a row can take a step; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or any(self._steppable()))
            return not self._is_closed

    def close(self) -> None:
        """Cancel what is left and take nothing more."""
        with self._changed:
            self._is_closed = True
            left = list(self._jobs)
            self._changed.notify_all()
        for queued in left:
            queued.future.cancel()

    def next_batch(self) -> Batch[LaneT] | None:
        """The rows of the next step, newcomers with their slots leased; None where nothing waits."""
        with self._changed:
            rows = sorted(self._steppable(), key=lambda row: row.turn)
            self._reserve(rows)
            # the first that can run decides, not the first: one that has to wait for slots must not hold up the others
            lead = next(self._runnable(rows, ()), None)
            if lead is None:
                return None
            self._virtual_time = max(self._virtual_time, lead.tag)
            chosen = self._choose(rows, lead.job.lane)
            newcomers = tuple(dict.fromkeys(row.job for row in chosen if not row.job.is_started))
            for queued in newcomers:
                queued.slots = self._leases.grant(queued, queued.adapters)
            return Batch(lead.job.lane, chosen, newcomers)

    def complete_step(self, rows: Iterable[Row[LaneT]]) -> tuple[Row[LaneT], ...]:
        """Count a step for these rows; gives those that took their last and are to be decoded."""
        with self._changed:
            taken = [row for row in rows if not row.job.is_over]
            for row in taken:
                row.step += 1
                row.state = "denoising" if row.step < row.job.job.spec.steps else "decoding"
            return tuple(row for row in taken if row.state == "decoding")

    def complete_decoding(self, row: Row[LaneT]) -> None:
        """A row's picture is out of the latents: its job's slots are free once this holds for all of its rows."""
        with self._changed:
            row.state = "finishing"
            if all(each.is_decoded for each in row.job.rows):
                self._end_lease(row.job)

    def complete_row(self, row: Row[LaneT], image: GeneratedImage | None) -> bool:
        """A row's file is written (None: it was flagged); whether it was its job's last."""
        with self._changed:
            row.state = "finished"
            row.job.images[row.index] = image
            return not row.job.is_over and len(row.job.images) == len(row.job.rows)

    def settle(self, queued: QueuedJob[LaneT], outcome: JobOutcome) -> None:
        """The job's end, unless it was cancelled meanwhile."""
        if self._drop(queued) and queued.future.set_running_or_notify_cancel():
            queued.future.set_result(outcome)

    def fail(self, queued: QueuedJob[LaneT], error: Exception) -> None:
        """The job's end in failure, unless it has ended. What only a stack trace could explain is left to the log."""
        if not self._drop(queued):
            return
        if not isinstance(error, SchnellError):
            log.error("generation failed", job_id=queued.job.id, exc_info=error)
        if queued.future.set_running_or_notify_cancel():
            queued.future.set_exception(error if isinstance(error, SchnellError) else GenerationFailedError(_HIDDEN))

    def tell(self, queued: QueuedJob[LaneT], progress: Progress) -> None:
        """Tell a job's listener; a listener that raises fails its own job."""
        try:
            queued.listener(progress)
        except Exception as error:  # noqa: BLE001 - a listener is the caller's code
            self.fail(queued, error)

    def moved(self) -> list[QueuedJob[LaneT]]:
        """Waiting jobs whose `position` (jobs ahead of them) has changed since the last call."""
        with self._changed:
            moved = []
            for position, queued in enumerate(self._waiting_jobs()):
                if queued.position != position:
                    queued.position = position
                    moved.append(queued)
            return moved

    def counts(self) -> QueueCounts:
        """How much waits and runs now."""
        with self._changed:
            denoising = sum(row.state == "denoising" for queued in self._jobs for row in queued.rows)
            return QueueCounts(len(self._waiting_jobs()), denoising)

    def remaining_steps(self) -> Mapping[LaneT, int]:
        """Denoising steps still to be taken, by lane, in rows."""
        left: Counter[LaneT] = Counter()
        with self._changed:
            for queued in self._jobs:
                left[queued.lane] += queued.steps_left
        return left

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once."""
        return self._leases.slot_count

    @property
    def jobs(self) -> tuple[QueuedJob[LaneT], ...]:
        """The jobs that have not ended, in the order in which they came."""
        with self._changed:
            return tuple(self._jobs)

    def _steppable(self) -> Iterator[Row[LaneT]]:
        return (row for queued in self._jobs for row in queued.rows if row.state in {"waiting", "denoising"})

    def _runnable(self, rows: Iterable[Row[LaneT]], joining: Collection[str]) -> Iterator[Row[LaneT]]:
        """Of rows in the order of their turns, those that could step now beside newcomers with the LoRAs `joining`.

        A team's pictures are begun in the order in which it asked for them: behind a job that has to wait for slots,
        the later ones of its team wait, too. Other teams pass.
        """
        held_up: set[str] = set()
        for row in rows:
            team_id = row.job.job.team_id
            if row.job.is_started:
                yield row
            elif team_id not in held_up:
                if self._may_start(row, joining):
                    yield row
                else:
                    held_up.add(team_id)

    def _choose(self, rows: Sequence[Row[LaneT]], lane: LaneT) -> tuple[Row[LaneT], ...]:
        """The rows of a lane that step together: started ones, so that they leave soon, then newcomers that fit."""
        limit = max(1, self._batch_limit(lane))
        chosen = [row for row in rows if row.state == "denoising" and row.job.lane == lane][:limit]
        joining: set[str] = set()
        for row in self._runnable(rows, joining):
            if len(chosen) >= limit:
                break
            if row.state == "waiting" and row.job.lane == lane:
                joining.update(row.job.adapters)
                chosen.append(row)
        return tuple(chosen)

    def _may_start(self, row: Row[LaneT], joining: Collection[str]) -> bool:
        """Whether a job's LoRAs have room now, beside `joining`, without taking what is reserved for one before it."""
        adapters = {*row.job.adapters, *joining}
        if not self._leases.fits(adapters):
            return False
        first = self._reserved_for
        if first is None or not row.job.adapters or row.turn <= first.rows[0].turn:
            return True
        staying = {*self._leases.held, *adapters} - self._draining
        return self._draining.isdisjoint(row.job.adapters) and self._leases.has_room_for(staying.union(first.adapters))

    def _reserve(self, rows: Iterable[Row[LaneT]]) -> None:
        """Keep room for the first job in line that waits for slots, until it has started.

        Without this a job with many LoRAs would wait for ever beside a stream of jobs with few: each of them finds the
        one slot that it needs, and the many are never free at once. So some held LoRAs are chosen to be drained: the
        jobs that lease them go on, and nobody whose turn comes later joins them. The choice stays until the job has
        started, or it would wander from LoRA to LoRA and free none; only a job whose turn is earlier takes it over.
        """
        blocked = next(
            (row for row in rows if not row.job.is_started and not self._leases.fits(row.job.adapters)), None
        )
        first = self._reserved_for
        if first is not None and (first.is_over or first.is_started):
            first = None
        if blocked is not None and (first is None or blocked.turn < first.rows[0].turn):
            first, self._draining = blocked.job, frozenset()
        self._reserved_for = first
        self._draining = self._more_to_drain(first) if first is not None else frozenset()

    def _more_to_drain(self, first: QueuedJob[LaneT]) -> frozenset[str]:
        """The LoRAs to drain for a job: those chosen before, and as many more as it lacks slots."""
        draining = self._draining.intersection(self._leases.held)
        needed = {*self._leases.held, *first.adapters} - draining
        lacking = len(needed) - self._leases.slot_count
        others = needed.difference(first.adapters)
        soonest = sorted(others, key=lambda adapter: (self._steps_until_free(adapter), adapter))
        return draining.union(soonest[: max(0, lacking)])

    def _steps_until_free(self, adapter: str) -> int:
        return max((each.steps_left for each in self._jobs if each.slots and adapter in each.adapters), default=0)

    def _waiting_jobs(self) -> list[QueuedJob[LaneT]]:
        waiting = [queued for queued in self._jobs if not queued.is_started]
        return sorted(waiting, key=lambda queued: queued.rows[0].turn)

    def _drop(self, queued: QueuedJob[LaneT]) -> bool:
        """Take a job out and free its slots; False if it was out already, so that every job ends once."""
        with self._changed:
            if queued.is_over or queued not in self._jobs:
                return False
            queued.is_over = True
            del self._jobs[queued]
            self._end_lease(queued)
            if not self._jobs:
                # nobody is ahead of anybody: a team that asked for much before is not made to wait for it now
                self._team_tags.clear()
                self._virtual_time = 0.0
            self._changed.notify_all()
            return True

    def _end_lease(self, queued: QueuedJob[LaneT]) -> None:
        if queued.slots is not None:
            self._leases.release(queued, queued.adapters)
            queued.slots = None

    def _next_tag(self, team_id: str, cost: float) -> float:
        tag = max(self._virtual_time, self._team_tags.get(team_id, 0.0))
        self._team_tags[team_id] = tag + cost / self._weights.get(team_id, 1.0)
        return tag

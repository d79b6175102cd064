"""Every job of a server, from its arrival to its settled outcome. No tensors: only names, counts, turns and slots.

A *row* is one output of one job; rows of one *lane* (token grid and precision) can take a denoising step together. The
worker of a device asks for the next batch, steps it, and says what came of it; what it is told to step is all that it
steps. A job is drawn on one device, the one that takes its first row.

Whose turn it is: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Every row gets a start tag when it
arrives: a team that asks for much gets tags further in the future, a team that asks for little stays near the present.
The first row in the order of tags *that can run now* decides the lane, so no lane and no team starves, and a row that
waits for LoRA slots holds up nobody else. Started rows of the lane come first, so that they leave soon; then newcomers.

LoRA slots: a job leases its slots when its first row starts and keeps them until its last picture is decoded, so a
started job always can go on, and the leases of started jobs always end. The first job that waits for slots gets them
reserved, see `DeviceShare.reserve`. Of several devices, a job waits for the one that has its LoRAs in slots already, as
long as that costs it less than a drawing of its own, see `_Loyalty`.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic

import structlog

from schnell.errors import GenerationFailedError, ModelBusyError, SchnellError
from schnell.serving.device_share import BatchLimit, DeviceLimits, DeviceShare
from schnell.serving.jobs import Batch, LaneT, QueuedJob, Row
from schnell.spec import GeneratedImage, Job, JobOutcome, Progress, ProgressListener

log = structlog.get_logger(__name__)
_LOOK_AHEAD: Final = 4  # jobs in line that are prepared for
_HIDDEN: Final = "the picture could not be drawn; nothing was charged"
_LOST: Final = "the device that drew this picture failed; nothing was charged. Try again"
_ALL_LOST: Final = "no device is left to draw on; nothing was charged. Try again once the server was started anew"
_RESTART_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Jobs none of whose rows has started, and rows between their first and their last step."""

    waiting_jobs: int = 0
    denoising_rows: int = 0


class JobQueue(Generic[LaneT]):
    """Takes jobs from any thread; hands batches to the threads that own the engines, one a device.

    `batch_limit` gives the most rows that a batch of a lane may have; `adapter_slots` is how many different LoRAs can
    be in slots at once; both are the first device's, `others` has those of the further ones. `weights` gives teams more
    or less than one share. How many jobs may wait is decided where they are accepted (`generations/running.py`), not
    here. Devices are numbered from 0.
    """

    def __init__(
        self,
        batch_limit: BatchLimit[LaneT],
        adapter_slots: int = 8,
        weights: Mapping[str, float] | None = None,
        others: Sequence[DeviceLimits[LaneT]] = (),
    ) -> None:
        limits = (DeviceLimits(batch_limit, adapter_slots), *others)
        self._devices = tuple(DeviceShare(index, each) for index, each in enumerate(limits))
        self._weights = dict(weights or {})
        # insertion order is arrival order; a dict because jobs leave from anywhere
        self._jobs: dict[QueuedJob[LaneT], None] = {}
        self._virtual_time = 0.0
        self._team_tags: dict[str, float] = {}
        self._arrivals = itertools.count()
        self._is_closed = False
        # re-entrant: settling a future runs its callbacks, and ours (`_drop`) takes the lock again
        self._changed = threading.Condition(threading.RLock())
        self._telling = threading.RLock()

    def submit(
        self, job: Job, lane: LaneT, tokens: int, listener: ProgressListener, only_on: int | None = None
    ) -> QueuedJob[LaneT]:
        """Queue every output of a job; `tokens` is the size of one, for its price in turns. Cancelling the job's
        `future` takes it out at the next step. `only_on` names the one device that may draw it.

        A job that no device could ever start, because it has more distinct LoRAs than there are slots or because all
        devices are lost: its future fails at once.
        """
        queued = QueuedJob(job, lane, listener, tokens, only_on)
        with self._changed:
            if self._is_closed:
                queued.future.cancel()
                return queued
            if refusal := self._why_never(queued):
                queued.future.set_exception(refusal)
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

    def wait(self, device: int = 0) -> bool:
        """Wait until a row can take a step on a device; False once the queue is closed, or the device is lost."""
        here = self._devices[device]
        with self._changed:
            while not (self._is_closed or here.is_lost or here.is_stepping(self._jobs) or self._turn(here)[1]):
                self._changed.wait()
            return not self._is_closed and not here.is_lost

    def close(self) -> None:
        """Cancel what is left and take nothing more."""
        with self._changed:
            self._is_closed = True
            left = list(self._jobs)
            self._changed.notify_all()
        for queued in left:
            queued.future.cancel()

    def lose(self, device: int, suspects: Collection[QueuedJob[LaneT]]) -> None:
        """A device has failed for good: what it drew goes back into its old turns, for the others to begin again.

        Not the `suspects`, which were in the call that failed: what took one device down could take the next. They
        fail, as does everything once no device is left.
        """
        with self._changed:
            self._devices[device].lose()
            for queued in [each for each in self._jobs if each.device == device]:
                queued.begin_again()
            stranded = [each for each in self._jobs if each in suspects or self._why_never(each)]
            self._changed.notify_all()
        for queued in stranded:
            self.fail(queued, self._why_never(queued) or ModelBusyError(_LOST))

    def next_batch(self, device: int = 0) -> Batch[LaneT] | None:
        """The rows of a device's next step, newcomers with their slots leased; None where nothing waits for it."""
        here = self._devices[device]
        with self._changed:
            rows, lead = self._turn(here)
            if lead is None:
                return None
            self._virtual_time = max(self._virtual_time, lead.tag)
            chosen = self._choose(rows, lead.job.lane, here)
            newcomers = tuple(dict.fromkeys(row.job for row in chosen if not row.job.is_started))
            for queued in newcomers:
                queued.device, queued.slots = device, here.leases.grant(queued, queued.adapters)
            if newcomers and len(self._devices) > 1:
                # what waited for this device in favour of another may now be worth taking there
                self._changed.notify_all()
            return Batch(lead.job.lane, chosen, newcomers)

    def next_in_line(self, device: int = 0) -> list[QueuedJob[LaneT]]:
        """The jobs that are likely to start next on a device, for what can be prepared while others are drawn."""
        with self._changed:
            return list(filter(self._devices[device].can_ever_take, self._waiting_jobs()))[:_LOOK_AHEAD]

    def stage(self, adapter: str, device: int = 0) -> int | None:
        """A slot of a device to load a LoRA into that a job in line will want; None where none is to be had now."""
        with self._changed:
            wanted = {each for queued in self.next_in_line(device) for each in queued.adapters}
            return self._devices[device].leases.stage(adapter, wanted)

    def complete_step(self, rows: Iterable[Row[LaneT]]) -> tuple[Row[LaneT], ...]:
        """Count a step for these rows; gives those that took their last and are to be decoded."""
        with self._changed:
            taken = [row for row in rows if not row.job.is_over and self._is_current(row)]
            for row in taken:
                row.step += 1
                row.state = "denoising" if row.step < row.job.job.spec.steps else "decoding"
            return tuple(row for row in taken if row.state == "decoding")

    def complete_decoding(self, row: Row[LaneT]) -> None:
        """A row's picture is out of the latents: its job's slots are free once this holds for all of its rows."""
        with self._changed:
            row.state = "finishing"
            if self._is_current(row) and all(each.is_decoded for each in row.job.rows):
                self._end_lease(row.job)

    def complete_row(self, row: Row[LaneT], image: GeneratedImage | None) -> bool:
        """A row's file is written (None: it was flagged); whether it was its job's last."""
        with self._changed:
            row.state = "finished"
            if not self._is_current(row):
                return False
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
            # one at a time: the worker that tells of a place in line must not come after the one that tells of a step
            with self._telling:
                if progress.stage != "queued" or not queued.is_started:
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

    def counts(self, device: int | None = None) -> QueueCounts:
        """How much waits, and how much runs now, on all devices or on one."""
        with self._changed:
            running = (queued for queued in self._jobs if device is None or queued.device == device)
            denoising = sum(row.state == "denoising" for queued in running for row in queued.rows)
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
        """How many different LoRAs can be in use at once, on the device that holds most."""
        return max(each.leases.slot_count for each in self._devices)

    @property
    def jobs(self) -> tuple[QueuedJob[LaneT], ...]:
        """The jobs that have not ended, in the order in which they came."""
        with self._changed:
            return tuple(self._jobs)

    def jobs_on(self, device: int) -> tuple[QueuedJob[LaneT], ...]:
        """Those that have started on a device."""
        return tuple(queued for queued in self.jobs if queued.device == device and queued.is_started)

    def held_adapters(self, device: int = 0, *, idle_too: bool = False) -> frozenset[str]:
        """The LoRAs that jobs lease slots for on a device; with `idle_too` all that are in slots there."""
        with self._changed:
            leases = self._devices[device].leases
            return frozenset(leases.resident if idle_too else leases.held)

    def _why_never(self, queued: QueuedJob[LaneT]) -> SchnellError | None:
        """Why no device could ever draw a job; None if one could."""
        if any(each.can_ever_take(queued) for each in self._devices):
            return None
        if all(each.is_lost for each in self._devices):
            return ModelBusyError(_ALL_LOST, _RESTART_SECONDS)
        if queued.only_on is not None and self._devices[queued.only_on].is_lost:
            return ModelBusyError(_LOST)
        return GenerationFailedError(f"more than {self.adapter_slots} LoRAs in one job")

    def _in_turn(self, here: DeviceShare[LaneT]) -> list[Row[LaneT]]:
        """The rows that have steps to take, here or not decided yet where, in the order of their turns."""
        rows = (row for queued in self._jobs for row in queued.rows if row.state in {"waiting", "denoising"})
        return sorted((row for row in rows if row.job.device in {None, here.index}), key=lambda row: row.turn)

    def _turn(self, here: DeviceShare[LaneT]) -> tuple[list[Row[LaneT]], Row[LaneT] | None]:
        """The rows in turn, and the one that decides the lane of a device's next batch: the first that can run.

        Not the first of all: one that has to wait for slots must not hold up the others.
        """
        rows = self._in_turn(here)
        blocked = next((row for row in rows if self._is_blocked(row, here)), None)
        here.reserve(blocked, (queued for queued in self._jobs if queued.device == here.index))
        return rows, next(self._runnable(rows, (), here), None)

    def _is_blocked(self, row: Row[LaneT], here: DeviceShare[LaneT]) -> bool:
        """Whether a job waits for slots everywhere, and nobody but this device keeps some for it."""
        queued = row.job
        if queued.is_started or not here.can_ever_take(queued):
            return False
        able = [each for each in self._devices if each.can_ever_take(queued)]
        # one device that drains its slots for it is enough
        taken = any(each.reserved_for is queued for each in able if each is not here)
        return not taken and not any(each.leases.fits(queued.adapters) for each in able)

    def _runnable(
        self, rows: Iterable[Row[LaneT]], joining: Collection[str], here: DeviceShare[LaneT]
    ) -> Iterator[Row[LaneT]]:
        """Of rows in the order of their turns, those that could step now beside newcomers with the LoRAs `joining`.

        A team's pictures are begun in the order in which it asked for them: behind a job that has to wait for slots,
        the later ones of its team wait, too. Other teams pass.
        """
        held_up: set[str] = set()
        loyalty = _Loyalty(self._devices, self._jobs, here) if len(self._devices) > 1 else None
        for row in rows:
            team_id = row.job.job.team_id
            if row.job.is_started:
                yield row
            elif team_id not in held_up and here.can_ever_take(row.job):
                if not here.may_start(row, joining):
                    held_up.add(team_id)
                elif loyalty is None or not loyalty.is_left(row):
                    yield row

    def _choose(self, rows: Sequence[Row[LaneT]], lane: LaneT, here: DeviceShare[LaneT]) -> tuple[Row[LaneT], ...]:
        """The rows of a lane that step together: started ones, so that they leave soon, then newcomers that fit."""
        limit = here.batch_limit(lane)
        chosen = [row for row in rows if row.state == "denoising" and row.job.lane == lane][:limit]
        joining: set[str] = set()
        for row in self._runnable(rows, joining, here):
            if len(chosen) >= limit:
                break
            if row.state == "waiting" and row.job.lane == lane:
                joining.update(row.job.adapters)
                chosen.append(row)
        return tuple(chosen)

    @staticmethod
    def _is_current(row: Row[LaneT]) -> bool:
        """Whether its job still goes by this row: not after the job began again on another device."""
        return row.job.rows[row.index] is row

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
        if queued.slots is not None and queued.device is not None:
            self._devices[queued.device].leases.release(queued, queued.adapters)
            queued.slots = None

    def _next_tag(self, team_id: str, cost: float) -> float:
        tag = max(self._virtual_time, self._team_tags.get(team_id, 0.0))
        self._team_tags[team_id] = tag + cost / self._weights.get(team_id, 1.0)
        return tag


class _Loyalty(Generic[LaneT]):
    """Which waiting jobs a device leaves for another that has their LoRAs in slots already.

    Loading a LoRA takes time and pushes out another, so a job waits for its LoRAs' device; but no longer than a drawing
    of its own takes: what lies before it there may exceed what lies before it here by its own steps at most.
    """

    def __init__(
        self, devices: Sequence[DeviceShare[LaneT]], jobs: Iterable[QueuedJob[LaneT]], here: DeviceShare[LaneT]
    ) -> None:
        self._others = [each for each in devices if each is not here and not each.is_lost]
        self._here = here
        self._ahead: Counter[int | None] = Counter()
        self._known: dict[QueuedJob[LaneT], bool] = {}
        if self._others:
            for queued in jobs:
                self._ahead[queued.device] += queued.work_left if queued.device is not None else 0

    def is_left(self, row: Row[LaneT]) -> bool:
        """Whether another device should take this row's job; to be asked in the order of turns."""
        queued = row.job
        if not self._others or not queued.adapters or self._here.has_all(queued.adapters):
            return False
        if queued not in self._known:
            self._known[queued] = self._leave(queued, row)
        return self._known[queued]

    def _leave(self, queued: QueuedJob[LaneT], row: Row[LaneT]) -> bool:
        able = (each for each in self._others if each.can_ever_take(queued) and each.has_all(queued.adapters))
        # one that drains its slots for somebody before would not begin it
        homes = [each for each in able if each.may_start(row, ())]
        if not homes:
            return False
        home = min(homes, key=lambda each: self._ahead[each.index])
        if self._ahead[home.index] - self._ahead[self._here.index] > queued.work_left:
            return False
        # the next one that is left for it has this one before it
        self._ahead[home.index] += queued.work_left
        return True

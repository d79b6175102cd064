"""The thread that owns the engine. `Worker.step` is the whole system: next batch, encode, denoise, decode, hand over.

The queue decides what runs (`queue.py`); the worker holds the tensors of what runs. Whatever one job brings in (its
prompt, its LoRAs, its latents, its listener) and whatever fails on it fails that job alone.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

import structlog
import torch
from PIL import Image

from schnell.clock import Stopwatch
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine, PromptRequest, outcome_of, warnings_for
from schnell.engine.pictures import PreviewFit
from schnell.engine.text import PromptEmbedding
from schnell.serving.batch_size import BatchSizer
from schnell.serving.jobs import Batch, QueuedJob, Row
from schnell.serving.queue import JobQueue
from schnell.spec import Job, JobOutcome, Progress, ProgressListener, RunnerSnapshot, Size

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What rows of a batch must agree in."""

    grid: Size
    precision: Precision

    @property
    def tokens(self) -> int:
        """Latent tokens of one row."""
        return self.grid.width * self.grid.height


QueuedLaneJob = QueuedJob[LaneKey]
LaneRow = Row[LaneKey]


@dataclass(slots=True)
class Started:
    """The tensors of a job that has started: its prompt's embedding, and each output's latents on their way."""

    prompt: PromptEmbedding
    drawings: dict[int, Drawing]
    watch: Stopwatch


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What steps have cost so far: replaced whole after every step, so that any thread can read it.

    `seconds_per_row` is what one row's step costs in each lane.
    """

    steps: int = 0
    step_rows: int = 0
    step_seconds: float = 0.0
    seconds_per_row: Mapping[LaneKey, float] = field(default_factory=dict)


class Worker:
    """Runs jobs on one engine, in a thread of its own. Cancelling a job's future takes it out at the next step."""

    def __init__(self, engine: Engine, queue: JobQueue[LaneKey], sizer: BatchSizer[LaneKey]) -> None:
        self._engine = engine
        self._queue = queue
        self._sizer = sizer
        self._previews = PreviewFit()
        self._started: dict[QueuedLaneJob, Started] = {}
        self._thread = threading.Thread(target=self._run, name="schnell-engine", daemon=True)
        # resampling, the safety check and encoding run beside the next denoising steps, one picture after the other
        self._finishing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="schnell-finish")
        self.status = WorkerStatus()

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is left, and end the threads."""
        self._queue.close()
        self._thread.join()
        self._finishing.shutdown(wait=True)

    def submit(self, job: Job, listener: ProgressListener) -> Future[JobOutcome]:
        """Queue a job. The listener is called from the worker's threads."""
        lane = self.lane_of(job)
        return self._queue.submit(job, lane, lane.tokens, listener).future

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once."""
        return self._queue.adapter_slots

    def lane_of(self, job: Job) -> LaneKey:
        """The lane that a job's rows share batches in."""
        precision = self._engine.precision_for(go_fast=job.spec.go_fast)
        return LaneKey(self._engine.folder.token_grid(job.spec.size), precision)

    def snapshot(self) -> RunnerSnapshot:
        """What waits and runs now, and the sums of all steps."""
        counts, status = self._queue.counts(), self.status
        return RunnerSnapshot(
            queued=counts.waiting_jobs,
            active_rows=counts.denoising_rows,
            steps=status.steps,
            step_rows=status.step_rows,
            step_seconds=status.step_seconds,
        )

    def backlog_seconds(self) -> float:
        """How long the steps still to be taken would last, one row after the other."""
        per_row = self.status.seconds_per_row
        return sum(count * per_row.get(lane, 0.0) for lane, count in self._queue.remaining_steps().items())

    def step(self) -> None:
        """One turn: take the next batch a step further, decode what is done, tell those who listen."""
        for queued in self._queue.moved():
            self._queue.tell(queued, Progress("queued", 0, queued.job.spec.steps, position=queued.position))
        batch = self._queue.next_batch()
        if batch is not None:
            self._begin(batch)
            stepped = self._denoise(batch.lane, [row for row in batch.rows if row.job in self._started])
            done = self._queue.complete_step(stepped)
            self._tell_steps(stepped)
            self._decode(done)
        self._forget_ended()

    def _run(self) -> None:
        while self._queue.wait():
            try:
                self.step()
            except Exception as error:
                # every known fault fails its own job; one that comes here is ours and must not end the service: the
                # jobs at hand fail, the next ones run
                log.exception("engine step failed")
                for queued in self._queue.jobs:
                    if queued.is_started:
                        self._queue.fail(queued, error)

    def _begin(self, batch: Batch[LaneKey]) -> None:
        """Load the newcomers' LoRAs into their slots, encode their prompts, draw their noise."""
        ready = [(queued, request) for queued in batch.newcomers if (request := self._place_adapters(queued))]
        if not ready:
            return
        start = perf_counter()
        try:
            prompts = self._engine.encode_prompts([request for _, request in ready], batch.lane.precision)
        except Exception as error:  # noqa: BLE001 - whatever an encoder raises, the other prompts must go on
            if len(ready) == 1:
                self._queue.fail(ready[0][0], error)
                return
            # one of the prompts is at fault: alone, each of them shows which
            log.warning("encoding prompts together failed", prompts=len(ready), error=str(error))
            for queued, _ in ready:
                self._begin(Batch(batch.lane, (), (queued,)))
            return
        for (queued, request), prompt in zip(ready, prompts, strict=True):
            watch = Stopwatch()
            watch.add("text", perf_counter() - start)
            self._draw_noise(queued, request, prompt, watch)

    def _draw_noise(
        self, queued: QueuedLaneJob, request: PromptRequest, prompt: PromptEmbedding, watch: Stopwatch
    ) -> None:
        try:
            drawings = dict(enumerate(self._engine.begin(queued.job, prompt, request.slots)))
        except Exception as error:  # noqa: BLE001 - noise of one job that does not fit into memory is its own fault
            self._queue.fail(queued, error)
            return
        self._started[queued] = Started(prompt, drawings, watch)

    def _place_adapters(self, queued: QueuedLaneJob) -> PromptRequest | None:
        job = queued.job
        try:
            slots = self._engine.place_adapters(job.adapters, queued.slots or (), queued.lane.precision)
        except Exception as error:  # noqa: BLE001 - a LoRA that cannot be loaded fails its own job only
            self._queue.fail(queued, error)
            return None
        return PromptRequest(job.spec.prompt, job.adapters, slots)

    def _denoise(self, lane: LaneKey, rows: Sequence[LaneRow]) -> list[LaneRow]:
        """Step the rows; a batch that fails is tried again in halves, so that only the row at fault fails."""
        rows = [row for row in rows if not row.job.is_over]
        if not rows:
            return []
        start = perf_counter()
        error: Exception | None = None
        try:
            drawings = self._engine.step([self._started[row.job].drawings[row.index] for row in rows], lane.precision)
        except Exception as cause:  # noqa: BLE001 - whatever a kernel raises, the other rows must go on
            # without its traceback: that would keep the failed step's activations in memory while the halves are tried
            error = cause.with_traceback(None)
        if error is not None:
            log.warning("denoising step failed", rows=len(rows), error=str(error))
            return self._denoise_halves(lane, rows, error)
        seconds = perf_counter() - start
        self._sizer.observe(lane, len(rows), seconds)
        self._count_step(len(rows), seconds)
        for row, drawing in zip(rows, drawings, strict=True):
            started = self._started[row.job]
            started.drawings[row.index] = drawing
            started.watch.add("denoise", seconds / len(row.job.rows))
        return list(rows)

    def _denoise_halves(self, lane: LaneKey, rows: Sequence[LaneRow], error: Exception) -> list[LaneRow]:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._sizer.ran_out_of_memory(lane, len(rows))
        if len(rows) == 1:
            self._queue.fail(rows[0].job, error)
            return []
        middle = len(rows) // 2
        return [row for half in (rows[:middle], rows[middle:]) for row in self._denoise(lane, half)]

    def _decode(self, done: Sequence[LaneRow]) -> None:
        """Decode one by one: a picture's pixels then do not depend on what was finished beside it."""
        for row in done:
            if row.job.is_over:
                continue
            started = self._started[row.job]
            drawing = started.drawings[row.index]
            try:
                with started.watch.timing("decode"):
                    [picture] = self._engine.decode([drawing], row.job.lane.precision)
            except Exception as error:  # noqa: BLE001 - whatever a kernel raises, the other rows must go on
                self._queue.fail(row.job, error)
                continue
            self._queue.complete_decoding(row)
            self._finishing.submit(self._finish, row, started, picture)

    def _finish(self, row: LaneRow, started: Started, picture: Image.Image) -> None:
        queued = row.job
        if queued.is_over:
            return
        try:
            # here, beside the next steps: the engine's thread would wait for a GPU to hand the latents over
            self._previews.learn(started.drawings[row.index], picture)
            image = self._engine.finish(queued.job, row.index, picture, started.watch)
            if not self._queue.complete_row(row, image):
                return
            images = [queued.images[index] for index in range(len(queued.rows))]
            of_loras = self._engine.adapter_warnings(queued.job.adapters, queued.lane.precision)
            warnings = (*warnings_for(started.prompt, self._engine.folder), *of_loras)
            outcome = outcome_of(images, warnings, dict(started.watch.seconds))
        except Exception as error:  # noqa: BLE001 - it would be lost in this thread
            self._queue.fail(queued, error)
            return
        self._queue.settle(queued, outcome)

    def _tell_steps(self, rows: Sequence[LaneRow]) -> None:
        for queued in dict.fromkeys(row.job for row in rows):
            if queued.is_over:
                continue
            started = self._started[queued]
            step = min(drawing.step for drawing in started.drawings.values())
            self._queue.tell(
                queued, Progress("denoise", step, queued.job.spec.steps, previews=self._paint_previews(queued, started))
            )

    def _paint_previews(self, queued: QueuedLaneJob, started: Started) -> tuple[bytes, ...]:
        drawings = [started.drawings[index] for index in sorted(started.drawings)]
        # after the last step the picture itself is on its way: a preview would only hold it up
        if not queued.job.wants_previews or not self._previews.is_ready or all(each.is_done for each in drawings):
            return ()
        try:
            return tuple(self._previews.paint(drawing, queued.job.spec.size) for drawing in drawings)
        except Exception as error:  # noqa: BLE001 - a preview that cannot be painted is its own job's fault
            self._queue.fail(queued, error)
            return ()

    def _count_step(self, rows: int, seconds: float) -> None:
        seen = self.status
        self.status = WorkerStatus(
            seen.steps + 1, seen.step_rows + rows, seen.step_seconds + seconds, self._sizer.seconds_per_row()
        )

    def _forget_ended(self) -> None:
        """Let go of the tensors of jobs that have no more steps to take."""
        for queued in [each for each in self._started if each.is_over or all(row.is_decoded for row in each.rows)]:
            del self._started[queued]

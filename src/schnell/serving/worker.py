"""The thread that owns one engine. `Worker.step` is the whole system: next batch, encode, denoise, decode, hand over.

The queue decides what runs (`queue.py`); the worker holds the tensors of what runs. Whatever one job brings in (its
prompt, its LoRAs, its latents, its listener) and whatever fails on it fails that job alone (`faults.py`). A device that
fails for good leaves its jobs to the workers of the others.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

import structlog
from PIL import Image

from schnell.clock import Stopwatch
from schnell.engine.accelerator import is_out_of_memory, memory_use
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.pictures import Lesson, PreviewFit
from schnell.engine.text import PromptEmbedding
from schnell.serving.ahead import load_ahead, prepare
from schnell.serving.batch_size import BatchSizer
from schnell.serving.faults import DeviceLostError, Fault, attempt, attempt_twice, memory_error
from schnell.serving.jobs import Batch, QueuedJob, Row
from schnell.serving.queue import JobQueue
from schnell.serving.worker_status import WorkerStatus
from schnell.side_processes import SideProcesses
from schnell.spec import DeviceMemory, Job, JobOutcome, Progress, ProgressListener, Size

log = structlog.get_logger(__name__)
_TILED: Final = "the picture was decoded in strips, as the device's memory did not hold it whole"


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
    is_tiled: bool = False


class Worker:
    """Runs jobs on one engine, in a thread of its own. Cancelling a job's future takes it out at the next step.

    `device` is the number of the engine's device in the queue, which the workers of several devices share. `beside` are
    the processes that a step on a CPU pauses.
    """

    def __init__(
        self,
        engine: Engine,
        queue: JobQueue[LaneKey],
        sizer: BatchSizer[LaneKey],
        device: int = 0,
        beside: SideProcesses | None = None,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._sizer = sizer
        self._device = device
        self._pausing = beside.step if beside is not None and engine.device.type == "cpu" else nullcontext
        self._previews, self._learning = PreviewFit(), threading.Lock()
        self._started: dict[QueuedLaneJob, Started] = {}
        self._thread = threading.Thread(target=self._run, name=f"schnell-engine-{device}", daemon=True)
        # resampling, the safety check and encoding run beside the next denoising steps, one picture after the other; on
        # a CPU they would take a core from the team that steps, whose other threads wait for it at every barrier
        self._finishes_between_steps = engine.device.type == "cpu"
        finishers = engine.threads if self._finishes_between_steps else 1
        self._finishing = ThreadPoolExecutor(finishers, f"schnell-finish-{device}")
        self._tiled: set[LaneKey] = set()
        self._is_stopping = self._may_prepare = False
        self.status: WorkerStatus[LaneKey] = WorkerStatus(prepared=0.0 if engine.is_compiled else 1.0)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is left, and end the threads."""
        self._is_stopping = True
        self._queue.close()
        self._thread.join()
        self._finishing.shutdown(wait=True)

    def prepare_next(self) -> None:
        """Compile, if blocks are compiled, after the next picture. Nothing of this process may load networks then:

        diffusers changes torch's defaults meanwhile, and they would be part of what is compiled.
        """
        self._may_prepare = True

    def submit(self, job: Job, listener: ProgressListener, *, here: bool = False) -> Future[JobOutcome]:
        """Queue a job, for this worker alone if it must be drawn `here`. The listener is called from any thread."""
        lane = self.lane_of(job)
        return self._queue.submit(job, lane, lane.tokens, listener, self._device if here else None).future

    @property
    def queue(self) -> JobQueue[LaneKey]:
        """Where its jobs come from."""
        return self._queue

    @property
    def name(self) -> str:
        """The device's name, such as `cuda:1`."""
        return str(self._engine.device)

    def memory(self) -> DeviceMemory | None:
        """What is used of the device's memory; None for a device that failed, which no call reaches."""
        return None if self.status.is_lost else memory_use(self._engine.device)

    def lane_of(self, job: Job) -> LaneKey:
        """The lane that a job's rows share batches in."""
        precision = self._engine.precision_for(go_fast=job.spec.go_fast)
        return LaneKey(self._engine.folder.token_grid(job.spec.size), precision)

    def backlog_seconds(self) -> float:
        """How long the steps still to be taken would last here, one row after the other."""
        per_row = self.status.seconds_per_row
        return sum(count * per_row.get(lane, 0.0) for lane, count in self._queue.remaining_steps().items())

    def step(self) -> None:
        """One turn: take the next batch a step further, decode what is done, tell those who listen."""
        for queued in self._queue.moved():
            self._queue.tell(queued, Progress("queued", 0, queued.job.spec.steps, position=queued.position))
        batch = self._queue.next_batch(self._device)
        if batch is not None:
            with self._pausing():
                self._take_further(batch)
        self._forget_ended()

    def _take_further(self, batch: Batch[LaneKey]) -> None:
        self._begin(batch)
        stepped = self._denoise(batch.lane, [row for row in batch.rows if row.job in self._started])
        done = self._queue.complete_step(stepped)
        self._tell_steps(stepped)
        self._decode(done)

    def _run(self) -> None:
        self._engine.make_current()
        while self._queue.wait(self._device):
            try:
                self.step()
                if self._may_prepare and not self._queue.counts(self._device).denoising_rows:
                    self._prepare()
            except DeviceLostError as lost:
                self._give_up(lost)
            except Exception as error:
                # every known fault fails its own job; one that comes here is ours and must not end the service: the
                # jobs at hand fail, the next ones run
                log.exception("engine step failed")
                for queued in self._queue.jobs_on(self._device):
                    self._queue.fail(queued, error)

    def _prepare(self) -> None:
        # requests that come meanwhile wait, or are drawn by another device; readiness says that they should not come
        for share in prepare(self._engine, self.name):
            self.status = replace(self.status, prepared=share)
            if self._is_stopping:
                return
        self._may_prepare = False
        self.status = replace(self.status, prepared=1.0)

    def _give_up(self, lost: DeviceLostError) -> None:
        """Leave the work to the other devices: no call of this process reaches this one any more."""
        log.error("the device is lost; restart the server to use it again", device=self.name, error=str(lost))
        self.status = replace(self.status, is_lost=True)
        self._started.clear()
        self._queue.lose(self._device, lost.jobs)

    def _begin(self, batch: Batch[LaneKey]) -> None:
        """Load the newcomers' LoRAs into their slots, encode their prompts, draw their noise."""
        ready = [(queued, request) for queued in batch.newcomers if (request := self._place_adapters(queued))]
        if not ready:
            return
        jobs, requests = [queued for queued, _ in ready], [request for _, request in ready]

        def encode() -> tuple[list[PromptEmbedding], float]:
            timing = self._engine.start_timing()
            return self._engine.encode_prompts(requests, batch.lane.precision), timing()

        encoded = (attempt_twice if len(ready) == 1 else attempt)(self._engine, "text", jobs, encode)
        if isinstance(encoded, Fault):
            if len(ready) == 1:
                self._fail(jobs[0], encoded)
                return
            # one of the prompts is at fault, or they are too many at once: alone, each of them shows which
            for queued in jobs:
                self._begin(Batch(batch.lane, (), (queued,)))
            return
        prompts, seconds = encoded
        for queued, request, prompt in zip(jobs, requests, prompts, strict=True):
            watch = Stopwatch()
            watch.add("text", seconds)
            self._draw_noise(queued, request, prompt, watch)

    def _draw_noise(
        self, queued: QueuedLaneJob, request: PromptRequest, prompt: PromptEmbedding, watch: Stopwatch
    ) -> None:
        def begin() -> list[Drawing]:
            timing = self._engine.start_timing()
            drawings = self._engine.begin(queued.job, prompt, request.slots)
            watch.add("noise", timing())
            return drawings

        begun = attempt_twice(self._engine, "noise", [queued], begin)
        if isinstance(begun, Fault):
            self._fail(queued, begun)
            return
        self._started[queued] = Started(prompt, dict(enumerate(begun)), watch)

    def _place_adapters(self, queued: QueuedLaneJob) -> PromptRequest | None:
        job, slots = queued.job, queued.slots or ()
        placed = attempt_twice(
            self._engine,
            "loras",
            [queued],
            lambda: self._engine.place_adapters(job.adapters, slots, queued.lane.precision),
        )
        if isinstance(placed, Fault):
            self._fail(queued, placed)
            return None
        return PromptRequest(job.spec.prompt, job.adapters, placed)

    def _denoise(self, lane: LaneKey, rows: Sequence[LaneRow]) -> list[LaneRow]:
        """Step the rows; a batch that fails is tried again in halves, so that only the row at fault fails."""
        rows = [row for row in rows if not row.job.is_over]
        if not rows:
            return []
        jobs = [row.job for row in rows]
        before = [self._started[row.job].drawings[row.index] for row in rows]

        def step() -> tuple[list[Drawing], float]:
            timing = self._engine.start_timing()
            drawings = self._engine.step(before, lane.precision)
            # the device is at work now, and this thread would only wait for it
            load_ahead(self._engine, self._queue, self._device)
            # errors of a GPU come when it is waited for, which must be here, where they still have their rows
            return drawings, timing()

        stepped = (attempt_twice if len(rows) == 1 else attempt)(self._engine, "denoise", jobs, step)
        if isinstance(stepped, Fault):
            return self._denoise_halves(lane, rows, stepped)
        drawings, seconds = stepped
        self._sizer.observe(lane, len(rows), seconds)
        self.status = self.status.after_step(len(rows), seconds, self._sizer.seconds_per_row())
        for row, drawing in zip(rows, drawings, strict=True):
            started = self._started[row.job]
            started.drawings[row.index] = drawing
            started.watch.add("denoise", seconds / len(row.job.rows))
        return list(rows)

    def _denoise_halves(self, lane: LaneKey, rows: Sequence[LaneRow], fault: Fault) -> list[LaneRow]:
        if fault.is_memory:
            self._sizer.ran_out_of_memory(lane, len(rows))
        if len(rows) == 1:
            self._fail(rows[0].job, fault)
            return []
        middle = len(rows) // 2
        return [row for half in (rows[:middle], rows[middle:]) for row in self._denoise(lane, half)]

    def _decode(self, done: Sequence[LaneRow]) -> None:
        """Decode one by one: a picture's pixels then do not depend on what was finished beside it."""
        waiting = []
        for row in done:
            if row.job.is_over:
                continue
            started = self._started[row.job]
            with started.watch.timing("decode"):
                decoded = self._decode_row(row, started)
            if isinstance(decoded, Fault):
                self._fail(row.job, decoded)
                continue
            self._queue.complete_decoding(row)
            if self._finishes_between_steps:
                waiting.append((row, started, *decoded))
            else:
                self._finishing.submit(self._finish, row, started, *decoded)
        if waiting:
            wait([self._finishing.submit(self._finish, *each) for each in waiting])

    def _decode_row(self, row: LaneRow, started: Started) -> tuple[Image.Image, Lesson | None] | Fault:
        """A row's picture, in strips where it does not fit into memory whole, and what it teaches about previews."""
        lane, drawing = row.job.lane, started.drawings[row.index]

        def decode(*, tiles: bool) -> tuple[Image.Image, Lesson | None]:
            [picture] = self._engine.decode([drawing], lane.precision, tiles=tiles)
            return picture, self._previews.lesson(drawing)

        decoded: tuple[Image.Image, Lesson | None] | Fault | None = None
        if lane not in self._tiled:
            decoded = attempt(self._engine, "decode", [row.job], lambda: decode(tiles=False))
            if isinstance(decoded, Fault) and decoded.is_memory:
                # for good: every other picture of this size would run out of memory first, too
                self._tiled.add(lane)
                decoded = None
        if decoded is None:
            started.is_tiled = True
            decoded = attempt_twice(self._engine, "decode in strips", [row.job], lambda: decode(tiles=True))
        return decoded

    def _finish(self, row: LaneRow, started: Started, picture: Image.Image, lesson: Lesson | None) -> None:
        queued = row.job
        if lesson is not None:
            # before the picture is handed over, so that previews come with whatever is asked for after it
            self._learn(lesson, picture)
        if queued.is_over:
            return
        try:
            image = self._engine.finish(queued.job, row.index, picture, started.watch)
            if self._queue.complete_row(row, image):
                images = [queued.images[index] for index in range(len(queued.rows))]
                self._queue.settle(
                    queued, JobOutcome.of(images, self._warnings(queued.job, started), dict(started.watch.seconds))
                )
        except Exception as error:  # noqa: BLE001 - it would be lost in this thread
            self._fail(queued, Fault(error, is_out_of_memory(error)))

    def _learn(self, lesson: Lesson, picture: Image.Image) -> None:
        try:
            with self._learning:
                self._previews.learn(lesson, picture)
        except Exception:
            log.exception("previews were not learned from a picture")

    def _warnings(self, job: Job, started: Started) -> tuple[str, ...]:
        warnings = self._engine.warnings_for(job, started.prompt)
        return (*warnings, _TILED) if started.is_tiled else warnings

    def _fail(self, queued: QueuedLaneJob, fault: Fault) -> None:
        """End a job with what its fault means: memory that others may give back, or that no device here has."""
        if not fault.is_memory:
            self._queue.fail(queued, fault.error)
            return
        alone = all(each is queued for each in self._queue.jobs_on(self._device))
        self._queue.fail(queued, memory_error(queued.job, alone=alone, retry_after=max(1.0, self.backlog_seconds())))

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

    def _forget_ended(self) -> None:
        """Let go of the tensors of jobs that have no more steps to take."""
        for queued in [each for each in self._started if each.is_over or all(row.is_decoded for row in each.rows)]:
            del self._started[queued]

"""The thread that owns the engine. `Worker.step` is the whole system: schedule, encode, denoise, decode, hand over."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from time import perf_counter

import structlog
import torch
from PIL import Image

from schnell.engine.denoise import Drawing
from schnell.engine.engine import Engine, PromptRequest, outcome_of, warnings_for
from schnell.engine.pictures import PreviewFit
from schnell.errors import SchnellError
from schnell.serving.active_job import ActiveJob, LaneKey, WorkerStatus
from schnell.serving.batch_size import BatchSizer
from schnell.serving.scheduler import Batch, Entry, Row, RowKey, Scheduler
from schnell.spec import Job, JobOutcome, Progress, ProgressListener, RunnerSnapshot

log = structlog.get_logger(__name__)


class Finisher:
    """Resamples, checks and encodes decoded pictures beside the denoising, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="schnell-finish")

    def submit(self, active: ActiveJob, index: int, picture: Image.Image) -> None:
        """Finish an output of a job; the last one settles the job's future."""
        self._thread.submit(self._finish, active, index, picture)

    def close(self) -> None:
        """Finish what was submitted, then end."""
        self._thread.shutdown(wait=True)

    def _finish(self, active: ActiveJob, index: int, picture: Image.Image) -> None:
        if active.future.done():
            return
        try:
            active.finished[index] = self._engine.finish(active.job, index, picture, active.watch)
        except Exception as error:
            if not isinstance(error, SchnellError):
                log.exception("a picture could not be written", job_id=active.job.id)
            active.settle_with(error)
            return
        if len(active.finished) == active.job.spec.num_outputs:
            finished = [active.finished[i] for i in sorted(active.finished)]
            warnings = warnings_for(active.prompt, self._engine.folder) if active.prompt else ()
            active.settle(outcome_of(finished, warnings, dict(active.watch.seconds)))


class Worker:
    """Runs jobs on one engine, in a thread of its own. Cancelling a job's future takes it out at the next step."""

    def __init__(self, engine: Engine, scheduler: Scheduler[LaneKey], sizer: BatchSizer[LaneKey]) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._sizer = sizer
        self._finisher = Finisher(engine)
        self._previews = PreviewFit()
        self._inbox: SimpleQueue[ActiveJob | None] = SimpleQueue()
        self._active: dict[str, ActiveJob] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schnell-engine", daemon=True)
        self._steps = RunnerSnapshot()
        self.status = WorkerStatus()

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is left, and end the thread."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()
        self._finisher.close()

    def submit(self, job: Job, listener: ProgressListener) -> Future[JobOutcome]:
        """Queue a job. The listener is called from the worker's threads."""
        active = ActiveJob(job, self.lane_of(job), listener, Future())
        self._inbox.put(active)
        return active.future

    def lane_of(self, job: Job) -> LaneKey:
        """The lane that a job's rows share batches in."""
        precision = self._engine.precision_for(go_fast=job.spec.go_fast)
        return LaneKey(self._engine.folder.token_grid(job.spec.size), precision)

    def step(self) -> None:
        """One turn: drop what was cancelled, take the next batch a step further, decode what is done."""
        self._drop_settled()
        self._tell_positions()
        batch = self._scheduler.next_batch()
        if batch is not None:
            self._encode_prompts(batch)
            stepped = self._denoise(batch)
            self._decode(self._scheduler.complete_step(stepped))
            self._tell_steps(stepped)
        self._publish_status()

    def _run(self) -> None:
        while True:
            self._receive(wait=self._scheduler.job_count == 0)
            if self._stopping.is_set():
                break
            try:
                self.step()
            except Exception as error:
                # a fault of ours must not end the service: the jobs at hand fail, the next ones run
                log.exception("engine step failed")
                for job_id in list(self._active):
                    self._fail(job_id, error)
        for active in self._active.values():
            active.future.cancel()

    def _receive(self, *, wait: bool) -> None:
        try:
            while True:
                active = self._inbox.get(block=wait)
                wait = False
                if active is not None:
                    self._admit(active)
        except Empty:
            return

    def _admit(self, active: ActiveJob) -> None:
        spec, grid = active.job.spec, active.lane.grid
        entry = Entry(
            job_id=active.job.id,
            team_id=active.job.team_id,
            lane=active.lane,
            outputs=spec.num_outputs,
            steps=spec.steps,
            tokens=grid.width * grid.height,
            adapters=frozenset(used.sha256 for used in active.job.adapters),
        )
        try:
            self._scheduler.add(entry)
        except SchnellError as error:
            active.settle_with(error)
            return
        self._active[active.job.id] = active

    def _drop_settled(self) -> None:
        for job_id in [job_id for job_id, active in self._active.items() if active.future.done()]:
            self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        self._scheduler.remove(job_id)
        self._leave(self._active.pop(job_id))

    def _leave(self, active: ActiveJob) -> None:
        if active.holds_slots:
            active.holds_slots = False
            self._engine.release(active.job, active.lane.precision)

    def _fail(self, job_id: str, error: Exception) -> None:
        active = self._active[job_id]
        self._forget(job_id)
        if not isinstance(error, SchnellError):
            log.error("generation failed", job_id=job_id, exc_info=error)
        active.settle_with(error)

    def _encode_prompts(self, batch: Batch[LaneKey]) -> None:
        newcomers = {row.key.job_id: self._active[row.key.job_id] for row in batch.rows if not row.is_started}
        waiting = [active for active in newcomers.values() if active.prompt is None]
        if not waiting:
            return
        start = perf_counter()
        ready = [(active, request) for active in waiting if (request := self._hold_slots(active))]
        if not ready:
            return
        embeddings = self._engine.encode_prompts([request for _, request in ready], ready[0][0].lane.precision)
        for (active, request), prompt in zip(ready, embeddings, strict=True):
            active.prompt = prompt
            active.drawings = dict(enumerate(self._engine.begin(active.job, prompt, request.slots)))
            active.watch.add("text", perf_counter() - start)

    def _hold_slots(self, active: ActiveJob) -> PromptRequest | None:
        try:
            slots = self._engine.acquire(active.job, active.lane.precision)
        except Exception as error:  # noqa: BLE001 - a LoRA that cannot be loaded fails its own job only
            self._fail(active.job.id, error)
            return None
        active.holds_slots = True
        return PromptRequest(active.job.spec.prompt, active.job.adapters, slots)

    def _denoise(self, batch: Batch[LaneKey]) -> tuple[Row[LaneKey], ...]:
        """Step the rows; a batch that fails is tried again in halves, so that only the row at fault fails."""
        batch = Batch(batch.lane, tuple(row for row in batch.rows if row.key.job_id in self._active))
        if not batch.rows:
            return ()
        start = perf_counter()
        try:
            drawings = self._engine.step([self._drawing(row.key) for row in batch.rows], batch.lane.precision)
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises, the other rows must go on
            log.warning("denoising step failed", rows=len(batch.rows), error=str(error))
            return self._denoise_halves(batch, error)
        seconds = perf_counter() - start
        self._sizer.observe(batch.lane, len(batch.rows), seconds)
        self._count_step(len(batch.rows), seconds)
        self._keep(batch.rows, drawings, seconds)
        return batch.rows

    def _denoise_halves(self, batch: Batch[LaneKey], error: Exception) -> tuple[Row[LaneKey], ...]:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._sizer.ran_out_of_memory(batch.lane, len(batch.rows))
        if len(batch.rows) == 1:
            self._fail(batch.rows[0].key.job_id, error)
            return ()
        middle = len(batch.rows) // 2
        halves = (batch.rows[:middle], batch.rows[middle:])
        return tuple(row for half in halves for row in self._denoise(Batch(batch.lane, half)))

    def _keep(self, rows: Sequence[Row[LaneKey]], drawings: Sequence[Drawing], seconds: float) -> None:
        for row, drawing in zip(rows, drawings, strict=True):
            active = self._active[row.key.job_id]
            active.drawings[row.key.index] = drawing
            active.watch.add("denoise", seconds / active.job.spec.num_outputs)

    def _drawing(self, key: RowKey) -> Drawing:
        return self._active[key.job_id].drawings[key.index]

    def _decode(self, done: Sequence[RowKey]) -> None:
        """Decode one by one: a picture's pixels then do not depend on what was finished beside it."""
        for key in done:
            active = self._active.get(key.job_id)
            if active is None or active.future.done():
                continue
            drawing = active.drawings[key.index]
            try:
                with active.watch.timing("decode"):
                    [picture] = self._engine.decode([drawing], active.lane.precision)
            except Exception as error:  # noqa: BLE001 - whatever a kernel raises, the other rows must go on
                self._fail(key.job_id, error)
                continue
            active.undecoded -= 1
            if active.undecoded == 0:
                self._leave(self._active.pop(key.job_id))
            self._finisher.submit(active, key.index, picture)
            self._previews.learn(drawing, picture)

    def _tell_positions(self) -> None:
        for position, job_id in enumerate(self._scheduler.waiting_jobs()):
            active = self._active[job_id]
            if active.position != position:
                active.position = position
                active.listener(Progress("queued", 0, active.job.spec.steps, position=position))

    def _tell_steps(self, rows: Sequence[Row[LaneKey]]) -> None:
        for job_id in dict.fromkeys(row.key.job_id for row in rows):
            active = self._active.get(job_id)
            if active is not None:
                step = min(drawing.step for drawing in active.drawings.values())
                previews = self._paint_previews(active) if active.job.wants_previews else ()
                active.listener(Progress("denoise", step, active.job.spec.steps, previews=previews))

    def _paint_previews(self, active: ActiveJob) -> tuple[bytes, ...]:
        if not self._previews.is_ready:
            return ()
        drawings = [active.drawings[index] for index in sorted(active.drawings)]
        return tuple(self._previews.paint(drawing, active.job.spec.size) for drawing in drawings)

    def _count_step(self, rows: int, seconds: float) -> None:
        seen = self._steps
        self._steps = RunnerSnapshot(0, rows, seen.steps + 1, seen.step_rows + rows, seen.step_seconds + seconds)

    def _publish_status(self) -> None:
        per_row = self._sizer.seconds_per_row()
        left = self._scheduler.remaining_steps()
        steps = self._steps
        self.status = WorkerStatus(
            snapshot=RunnerSnapshot(
                queued=len(self._scheduler.waiting_jobs()),
                active_rows=self._scheduler.started_rows,
                steps=steps.steps,
                step_rows=steps.step_rows,
                step_seconds=steps.step_seconds,
            ),
            backlog_seconds=sum(count * per_row.get(lane, 0.0) for lane, count in left.items()),
            seconds_per_row=per_row,
        )

"""Generations that are under way in this process: who waits for them, and how they are told."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Protocol

from schnell.errors import SchnellError
from schnell.generations.records import Record
from schnell.spec import GenerationSpec, Job, JobOutcome, Progress, ProgressListener, QueueEstimate, RunnerSnapshot


class Runner(Protocol):
    """Draws pictures: in this process, or on a cluster."""

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """Draw `job`. Cancelling the task that waits here cancels the job at its next step.

        `on_progress` may be called from any thread.

        Raises:
            SchnellError: the job could not be drawn.
        """
        ...

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:
        """What `spec` would meet if it came now."""
        ...

    def snapshot(self) -> RunnerSnapshot:
        """What is going on, for the metrics."""
        ...

    async def close(self) -> None:
        """Stop, and let go of the model."""
        ...


class Running:
    """One generation under way. It ends with its record, or with the error that its record tells of.

    Unless `detached`, it is cancelled when the last one who waits goes away.
    """

    def __init__(self, record: Record, *, detached: bool) -> None:
        self.record = record
        self.progress = Progress("queued")
        self._detached = detached
        self._waiting = 0
        self._listeners: set[asyncio.Queue[Progress | None]] = set()
        self._end: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._end.add_done_callback(_retrieve)
        self._drawing: asyncio.Task[JobOutcome] | None = None
        self._cancelled = False

    async def draw(self, drawing: "asyncio.Task[JobOutcome]") -> JobOutcome:
        """Wait for the runner's task, which `cancel` then reaches."""
        self._drawing = drawing
        if self._cancelled:
            drawing.cancel()
        return await drawing

    def cancel(self) -> None:
        """Stop drawing at the next step. What is drawn already is still finished."""
        self._cancelled = True
        if self._drawing is not None:
            self._drawing.cancel()

    def publish(self, progress: Progress) -> None:
        """Tell everyone who listens."""
        self.progress = progress
        for listener in self._listeners:
            listener.put_nowait(progress)

    def finish(self, record: Record, error: SchnellError | None = None) -> None:
        """The end: everyone who waits gets the record, or the error."""
        self.record = record
        if error is None:
            self._end.set_result(record)
        else:
            self._end.set_exception(error)
        for listener in self._listeners:
            listener.put_nowait(None)

    def detach(self) -> None:
        """Keep running from now on, whoever goes away."""
        self._detached = True

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Someone waits while this block runs."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and not self._detached and not self._end.done():
                self.cancel()

    async def ended(self) -> Record:
        """The record of the end.

        Raises:
            SchnellError: the generation failed.
        """
        return await asyncio.shield(self._end)

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """Every progress from now on, until the end."""
        listener: asyncio.Queue[Progress | None] = asyncio.Queue()
        listener.put_nowait(self.progress)
        if self._end.done():
            return
        self._listeners.add(listener)
        try:
            while (progress := await listener.get()) is not None:
                yield progress
        finally:
            self._listeners.discard(listener)


def _retrieve(end: "asyncio.Future[Record]") -> None:
    # nobody may be waiting for a detached failure: its record tells of it
    if not end.cancelled():
        end.exception()

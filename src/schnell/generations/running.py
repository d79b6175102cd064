"""Generations that are under way in this process: how many may be, who waits for them, and what those who wait get."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import bindparam, func, select, text

from schnell.database.connection import Connection
from schnell.database.tables import records, servers
from schnell.errors import ClientGoneError, ClosingError, SchnellError, ServerBusyError, TeamBusyError
from schnell.generations.records import UNFINISHED, Record
from schnell.spec import GenerationSpec, Job, JobOutcome, Progress, ProgressListener, QueueEstimate, RunnerSnapshot

_Drawn = TypeVar("_Drawn")
#: How long a caller waits for an end that the database does not take, before the answer is that it is being closed.
PATIENCE_SECONDS: Final = 3.0
#: A team's generations that living servers draw: a few rows of the index `ix_records_unfinished`.
_UNDER_WAY: Final = (
    select(func.count())
    .select_from(records.join(servers, servers.c.id == records.c.instance))
    .where(
        records.c.team_id == bindparam("of_team"),
        # words, not parameters: or a plan that is kept could not use the index, which holds only these
        text(f"records.status IN {UNFINISHED}"),
        servers.c.expires_at > func.clock_timestamp(),
    )
)


class Runner(Protocol):
    """Draws pictures: in this process, or on a cluster."""

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once, so the most that one job can have."""
        ...

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
        """What the runner is doing, for the metrics."""
        ...

    async def close(self) -> None:
        """Stop, and let go of the model."""
        ...


class Running:
    """One generation that this process carries out, from its acceptance until its end is written.

    It ends with its record, or with the error that its record holds. Unless it is detached (nobody needs to wait for
    it: an asynchronous request, or one that can be repeated under its `Idempotency-Key`), it is cancelled when the
    last caller who waits goes away.
    """

    def __init__(self, record: Record, *, detached: bool) -> None:
        self.record = record
        self.progress = Progress("queued")
        #: Whether its pictures are stored, so that it ends well unless somebody else ends it first.
        self.is_kept = False
        self.is_detached = detached
        self._waiting = 0
        self._listeners: set[asyncio.Queue[Progress | None]] = set()
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Record] = loop.create_future()
        self._end.add_done_callback(_retrieve)
        self._overdue: asyncio.Future[str] = loop.create_future()
        self._drawing: asyncio.Task[Any] | None = None
        self.is_cancelled = False

    async def draw(self, drawing: "asyncio.Task[_Drawn]") -> _Drawn:
        """Wait for the task that draws, which `cancel` then reaches."""
        self._drawing = drawing
        if self.is_cancelled:
            drawing.cancel()
        return await drawing

    def cancel(self) -> None:
        """Stop drawing at the next step. Pictures that are drawn already are still stored and charged."""
        self.is_cancelled = True
        if self._drawing is not None:
            self._drawing.cancel()

    def publish(self, progress: Progress) -> None:
        """Give progress to everyone who follows."""
        self.progress = progress
        for listener in self._listeners:
            listener.put_nowait(progress)

    def finish(self, record: Record, error: SchnellError | None = None) -> None:
        """The end is written: everyone who waits gets the record, or the error."""
        self.record = record
        if error is None:
            self._end.set_result(record)
        else:
            self._end.set_exception(error)
        self._end_listening()

    def report_overdue(self, message: str) -> None:
        """The end is known but could not be written for a while: everyone who waits gets a `ClosingError`."""
        if not self._overdue.done():
            self._overdue.set_result(message)
            self._end_listening()

    @property
    def overdue(self) -> str | None:
        """Why the end is not written yet; None as long as nothing is unusual, and once it is written."""
        return self._overdue.result() if self._overdue.done() and not self._end.done() else None

    @property
    def has_failed(self) -> bool:
        """Whether its end is written, and is a failure."""
        return self._end.done() and self._end.exception() is not None

    def when_charged(self, callback: Callable[[], None]) -> None:
        """Call back when its end is written, if that is a success."""
        self._end.add_done_callback(lambda end: None if end.exception() else callback())

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Someone waits while this block runs."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and not self.is_detached and not self._end.done():
                self.cancel()

    async def ended(self, gone: "asyncio.Future[None] | None" = None) -> Record:
        """The record of the end. Who waits may say when they are `gone`, and need no task of their own for it.

        Raises:
            ClientGoneError: `gone` came before the end.
            ClosingError: the end is known, but the database did not take it for some seconds.
            SchnellError: the generation failed.
        """
        # waiting for futures cancels none of them when the one who waits is cancelled
        awaited: set[asyncio.Future[Any]] = {self._end} if gone is None else {self._end, gone}
        if self._overdue.done():
            await asyncio.wait(awaited, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.wait({*awaited, self._overdue}, return_when=asyncio.FIRST_COMPLETED)
        if self._end.done():
            return self._end.result()
        if gone is not None and gone.done():
            raise ClientGoneError
        raise ClosingError(self._overdue.result())

    async def closed(self) -> Record:
        """The record, success or failure, once its end is written, however long that takes."""
        await asyncio.wait({self._end})
        return self.record

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """Every progress from now on, until there is nothing more to tell: `ended` then says why."""
        if self._end.done() or self._overdue.done():
            return
        listener: asyncio.Queue[Progress | None] = asyncio.Queue()
        listener.put_nowait(self.progress)
        self._listeners.add(listener)
        try:
            while (progress := await listener.get()) is not None:
                yield progress
        finally:
            self._listeners.discard(listener)

    def _end_listening(self) -> None:
        for listener in self._listeners:
            listener.put_nowait(None)


def _retrieve(end: "asyncio.Future[Record]") -> None:
    # nobody may be waiting for a detached generation: asyncio would log its failure as one that was never looked at
    if not end.cancelled():
        end.exception()


class Place:
    """A place among the generations under way, given back at the end of its block unless kept.

    `estimate` is what its generation would meet. Only a refusal asks for it: working it out takes a while.
    """

    def __init__(self, estimate: Callable[[], QueueEstimate]) -> None:
        self.kept = False
        self._estimate = estimate

    @property
    def wait(self) -> float:
        """In how many seconds another one may be free, if this one is refused after all."""
        return max(1.0, self._estimate().expected_seconds)

    def keep(self) -> None:
        """The generation starts: its place stays taken until `Admission.forget`."""
        self.kept = True


class Admission:
    """The generations of this process, by record; refuses those that would be too many."""

    def __init__(self, limit: int = 512, team_limit: int = 256) -> None:
        self._limit = limit
        self._team_limit = team_limit
        self._running: dict[str, Running] = {}
        self.closed = False
        self._closed_at = 0.0

    @contextmanager
    def admit(self, running: Running, estimate: Callable[[], QueueEstimate]) -> Iterator[Place]:
        """Take a place for `running` while it is accepted, or refuse.

        The place is taken before anything is reserved: 512 requests at once must not all see the last free one.

        Raises:
            TeamBusyError: the team has as many generations under way as it may have.
            ServerBusyError: the server has, or it is stopping.
        """
        place = Place(estimate)
        self._refuse(running.record.team_id, place)
        self._running[running.record.id] = running
        try:
            yield place
        finally:
            if not place.kept:
                self.forget(running)

    async def check_team(self, connection: Connection, team_id: str, place: Place) -> None:
        """Refuse a team that has as many generations under way as it may have, on all servers of the database together.

        To be called in the transaction that accepts one, after `credits.reserve`: the lock that it holds on the team's
        row keeps other servers from accepting another one meanwhile. What a dead server was drawing counts until its
        lease has run out.

        Raises:
            TeamBusyError: it has.
        """
        # on SQLite this server is alone, and has counted in `admit`
        if connection.dialect.name == "postgresql":
            ours = (await connection.execute(_UNDER_WAY, {"of_team": team_id})).scalar_one()
            self._refuse_team(ours, place)

    def forget(self, running: Running) -> None:
        """Give a place back."""
        self._running.pop(running.record.id, None)

    def find(self, record_id: str) -> Running | None:
        """The generation of this record, while it is under way here."""
        return self._running.get(record_id)

    def all(self) -> list[Running]:
        """Everything under way."""
        return list(self._running.values())

    def close(self) -> None:
        """Refuse everything from now on: the server is stopping."""
        if not self.closed:
            self.closed = True
            self._closed_at = time.monotonic()

    def seconds_left(self, seconds: float) -> float:
        """What is left of `seconds` since `close`: HTTP requests that are waited for first have used some of them."""
        return max(0.0, seconds - (time.monotonic() - self._closed_at))

    def _refuse(self, team_id: str, place: Place) -> None:
        if self.closed:
            raise ServerBusyError("the server is stopping; ask again in a moment", place.wait)
        if len(self._running) >= self._limit:
            raise ServerBusyError(f"{self._limit} generations are waiting already; ask again later", place.wait)
        self._refuse_team(sum(running.record.team_id == team_id for running in self._running.values()), place)

    def _refuse_team(self, ours: int, place: Place) -> None:
        if ours >= self._team_limit:
            raise TeamBusyError(f"your team has {ours} generations waiting already; ask again later", place.wait)

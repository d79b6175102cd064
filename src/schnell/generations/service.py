"""What happens to one request: find its LoRAs, reserve, fetch, draw, store, settle. No transaction is open meanwhile.

Nothing is fetched before its credits are reserved. The order loses neither credits nor pictures: the reservation is
committed before anything is drawn, files are stored before the record names them, the record and its settlement are one
transaction, and only then unused files go.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from schnell.accounts.credits import PriceTable, Reservation, reserve
from schnell.accounts.identity import Caller
from schnell.assets.store import AssetStore, KeyMint, extension_of
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import new_id
from schnell.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    FieldProblem,
    ForbiddenError,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
)
from schnell.generations.closing import Closings, Ending, failed
from schnell.generations.drawing import Drawer, Located, as_failure
from schnell.generations.idempotency import Unanswered, claim
from schnell.generations.records import Record, StoredImage, find_record, insert_record
from schnell.generations.request import GenerationRequest, describe_spec, show_prompt_object
from schnell.generations.running import PATIENCE_SECONDS, Admission, Place, Runner, Running
from schnell.loras.library import LoraLibrary
from schnell.spec import MIN_SIDE, GenerationSpec, MissingAdapter, QueueEstimate, Size

_log = logging.getLogger(__name__)
#: How long a server that stops waits for the credits of what it cancelled, after its time to drain is over.
_RELEASE_SECONDS: Final = 5.0
_NOT_CONFIRMED: Final = "the database did not confirm this generation; nothing was charged"
#: Told while the database does not take an end: never that nothing was charged, before that is so.
_PENDING_SUCCESS: Final = "the picture is drawn and kept; its record is still being closed, and it is charged once"
_PENDING_FAILURE: Final = "there is no picture ({}); its record is still being closed, and its credits released"
_MEDIA_TYPES: Final = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}

#: Called with every generation that ended, its error if it failed, and who asked for it.
EndListener = Callable[[Record, SchnellError | None, Caller], None]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request would cost and meet; nothing was done. `missing` are the LoRAs that would be fetched first."""

    cost: int
    spec: GenerationSpec
    estimate: QueueEstimate
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Generations:
    """Accepts requests and carries them out, each in a task of its own."""

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        database: Database,
        store: AssetStore,
        runner: Runner,
        *,
        admission: Admission,
        closings: Closings,
        prices: PriceTable,
        loras: LoraLibrary,
        keys: KeyMint,
        instance: str = "main",
        on_end: EndListener | None = None,
        go_fast_lora_factor: float = 1.0,
    ) -> None:
        self._database = database
        self._runner = runner
        self._admission = admission
        self._closings = closings
        self._prices = prices
        self._loras = loras
        self._keys = keys
        self._instance = instance
        self._on_end = on_end
        self._unanswered = Unanswered()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drawer = Drawer(
            database,
            store,
            runner,
            loras=loras,
            prices=prices,
            spawn=self._spawn,
            go_fast_lora_factor=go_fast_lora_factor,
        )

    async def quote(self, caller: Caller, request: GenerationRequest) -> Quote:
        """Cost, size and expected wait of a request that is not made.

        Raises:
            SchnellError: the request would be refused.
        """
        self._check(caller, request.spec)
        located = await self._loras.locate(request.spec.loras, caller.team_id)
        missing = tuple(each.name for each in located if isinstance(each, MissingAdapter))
        estimate = self._runner.estimate(request.spec, caller.team_id)
        return Quote(self._prices.total(request.spec), request.spec, estimate, request.warnings, missing)

    async def start(self, caller: Caller, request: GenerationRequest) -> Running | str:
        """Accept a request: its generation, or the id of the record that answers it.

        A record is there already for a repeated `Idempotency-Key`, and for the retry of a request that was left
        unanswered.

        Raises:
            SchnellError: the request is refused, and nothing is charged.
        """
        self._check(caller, request.spec)
        if request.idempotency_key is None and (left := await self._find_left_unanswered(caller, request)):
            return left
        located = await self._loras.locate(request.spec.loras, caller.team_id)
        record = self._draft(caller, request)
        detached = request.detached or request.idempotency_key is not None
        running = Running(record, detached=detached)
        with self._admission.admit(running, lambda: self._runner.estimate(request.spec, caller.team_id)) as place:
            accepted = await self._accept(caller, request, record, place)
            if isinstance(accepted, str):
                return accepted
            place.keep()
        self._spawn(self._carry_out(running, caller, request, located, accepted))
        return running

    def leave_unanswered(self, caller: Caller, request: GenerationRequest, started: Running | str) -> None:
        """Note that the answer to an accepted request did not reach its caller.

        The same request within a minute then gets this record, unless it costs nothing because it fails.
        """
        if request.idempotency_key is not None:
            return  # the key says which record answers a retry, and for longer
        if isinstance(started, str):
            self._unanswered.note(caller, request, started)
        elif started.is_kept or (started.is_detached and not started.is_cancelled):
            if not started.has_failed:
                self._unanswered.note(caller, request, started.record.id)
        else:
            # cancelled, because its caller is gone; but pictures that are drawn already are kept all the same
            started.when_charged(lambda: self._unanswered.note(caller, request, started.record.id))

    async def drain(self, seconds: float) -> None:
        """Wait for what runs; after `seconds`, cancel what is left and wait a little for its credits to be released.

        What the database does not take in that time stays unfinished: the next start puts it right.
        """
        await self._wait_for_tasks(seconds)
        for running in self._admission.all():
            running.cancel()
        await self._wait_for_tasks(_RELEASE_SECONDS)
        if self._tasks:
            _log.warning("%d generations are left unfinished; the next start ends them", len(self._tasks))
        for task in self._tasks:
            task.cancel()
        await self._wait_for_tasks(_RELEASE_SECONDS)

    @property
    def least_price(self) -> int:
        """What the cheapest picture costs, in credits."""
        return self._prices.picture(GenerationSpec("x", Size(MIN_SIDE, MIN_SIDE), steps=1))

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way, also what comes after a generation's end: cleaning up, and abandoning."""
        return bool(self._tasks)

    async def _wait_for_tasks(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        # tasks start others: what is waited for is looked up again
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # the set keeps the task alive: the event loop itself holds tasks weakly
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a generation's task failed", exc_info=error)

    async def _find_left_unanswered(self, caller: Caller, request: GenerationRequest) -> str | None:
        record_id = self._unanswered.take(caller, request)
        if record_id is None:
            return None
        try:
            async with self._database.read() as connection:
                record = await find_record(connection, caller.team_id, record_id)
        except NotFoundError:
            return None
        except DatabaseUnavailableError:
            self._unanswered.note(caller, request, record_id)  # for the next retry
            raise
        # a failure was not charged: the request is an ordinary one again
        return None if record.status == "FAILURE" else record_id

    async def _accept(
        self, caller: Caller, request: GenerationRequest, record: Record, place: Place
    ) -> Reservation | str:
        """Reserve and write the record, in one transaction; or the id of the record that holds the idempotency key."""
        try:
            async with self._database.write() as connection:
                if request.idempotency_key is not None:
                    arguments = (caller.team_id, request.idempotency_key, request.body_sha256, record.id)
                    if (held := await claim(connection, *arguments)) != record.id:
                        return held
                reservation = await reserve(connection, caller, record.id, record.cost)
                await self._admission.check_team(connection, caller.team_id, place)
                await insert_record(connection, record)
        except BaseException as cause:
            # a refusal of ours has rolled it back; after anything else it may hold, with credits that nobody releases
            if isinstance(cause, CommitUnknownError) or not isinstance(cause, SchnellError):
                self._spawn(self._closings.abandon(record, DatabaseUnavailableError(_NOT_CONFIRMED)))
            raise
        return reservation

    async def _carry_out(
        self, running: Running, caller: Caller, request: GenerationRequest, located: Located, reservation: Reservation
    ) -> None:
        draft = running.record
        try:
            ending = Ending(await self._drawer.draw(running, request, located))
        except Exception as cause:  # noqa: BLE001 - whatever happens, the record ends and the credits are released
            ending = failed(running.record, as_failure(cause, draft.id))
        running.is_kept = ending.error is None
        ended = await self._close(running, ending, reservation)
        self._admission.forget(running)
        self._report_end(ended, caller)
        running.finish(ended.record, ended.error)
        # after the answer: it may need a store that does not answer
        await self._closings.remove_unused(draft, ended.record)

    async def _close(self, running: Running, ending: Ending, reservation: Reservation) -> Ending:
        state = _PENDING_SUCCESS if ending.error is None else _PENDING_FAILURE.format(ending.error.code)
        message = f"{state}. Ask /api/results/{running.record.id} in a moment"
        overdue = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, running.report_overdue, message)
        try:
            return await self._closings.close(ending, reservation)
        finally:
            overdue.cancel()

    def _report_end(self, ending: Ending, caller: Caller) -> None:
        if self._on_end is None:
            return
        try:
            self._on_end(ending.record, ending.error, caller)
        except Exception:  # noqa: BLE001 - whoever counts ends must not keep one from its caller
            _log.exception("the end of record %s was not counted", ending.record.id)

    def _check(self, caller: Caller, spec: GenerationSpec) -> None:
        """Refuse what could never be drawn, before anything is fetched or reserved for it."""
        if not spec.safety_checker and not caller.may_disable_safety:
            raise ForbiddenError("this team may not set disable_safety_checker; leave it out")
        if not spec.watermark and not caller.may_disable_watermark:
            raise ForbiddenError("this team may not set disable_watermark; leave it out")
        if len(spec.loras) > self._runner.adapter_slots:
            most = self._runner.adapter_slots
            problem = (
                f"this server draws with {most} LoRAs at once, so a request may name {most}, got {len(spec.loras)}"
            )
            raise InvalidFieldError(FieldProblem("lora_weights", problem))

    def _draft(self, caller: Caller, request: GenerationRequest) -> Record:
        spec = request.spec
        moment = now()
        media_type = _MEDIA_TYPES[spec.output_format]
        extension = extension_of(media_type)
        return Record(
            id=new_id(),
            team_id=caller.team_id,
            user_id=caller.user_id,
            key_id=caller.key_id,
            instance=self._instance,
            dialect=request.dialect,
            type=request.type,
            model=request.model,
            status="QUEUED",
            prompt_object=show_prompt_object(request.prompt_object),
            settings=describe_spec(spec),
            cost=self._prices.total(spec),
            conversation_id=request.conversation_id,
            created_at=moment,
            images=tuple(
                StoredImage(self._keys.make(moment, extension), index, media_type) for index in range(spec.num_outputs)
            ),
        )

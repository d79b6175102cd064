"""What happens to one request: resolve its LoRAs, reserve, draw, store, settle. No transaction is open meanwhile.

The order loses neither credits nor pictures: the reservation is committed before anything is drawn, files are stored
before the record names them, the record and its settlement are one transaction, and only then unused files go.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from schnell.accounts.credits import PriceTable, Reservation, reserve
from schnell.accounts.identity import Caller
from schnell.assets.store import AssetStore, KeyMint, extension_of
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import new_id
from schnell.errors import (
    AssetError,
    CommitUnknownError,
    DatabaseUnavailableError,
    FieldProblem,
    ForbiddenError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    UnsafeContentError,
)
from schnell.generations.admission import Admission
from schnell.generations.closing import Closings, Ending, failed
from schnell.generations.idempotency import Unanswered, claim
from schnell.generations.records import Record, StoredImage, find_record, insert_record, mark_started
from schnell.generations.request import GenerationRequest, ResolveLoras, describe_spec
from schnell.generations.running import PATIENCE_SECONDS, Runner, Running
from schnell.spec import (
    AdapterUse,
    FetchListener,
    GenerationSpec,
    Job,
    JobOutcome,
    Progress,
    QueueEstimate,
    combine_adapters,
    output_seed,
    random_seed,
)

_log = logging.getLogger(__name__)
#: How long a server that stops waits for the credits of what it cancelled, after its time to drain is over.
_RELEASE_SECONDS: Final = 5.0
_NOT_CONFIRMED: Final = "the database did not confirm this generation; nothing was charged"
#: Told while the database does not take an end: never that nothing was charged, before that is so.
_PENDING_SUCCESS: Final = "the picture is drawn and kept; its record is still being closed, and it is charged once"
_PENDING_FAILURE: Final = "there is no picture ({}); its record is still being closed, and its credits released"
_MEDIA_TYPES: Final = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}

#: Called with every generation that ended, and with its error if it failed.
EndListener = Callable[[Record, SchnellError | None], None]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request would cost and meet; nothing was done."""

    cost: int
    spec: GenerationSpec
    estimate: QueueEstimate
    warnings: tuple[str, ...] = ()


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
        resolve_loras: ResolveLoras,
        keys: KeyMint,
        instance: str = "main",
        on_end: EndListener | None = None,
        go_fast_lora_factor: float = 1.0,
    ) -> None:
        self._database = database
        self._store = store
        self._runner = runner
        self._admission = admission
        self._closings = closings
        self._prices = prices
        self._resolve_loras = resolve_loras
        self._keys = keys
        self._instance = instance
        self._on_end = on_end
        self._go_fast_lora_factor = go_fast_lora_factor
        self._unanswered = Unanswered()
        self._tasks: set[asyncio.Task[None]] = set()

    async def quote(self, caller: Caller, request: GenerationRequest) -> Quote:
        """Cost, size and expected wait of a request that is not made.

        Raises:
            SchnellError: the request would be refused.
        """
        self._check(caller, request.spec)
        await self._resolve_loras(request.spec.loras, caller.team_id)
        estimate = self._runner.estimate(request.spec, caller.team_id)
        return Quote(self._prices.total(request.spec), request.spec, estimate, request.warnings)

    async def start(
        self, caller: Caller, request: GenerationRequest, on_fetch: FetchListener | None = None
    ) -> Running | str:
        """Accept a request: its generation, or the id of the record that answers it.

        A record is there already for a repeated `Idempotency-Key`, and for the retry of a request that was left
        unanswered. `on_fetch` gets the bytes so far of a LoRA that must be fetched first.

        Raises:
            SchnellError: the request is refused, and nothing is charged.
        """
        self._check(caller, request.spec)
        if request.idempotency_key is None and (left := await self._find_left_unanswered(caller, request)):
            return left
        found = await self._resolve_loras(request.spec.loras, caller.team_id, on_fetch)
        # the services that we follow raise a LoRA's strength under `go_fast`; an operator may do so, too
        adapters = combine_adapters(found, self._go_fast_lora_factor if request.spec.go_fast else 1.0)
        record = self._draft(caller, request)
        detached = request.detached or request.idempotency_key is not None
        running = Running(record, detached=detached)
        with self._admission.admit(running, self._runner.estimate(request.spec, caller.team_id)) as admitted:
            accepted = await self._accept(caller, request, record)
            if isinstance(accepted, str):
                return accepted
            admitted.keep()
        self._spawn(self._carry_out(running, self._job(record, request, adapters), accepted, request))
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

    async def _accept(self, caller: Caller, request: GenerationRequest, record: Record) -> Reservation | str:
        """Reserve and write the record, in one transaction; or the id of the record that holds the idempotency key."""
        try:
            async with self._database.write() as connection:
                if request.idempotency_key is not None:
                    arguments = (caller.team_id, request.idempotency_key, request.body_sha256, record.id)
                    if (held := await claim(connection, *arguments)) != record.id:
                        return held
                reservation = await reserve(connection, caller, record.id, record.cost)
                await insert_record(connection, record)
        except BaseException as cause:
            # a refusal of ours has rolled it back; after anything else it may hold, with credits that nobody releases
            if isinstance(cause, CommitUnknownError) or not isinstance(cause, SchnellError):
                self._spawn(self._closings.abandon(record, DatabaseUnavailableError(_NOT_CONFIRMED)))
            raise
        return reservation

    async def _carry_out(
        self, running: Running, job: Job, reservation: Reservation, request: GenerationRequest
    ) -> None:
        draft = running.record
        try:
            outcome = await self._draw(running, job)
            ending = Ending(await self._store_images(running.record, job, outcome, request))
        except Exception as cause:  # noqa: BLE001 - whatever happens, the record ends and the credits are released
            ending = failed(running.record, _as_failure(cause, job))
        running.is_kept = ending.error is None
        ended = await self._close(running, ending, reservation)
        self._admission.forget(running)
        self._report_end(ended)
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

    def _report_end(self, ending: Ending) -> None:
        if self._on_end is None:
            return
        try:
            self._on_end(ending.record, ending.error)
        except Exception:  # noqa: BLE001 - whoever counts ends must not keep one from its caller
            _log.exception("the end of record %s was not counted", ending.record.id)

    async def _draw(self, running: Running, job: Job) -> JobOutcome:
        loop = asyncio.get_running_loop()

        def receive(progress: Progress) -> None:
            if progress.stage != "queued" and running.record.started_at is None:
                running.record = replace(running.record, status="PROCESSING", started_at=now())
                # the first progress comes after the first step: the note is written beside the second, and no step
                # waits for the database
                self._spawn(self._mark_started(running.record))
            running.publish(progress)

        def listen(progress: Progress) -> None:
            loop.call_soon_threadsafe(receive, progress)

        try:
            outcome = await running.draw(asyncio.create_task(self._runner.run(job, listen)))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the server stops; otherwise it was the drawing alone that was cancelled
            raise GenerationCancelledError("the generation was cancelled; nothing was charged") from None
        if not outcome.images:
            raise UnsafeContentError(
                "every picture was flagged by the safety checker; nothing was charged. Change the prompt or the seed"
            )
        return outcome

    async def _mark_started(self, record: Record) -> None:
        assert record.started_at is not None  # noqa: S101 - that is what is written
        try:
            async with self._database.write() as connection:
                await mark_started(connection, record.id, record.started_at)
        except DatabaseUnavailableError:
            # a courtesy to whoever looks at the record; its end is written with the same time
            _log.info("record %s is not shown as started", record.id)

    async def _store_images(self, record: Record, job: Job, outcome: JobOutcome, request: GenerationRequest) -> Record:
        keys = {image.output: image for image in record.images}
        stored = []
        for image in outcome.images:
            place = keys[image.index]
            await self._store.put(place.key, image.data, image.media_type)
            data = await self._read_back(place.key, image.data) if request.inline else None
            found = replace(place, bytes=len(image.data), data=data, mark=image.mark, manifest=image.manifest)
            stored.append(found)
        return replace(
            record,
            status="SUCCESS",
            images=tuple(stored),
            receipts=tuple(dict(image.receipt) for image in outcome.images),
            cost=self._prices.picture(job.spec) * len(stored),
            response_object=_describe(job, outcome, request.warnings),
            finished_at=now(),
        )

    async def _read_back(self, key: str, written: bytes) -> bytes:
        """A picture as the store gives it, before it is charged: an answer that holds it could not be built without.

        Raises:
            AssetError: the store does not give it, or gives something else.
        """
        try:
            found = await self._store.get(key)
        except NotFoundError:
            found = b""
        if found != written:
            raise AssetError("the picture was stored but cannot be read back; nothing was charged")
        return found

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
            prompt_object=dict(request.prompt_object),
            settings=describe_spec(spec),
            cost=self._prices.total(spec),
            conversation_id=request.conversation_id,
            created_at=moment,
            images=tuple(
                StoredImage(self._keys.make(moment, extension), index, media_type) for index in range(spec.num_outputs)
            ),
        )

    def _job(self, record: Record, request: GenerationRequest, adapters: tuple[AdapterUse, ...]) -> Job:
        spec = request.spec
        seed = random_seed() if spec.seed is None else spec.seed
        return Job(record.id, record.team_id, spec, seed, adapters, request.wants_previews)


def _describe(job: Job, outcome: JobOutcome, warnings: tuple[str, ...]) -> Mapping[str, Any]:
    return {
        "seed": job.seed,
        "seeds": [output_seed(job.seed, index) for index in range(job.spec.num_outputs)],
        "width": job.spec.size.width,
        "height": job.spec.size.height,
        "timings": {stage: round(seconds, 4) for stage, seconds in outcome.timings.items()},
        "loras": [{"name": use.name, "sha256": use.sha256, "scale": use.scale} for use in job.adapters],
        "warnings": [*warnings, *outcome.warnings],
        "flagged": list(outcome.flagged),
        "proof": [{"mark": image.mark, "credentials": image.manifest} for image in outcome.images],
    }


def _as_failure(cause: Exception, job: Job) -> SchnellError:
    if isinstance(cause, SchnellError):
        return cause
    _log.error("generation %s failed", job.id, exc_info=cause)
    return GenerationFailedError("the picture could not be drawn; nothing was charged. Try again, or with another seed")

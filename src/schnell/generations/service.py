"""What happens to one request: resolve its LoRAs, reserve, draw, store, settle. No transaction is open meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from schnell.accounts.credits import PriceTable, Reservation, release, reserve, settle
from schnell.accounts.identity import Caller
from schnell.assets.store import AssetStore, KeyMint, extension_of
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import new_id
from schnell.errors import (
    AssetError,
    ForbiddenError,
    GenerationCancelledError,
    GenerationFailedError,
    SchnellError,
    UnsafeContentError,
)
from schnell.generations.admission import Admission
from schnell.generations.idempotency import claim
from schnell.generations.records import Record, StoredImage, finish_record, insert_record, mark_started
from schnell.generations.recovery import remove_images
from schnell.generations.request import GenerationRequest, ResolveLoras
from schnell.generations.running import Runner, Running
from schnell.spec import (
    AdapterUse,
    FetchListener,
    GenerationSpec,
    Job,
    JobOutcome,
    Progress,
    QueueEstimate,
    output_seed,
    random_seed,
)

_log = logging.getLogger(__name__)
_MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}

#: Told of every generation that ended, with its error if it failed.
EndListener = Callable[[Record, SchnellError | None], None]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request would cost and meet; nothing was done."""

    cost: int
    spec: GenerationSpec
    estimate: QueueEstimate


class Generations:
    """Accepts requests and carries them out, each in its own task."""

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        database: Database,
        store: AssetStore,
        runner: Runner,
        *,
        admission: Admission,
        prices: PriceTable,
        resolve_loras: ResolveLoras,
        keys: KeyMint,
        instance: str = "main",
        on_end: EndListener | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._runner = runner
        self._admission = admission
        self._prices = prices
        self._resolve_loras = resolve_loras
        self._keys = keys
        self._instance = instance
        self._on_end = on_end
        self._tasks: set[asyncio.Task[None]] = set()

    async def quote(self, caller: Caller, request: GenerationRequest) -> Quote:
        """Cost, size and expected wait of a request that is not made.

        Raises:
            SchnellError: the request would be refused.
        """
        self._check_safety(caller, request.spec)
        await self._resolve_loras(request.spec.loras, caller.team_id)
        estimate = self._runner.estimate(request.spec, caller.team_id)
        return Quote(self._prices.total(request.spec), request.spec, estimate)

    async def start(
        self, caller: Caller, request: GenerationRequest, on_fetch: FetchListener | None = None
    ) -> Running | str:
        """Accept a request: its generation, or the id of the record that its `Idempotency-Key` belongs to.

        `on_fetch` is told how far a LoRA is that must be fetched first.

        Raises:
            SchnellError: the request is refused, and nothing was charged.
        """
        self._check_safety(caller, request.spec)
        adapters = await self._resolve_loras(request.spec.loras, caller.team_id, on_fetch)
        record = self._draft(caller, request)
        detached = request.detached or request.idempotency_key is not None
        running = Running(record, detached=detached)
        with self._admission.admit(running, self._runner.estimate(request.spec, caller.team_id)) as admitted:
            async with self._database.write() as connection:
                if request.idempotency_key is not None:
                    arguments = (caller.team_id, request.idempotency_key, request.body_sha256, record.id)
                    if (held := await claim(connection, *arguments)) != record.id:
                        return held
                reservation = await reserve(connection, caller, record.id, record.cost)
                await insert_record(connection, record)
            admitted.keep()
        job = self._job(record, request, adapters)
        task = asyncio.create_task(self._carry_out(running, job, reservation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return running

    async def drain(self, seconds: float) -> None:
        """Wait for what runs; after `seconds`, cancel what is left and wait for its credits to be given back."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for running in self._admission.all():
            running.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _carry_out(self, running: Running, job: Job, reservation: Reservation) -> None:
        try:
            outcome = await self._draw(running, job)
            record = await self._store_images(running.record, job, outcome)
            async with self._database.write() as connection:
                if await finish_record(connection, record):
                    await settle(connection, reservation, record.cost, len(record.images))
            await self._remove_unused(running.record, record)
            error = None
        except Exception as cause:  # noqa: BLE001 - whatever happens, the credits go back and the record ends
            error = _as_failure(cause, job)
            record = await self._fail(running.record, error, reservation)
        self._admission.forget(running)
        if self._on_end is not None:
            self._on_end(record, error)
        running.finish(record, error)

    async def _draw(self, running: Running, job: Job) -> JobOutcome:
        loop = asyncio.get_running_loop()
        started = asyncio.Event()

        def tell(progress: Progress) -> None:
            if progress.stage != "queued":
                started.set()
            running.publish(progress)

        def listen(progress: Progress) -> None:
            loop.call_soon_threadsafe(tell, progress)

        marking = asyncio.create_task(self._mark_started(running, started))
        try:
            outcome = await running.draw(asyncio.create_task(self._runner.run(job, listen)))
        except asyncio.CancelledError:
            raise GenerationCancelledError("the generation was cancelled; nothing was charged") from None
        finally:
            if not started.is_set():
                marking.cancel()
            if not marking.done():
                await asyncio.wait([marking])
        if not outcome.images:
            raise UnsafeContentError(
                "every picture was flagged by the safety checker; nothing was charged. Change the prompt or the seed"
            )
        return outcome

    async def _mark_started(self, running: Running, started: asyncio.Event) -> None:
        await started.wait()
        moment = now()
        running.record = replace(running.record, status="PROCESSING", started_at=moment)
        async with self._database.write() as connection:
            await mark_started(connection, running.record.id, moment)

    async def _store_images(self, record: Record, job: Job, outcome: JobOutcome) -> Record:
        keys = {image.output: image for image in record.images}
        stored = []
        for image in outcome.images:
            place = keys[image.index]
            await self._store.put(place.key, image.data, image.media_type)
            stored.append(replace(place, bytes=len(image.data)))
        return replace(
            record,
            status="SUCCESS",
            images=tuple(stored),
            receipts=tuple(dict(image.receipt) for image in outcome.images),
            cost=self._prices.picture(job.spec) * len(stored),
            response_object=_describe(job, outcome),
            finished_at=now(),
        )

    async def _fail(self, record: Record, error: SchnellError, reservation: Reservation) -> Record:
        failed = replace(
            record,
            status="FAILURE",
            images=(),
            cost=0,
            error_code=error.code,
            error_message=error.message,
            response_object=_describe_failure(record, error),
            finished_at=now(),
        )
        try:
            async with self._database.write() as connection:
                if await finish_record(connection, failed):
                    await release(connection, reservation)
            await self._remove_unused(record, failed)
        except Exception:  # noqa: BLE001 - the record stays in between; the next start repairs it
            _log.exception("record %s could not be closed", record.id)
        return failed

    async def _remove_unused(self, before: Record, after: Record) -> None:
        kept = {image.key for image in after.images}
        unused = [image.key for image in before.images if image.key not in kept]
        if not unused:
            return
        try:
            await remove_images(self._database, self._store, unused)
        except AssetError as error:
            # they are marked: housekeeping removes them once the store is back
            _log.warning("pictures of record %s are removed later: %s", after.id, error.message)

    def _check_safety(self, caller: Caller, spec: GenerationSpec) -> None:
        if not spec.safety_checker and not caller.may_disable_safety:
            raise ForbiddenError("this team may not set disable_safety_checker; leave it out")

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


def describe_spec(spec: GenerationSpec) -> dict[str, Any]:
    """A spec as JSON, for records and dry runs."""
    return {
        "prompt": spec.prompt,
        "width": spec.size.width,
        "height": spec.size.height,
        "steps": spec.steps,
        "seed": spec.seed,
        "num_outputs": spec.num_outputs,
        "output_format": spec.output_format,
        "output_quality": spec.output_quality,
        "go_fast": spec.go_fast,
        "safety_checker": spec.safety_checker,
        "loras": [{"reference": lora.reference, "scale": lora.scale} for lora in spec.loras],
    }


def _describe(job: Job, outcome: JobOutcome) -> Mapping[str, Any]:
    return {
        "seed": job.seed,
        "seeds": [output_seed(job.seed, index) for index in range(job.spec.num_outputs)],
        "width": job.spec.size.width,
        "height": job.spec.size.height,
        "timings": {stage: round(seconds, 4) for stage, seconds in outcome.timings.items()},
        "loras": [{"name": use.name, "sha256": use.sha256, "scale": use.scale} for use in job.adapters],
        "warnings": list(outcome.warnings),
        "flagged": list(outcome.flagged),
    }


def _describe_failure(record: Record, error: SchnellError) -> Mapping[str, Any]:
    told = {"error": {"errorCode": error.code, "message": error.message}}
    flagged = list(range(record.settings["num_outputs"])) if isinstance(error, UnsafeContentError) else []
    return told | ({"flagged": flagged} if flagged else {})


def _as_failure(cause: Exception, job: Job) -> SchnellError:
    if isinstance(cause, SchnellError):
        return cause
    _log.error("generation %s failed", job.id, exc_info=cause)
    return GenerationFailedError("the picture could not be drawn; nothing was charged. Try again, or with another seed")

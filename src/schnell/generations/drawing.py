"""One accepted generation, from the LoRAs that are still to be fetched to its stored pictures."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from schnell.accounts.credits import PriceTable
from schnell.assets.store import AssetStore
from schnell.clock import now
from schnell.database.session import Database
from schnell.errors import (
    AssetError,
    DatabaseUnavailableError,
    GenerationCancelledError,
    GenerationFailedError,
    NotFoundError,
    SchnellError,
    UnsafeContentError,
)
from schnell.generations.records import Record, mark_started
from schnell.generations.request import GenerationRequest
from schnell.generations.running import Runner, Running
from schnell.loras.library import LoraLibrary
from schnell.spec import (
    AdapterUse,
    FetchProgress,
    Job,
    JobOutcome,
    MissingAdapter,
    Progress,
    combine_adapters,
    output_seed,
    random_seed,
)

_log = logging.getLogger(__name__)
#: The least time between two reports of a download, which has news with every piece that comes.
_FETCH_REPORT_SECONDS: Final = 0.2
Located = tuple[AdapterUse | MissingAdapter, ...]


class Spawn(Protocol):
    """Runs work beside the generation, and keeps its task alive."""

    def __call__(self, work: Coroutine[Any, Any, None], /) -> None:
        """Start it."""
        ...


class Drawer:
    """Fetches what is missing, has the runner draw, and stores what it drew."""

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        database: Database,
        store: AssetStore,
        runner: Runner,
        *,
        loras: LoraLibrary,
        prices: PriceTable,
        spawn: Spawn,
        go_fast_lora_factor: float = 1.0,
    ) -> None:
        self._database = database
        self._store = store
        self._runner = runner
        self._loras = loras
        self._prices = prices
        self._spawn = spawn
        self._go_fast_lora_factor = go_fast_lora_factor

    async def draw(self, running: Running, request: GenerationRequest, located: Located) -> Record:
        """The record of the finished generation, its pictures stored.

        Raises:
            SchnellError: a LoRA could not be fetched, nothing could be drawn, or it was cancelled.
        """
        drawing = asyncio.create_task(self._fetch_and_draw(running, request, located))
        try:
            job, outcome = await running.draw(drawing)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the server stops; otherwise it was the drawing alone that was cancelled
            raise GenerationCancelledError("the generation was cancelled; nothing was charged") from None
        if not outcome.images:
            raise UnsafeContentError(
                "every picture was flagged by the safety checker; nothing was charged. Change the prompt or the seed"
            )
        return await self._store_images(running.record, job, outcome, request)

    async def _fetch_and_draw(
        self, running: Running, request: GenerationRequest, located: Located
    ) -> tuple[Job, JobOutcome]:
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

        record, spec = running.record, request.spec
        seed = random_seed() if spec.seed is None else spec.seed
        found = await self._fetch_missing(running, located)
        # the services that we follow raise a LoRA's strength under `go_fast`; an operator may do so, too
        adapters = combine_adapters(found, self._go_fast_lora_factor if spec.go_fast else 1.0)
        job = Job(record.id, record.team_id, spec, seed, adapters, request.wants_previews)
        return job, await self._runner.run(job, listen)

    async def _fetch_missing(self, running: Running, located: Located) -> tuple[AdapterUse, ...]:
        here = [each for each in located if isinstance(each, AdapterUse)]
        if len(here) == len(located):
            return tuple(here)
        team_id = running.record.team_id
        report = _FetchReports(running)
        # a download may take longer than a file that is only named stays
        with self._loras.holding(here):
            found = [
                each if isinstance(each, AdapterUse) else await self._loras.fetch(each, team_id, report)
                for each in located
            ]
        # back in the queue: the runner tells its place when it has one
        running.publish(Progress("queued"))
        return tuple(found)

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


class _FetchReports:
    """Publishes how far a download is: its first news at once, then some a second, and always the last."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._next = 0.0

    def __call__(self, fetched: FetchProgress) -> None:
        if time.monotonic() >= self._next or fetched.received == fetched.total:
            self._next = time.monotonic() + _FETCH_REPORT_SECONDS
            self._running.publish(Progress("fetch", fetched=fetched))


def as_failure(cause: Exception, record_id: str) -> SchnellError:
    """The error that a generation ends with; what no part of the service raises on purpose is logged."""
    if isinstance(cause, SchnellError):
        return cause
    _log.error("generation %s failed", record_id, exc_info=cause)
    return GenerationFailedError("the picture could not be drawn; nothing was charged. Try again, or with another seed")


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

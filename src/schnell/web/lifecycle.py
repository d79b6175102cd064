"""A server's start and stop: migrate and repair, serve, do background work, finish what runs, close."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from schnell.accounts.keys import prepare_first_start
from schnell.database.migration import migrate
from schnell.errors import AssetError, SchnellError
from schnell.generations.backoff import Backoff
from schnell.generations.recovery import apply_retention, recover, remove_marked
from schnell.web.services import Services, services_of_app

_log = logging.getLogger(__name__)
_HOUR: Final = 3600.0
_MINUTE: Final = 60.0
_CLOSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """Work that is done again and again beside the requests: at the start, then every `period` seconds."""

    name: str
    period: float
    run: Callable[[Services], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops; an instance is the app's lifespan.

    `instance` names this server among those that share a database. `retention_days` is how long pictures are kept
    (None: for good). `drain_seconds` is how long a server that stops lets generations go on. `after_recovery` are
    called at the start, once no record is left unfinished by the server before.
    """

    instance: str = "main"
    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    after_recovery: Sequence[Callable[[Services], Awaitable[None]]] = ()
    #: Background jobs beside the server's own.
    jobs: Sequence[BackgroundJob] = ()

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        """Start, serve while the block runs, and stop.

        Sets `app.state.first_key` to the API key to show once, after the first start (None: there is none to show).
        """
        services = services_of_app(app)
        await self._start(app, services)
        tasks = [asyncio.create_task(repeat(job, services)) for job in (*self._own_jobs(), *self.jobs)]
        try:
            yield
        finally:
            # nothing new is accepted from here on; readiness turns to 503
            services.admission.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop(services)

    async def _start(self, app: FastAPI, services: Services) -> None:
        await migrate(services.database)
        async with services.database.write() as connection:
            app.state.first_key = await prepare_first_start(connection, self.bootstrap_key)
        await self._recover(services)
        for resume in self.after_recovery:
            await resume(services)

    async def _recover(self, services: Services) -> None:
        if services.local_assets is not None:
            services.local_assets.sweep_drafts()
        try:
            recovery = await recover(services.database, services.store, self.instance)
        except AssetError as error:
            # the records are right by then; a bucket that is away must not keep a server from starting
            _log.warning("pictures are removed later: %s", error.message)
            return
        if recovery.failed or recovery.removed:
            _log.warning("recovered: %d unfinished records, %d pictures removed", recovery.failed, recovery.removed)

    def _own_jobs(self) -> Sequence[BackgroundJob]:
        return (
            BackgroundJob("retention", _HOUR, self._apply_retention),
            BackgroundJob("previews", _HOUR, lambda services: services.lora_previews.draw_missing()),
            BackgroundJob("removals", _MINUTE / 2, _remove_leftovers),
        )

    async def _apply_retention(self, services: Services) -> None:
        removed = await apply_retention(services.database, services.store, self.retention_days)
        if removed:
            _log.info("removed %d old pictures", removed)

    async def _stop(self, services: Services) -> None:
        """End what runs, then let go of everything. What fails or hangs keeps nothing else from being closed."""
        left = services.admission.seconds_left(self.drain_seconds)
        await _attempt("draining", services.generations.drain(left), None)
        # webhooks after the drain: they send the ends that it has brought
        await _attempt("webhooks", services.webhooks.close(), _CLOSE_SECONDS)
        await _attempt("runner", services.runner.close(), None)
        await _attempt("store", services.store.close(), _CLOSE_SECONDS)
        await _attempt("database", services.database.close(), _CLOSE_SECONDS)


async def repeat(job: BackgroundJob, services: Services, backoff: Backoff | None = None) -> None:
    """Run a background job until the task is cancelled. A run that fails is logged, counted and tried again sooner."""
    backoff = backoff or Backoff(first=1.0, longest=job.period)
    delays = backoff.delays()
    while True:
        try:
            await job.run(services)
        except Exception as error:  # noqa: BLE001 - no failure of one job may end it, or any other
            _log_failure(job.name, error)
            services.metrics.count_background_failure(job.name)
            await asyncio.sleep(next(delays))
        else:
            delays = backoff.delays()
            await asyncio.sleep(job.period)


async def _remove_leftovers(services: Services) -> None:
    await services.closings.remove_leftovers()
    await remove_marked(services.database, services.store)


async def _attempt(name: str, work: Awaitable[None], seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except Exception as error:  # noqa: BLE001 - the server is stopping whatever happens
        _log_failure(name, error)


def _log_failure(name: str, error: Exception) -> None:
    if isinstance(error, SchnellError):
        _log.warning("%s failed: %s", name, error.message)
    else:
        _log.error("%s failed", name, exc_info=error)

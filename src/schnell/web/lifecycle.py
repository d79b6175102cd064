"""A server's start and stop: migrate and repair, serve, do background work, finish what runs, close."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from schnell.accounts import last_uses
from schnell.accounts.keys import prepare_first_start
from schnell.clock import Backoff
from schnell.database.migration import migrate, take_turn
from schnell.errors import SchnellError
from schnell.generations.recovery import apply_retention, heartbeat, reconcile, remove_marked
from schnell.generations.trash import empty_trash
from schnell.generations.webhooks import Subscription
from schnell.web.services import Services, services_of_app

_log = logging.getLogger(__name__)
_HOUR: Final = 3600.0
_MINUTE: Final = 60.0
_CLOSE_SECONDS: Final = 10.0
#: In the life of a lease, so that some may fail: by default one every ten seconds.
_HEARTBEATS: Final = 12


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """Work that is done again and again beside the requests: at the start, then every `period` seconds."""

    name: str
    period: float
    run: Callable[[Services], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops; an instance is the app's lifespan.

    `retention_days` is how long pictures are kept (None: for good). `drain_seconds` is how long a server that stops
    lets generations go on. `after_recovery` are called with the webhooks that dead servers had still to deliver, once
    the records that they tell of have ended. `jobs` are background jobs beside the server's own.
    """

    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    after_recovery: Sequence[Callable[[Services, Sequence[Subscription]], Awaitable[None]]] = ()
    jobs: Sequence[BackgroundJob] = ()

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        """Start, serve while the block runs, and stop.

        Sets `app.state.first_key` to the API key to show once, after the first start (None: there is none to show).
        """
        services = services_of_app(app)
        await self._prepare_database(app, services)
        await services.lease.start()
        # a task of their own, from the start to after the drain: nothing slow may keep them waiting
        pause = services.lease.seconds / _HEARTBEATS
        heartbeats = asyncio.create_task(repeat(BackgroundJob("lease", pause, _send_heartbeat), services))
        await self._reconcile(services)
        tasks = [asyncio.create_task(repeat(job, services)) for job in (*self._own_jobs(services), *self.jobs)]
        try:
            yield
        finally:
            # nothing new is accepted from here on; readiness turns to 503
            services.admission.close()
            await _cancel(*tasks)
            await self._stop(services, heartbeats)

    async def _prepare_database(self, app: FastAPI, services: Services) -> None:
        await migrate(services.database)
        async with services.database.migrate() as connection:
            # or two servers that start at once on a new database would both make the first team
            await take_turn(connection)
            app.state.first_key = await prepare_first_start(connection, self.bootstrap_key)

    async def _reconcile(self, services: Services) -> None:
        """End what no living server works on, and go on with what it owed."""

        def is_under_way(record_id: str) -> bool:
            return services.admission.find(record_id) is not None

        async with services.database.read() as connection:
            living = await services.lease.list_live(connection)
        if services.local_assets is not None:
            await asyncio.to_thread(services.local_assets.sweep_drafts, living)
        await asyncio.to_thread(services.trainings.sweep, living)
        recovery = await reconcile(services.database, services.store, services.lease, is_under_way)
        for resume in self.after_recovery:
            await resume(services, recovery.adopted)
        await services.loras.remove_unwanted()

    def _own_jobs(self, services: Services) -> Sequence[BackgroundJob]:
        return (
            BackgroundJob("recovery", min(_MINUTE, services.lease.seconds / 2), self._reconcile),
            BackgroundJob("retention", _HOUR, self._apply_retention),
            BackgroundJob("rates", _HOUR, lambda services: services.rates.forget_old()),
            BackgroundJob("previews", _HOUR, lambda services: services.lora_previews.draw_missing()),
            BackgroundJob("last uses of keys", last_uses.PERIOD, _write_last_uses),
            BackgroundJob("removals", _MINUTE / 2, _remove_leftovers),
        )

    async def _apply_retention(self, services: Services) -> None:
        removed = await apply_retention(services.database, services.store, self.retention_days)
        if removed:
            _log.info("removed %d old pictures", removed)

    async def _stop(self, services: Services, heartbeats: "asyncio.Task[None]") -> None:
        """End what runs, then let go of everything. What fails or hangs keeps nothing else from being closed."""
        await _attempt("previews", services.lora_previews.close(), _CLOSE_SECONDS)
        await _attempt("trainings", services.trainings.close(), _CLOSE_SECONDS)
        await _attempt("thumbnails", services.thumbnails.close(), _CLOSE_SECONDS)
        left = services.admission.seconds_left(self.drain_seconds)
        await _attempt("draining", services.generations.drain(left), None)
        # webhooks after the drain: they send the ends that it has brought
        await _attempt("webhooks", services.webhooks.close(), _CLOSE_SECONDS)
        # the lease is kept until nothing of this server's is left that another could take for a dead server's
        await _cancel(heartbeats)
        await _attempt("lease", services.lease.end(), _CLOSE_SECONDS)
        await _attempt("runner", services.runner.close(), None)
        await _attempt("last uses of keys", services.last_uses.write(services.database), _CLOSE_SECONDS)
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


async def _cancel(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _send_heartbeat(services: Services) -> None:
    await heartbeat(services.database, services.lease, services.admission)


async def _write_last_uses(services: Services) -> None:
    await services.last_uses.write(services.database)


async def _remove_leftovers(services: Services) -> None:
    await services.closings.remove_leftovers()
    await empty_trash(services.database, services.store)
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
